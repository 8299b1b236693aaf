"""Recipes: extending, overriding, a user's own file, and what is refused with key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from sekkei.core import config
from sekkei.core.errors import ConfigError, UserError
from sekkei.recipes.recipe import load, resolve, shipped
from sekkei.stages.life import stages_of


def test_smoke_is_laptop_with_smaller_sizes() -> None:
    smoke, laptop = load("smoke"), load("laptop")
    assert (smoke.name, laptop.name) == ("smoke", "laptop")
    assert smoke.model.hidden_size == 64
    assert laptop.model.hidden_size == 128
    assert smoke.model.qk_norm is laptop.model.qk_norm is True  # not written in smoke.yaml
    assert smoke.pretrain["long"].rope_factor == laptop.pretrain["long"].rope_factor == 4
    assert smoke.pretrain["general"].mixture == laptop.pretrain["general"].mixture
    assert list(smoke.pretrain) == ["general", "reasoning", "long"]
    assert [stage.name for stage in stages_of(smoke)] == [stage.name for stage in stages_of(laptop)]


@pytest.mark.parametrize("name", shipped())
def test_a_resolved_recipe_is_a_recipe(name: str) -> None:
    """What a run writes into recipe.yaml gives the same recipe again."""
    recipe = load(name)
    again = config.from_mapping(type(recipe), config.to_mapping(recipe))
    assert again == recipe


def test_overrides_are_typed_and_reach_deep() -> None:
    recipe = load(
        "smoke",
        ["seed=7", "dpo.beta=1", "pretrain.general.optim.lr=1e-3", "eval.shots=[0, 2]", "sft.optim.betas=[0.8, 0.9]"],
    )
    assert recipe.seed == 7
    assert recipe.dpo is not None
    assert type(recipe.dpo.beta) is float
    assert recipe.pretrain["general"].optim.lr == 1e-3
    assert recipe.pretrain["general"].optim.kind == "muon"  # its neighbours stay
    assert recipe.eval.shots == (0, 2)
    assert recipe.sft is not None
    assert recipe.sft.optim.betas == (0.8, 0.9)


def test_the_last_override_counts_and_mappings_merge() -> None:
    assert load("smoke", ["seed=1", "seed=2"]).seed == 2
    assert load("smoke", ["pretrain={}", "model={num_layers: 3}"]) == load("smoke", ["model.num_layers=3"])


def test_null_removes_stages() -> None:
    recipe = load("smoke", ["dpo=null", "pretrain.long=null"])
    names = [stage.name for stage in stages_of(recipe)]
    assert not {"preferences", "dpo", "eval.dpo", "pretrain.long", "eval.pretrain.long"} & set(names)
    (grpo,) = (stage for stage in stages_of(recipe) if stage.name == "grpo")
    assert grpo.reads == ("tokenizer", "sft")
    (sft,) = (stage for stage in stages_of(recipe) if stage.name == "sft")
    assert sft.reads == ("data", "tokenizer", "pretrain.reasoning")


def test_an_own_file_extends_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "small.yaml").write_text("extends: smoke\nseed: 3\nmodel: {num_layers: 1}\n")
    (tmp_path / "mine.yaml").write_text("extends: base/small.yaml\nmodel: {hidden_size: 32}\ndpo: null\n")
    for name in (str(tmp_path / "mine.yaml"), "mine.yaml", "./mine.yaml"):
        monkeypatch.chdir(tmp_path)
        recipe = load(name, ["seed=4"])
        assert recipe.name == "mine"
        assert (recipe.seed, recipe.model.num_layers, recipe.model.hidden_size, recipe.dpo) == (4, 1, 32, None)
        assert recipe.model.num_heads == load("smoke").model.num_heads
    (tmp_path / "base" / "sibling.yaml").write_text("extends: ./small.yaml\nname: own\n")
    assert load("base/sibling.yaml").name == "own"
    assert "extends" not in resolve("base/sibling.yaml")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("modle.hidden_size=64", "modle: unknown key; did you mean 'model'?"),
        ("model.num_layer=2", "model.num_layer: unknown key; did you mean 'num_layers'?"),
        ("pretrain.general.optim.learning_rate=1", "pretrain.general.optim.learning_rate: unknown key"),
        ("preferences.prompt=1", "preferences.prompt: unknown key; did you mean 'prompts'?"),
        ("model.num_layers=two", "model.num_layers: expected int, got str 'two'"),
        ("model.num_layers=2.5", "model.num_layers: expected int, got float 2.5"),
        ("model.qk_norm=1", "model.qk_norm: expected bool, got int 1"),
        ("sft=3", "sft: expected a mapping of keys, got int 3"),
        ("model=null", "model: expected a mapping of keys, got nothing"),
        ("pretrain.general.optim.kind=sgd", "pretrain.general.optim.kind: got str 'sgd', must be one of adamw, muon"),
        ("model.num_kv_heads=3", "model.num_heads: num_heads=2 must be a multiple of num_kv_heads=3"),
        ("pretrain.general.mixture.docs=0.9", "pretrain.general.mixture: shares"),
        ("pretrain.general.mixture.docs=-0.4", "must be >= 0 and sum to 1"),
        ("pretrain.general.mixture.novels=0", "pretrain.general.mixture.novels: no such domain; known: docs, code"),
        ("pretrain.general.context=1024", "pretrain.general.context: 1024 is more than model.max_context=512"),
        ("pretrain.general.rows=0", "pretrain.general.rows: got 0, must be >= 1"),
        ("tokenizer.vocab_size=200", "tokenizer.vocab_size: got 200, must be >= 265 (256 bytes + 9 special tokens)"),
        ("model.vocab_size=999", "model.vocab_size: 999 differs from tokenizer.vocab_size=1024; leave it out"),
        ("eval.max_tokens=512", "eval.max_tokens: 512 leaves no room for the prompt in model.max_context=512"),
        ("grpo.max_tokens=600", "grpo.max_tokens: 600 leaves no room for the prompt"),
        ("preferences.max_tokens=600", "preferences.max_tokens: 600 leaves no room for the prompt"),
        ("sft=null", "dpo: needs the stage sft before it"),
        ("tune.ppo={start: sft}", "tune.ppo: needs exactly one of sft, reward, dpo"),
        ("tune.a={start: sft, kto: {steps: 1}, dpo: {steps: 1}}", "tune.a: needs exactly one of"),
        ("tune.a={start: stf, kto: {steps: 1}}", "tune.a.start: got 'stf', must be one of base, dpo, grpo"),
        ("tune.dpo={start: sft, kto: {steps: 1}}", "tune.dpo: is not free as a name"),
        (
            "tune.a={start: sft, ppo: {steps: 1, reward_model: 1}}",
            "tune.a.scored_by: ppo.reward_model=1.0 needs a",
        ),
        ("tune.a={start: sft, scored_by: b, ppo: {steps: 1, reward_model: 1}}", "tune.a.scored_by: got 'b'; stages of"),
        ("tune.a={start: sft, scored_by: b, ppo: {steps: 1}}", "tune.a.ppo.reward_model: is 0, but scored_by=b"),
        ("tune.a={start: sft, rewards: {verifier: 0}, grpo: {steps: 1}}", "tune.a.rewards.verifier: got 0, and grpo."),
        ("tune.a={start: sft, rewards: {length: 1}, grpo: {steps: 1, max_tokens: 64}}", "free_tokens: got 64, must be"),
        ("tune.a={start: sft, path: x, grpo: {steps: 1, tool: calculator}}", "tune.a.grpo.tool: calculator asks"),
        ("tune.a={start: sft, path: x, kto: {steps: 1}}", "tune.a.path: kto samples no answers"),
        ("tune.a={start: sft, form: document, kto: {steps: 1}}", "tune.a.form: kto samples no answers"),
        ("tune.a={start: base, sft: {steps: 1, own: {stage: b}}}", "tune.a.sft.own.stage: got 'b', must be an earlier"),
        ("tune.a={start: sft, ppo: {steps: 1, max_tokens: 600}}", "tune.a.ppo.max_tokens: 600 leaves no room"),
        ("inference.kto={}", "inference.kto: no such stage with a model: sft, dpo, grpo"),
        ("inference.sft={scored_by: dpo}", "inference.sft.scored_by: got 'dpo'; stages of kind reward: none"),
        ("grpo.reward_model=1", "grpo.reward_model: the main line trains no reward model"),
        ("sft.tools=0.9", "sft.refusals: everyday=0.2, refusals=0.05 and tools=0.9 sum to more than 1"),
        ("sft.styles=[none, all]", "sft.styles[1]: got str 'all', must be one of every, two, three, none"),
        ("name=a b/c", "name: got 'a b/c', must be letters, digits"),
        ("seed", "seed: an override is written key=value"),
        ("model.num_layers=[1", "is not valid YAML"),
        ("seed.deep=1", "seed: is int 0, it has no key 'deep'"),
    ],
)
def test_what_does_not_fit_is_refused(override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load("smoke", [override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_extends_is_a_key_of_files() -> None:
    with pytest.raises(ConfigError, match="extends: stands in a recipe's file; on the command line name the recipe"):
        load("smoke", ["extends=laptop"])


def test_every_stage_taken_away_is_refused() -> None:
    with pytest.raises(ConfigError, match="pretrain: needs at least one stage"):
        load("smoke", [f"pretrain.{name}=null" for name in load("smoke").pretrain])


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, r"a\.yaml: no such recipe file; give a path, or a shipped name: laptop, laptop-study, r1"),
        ({"a.yaml": "extends: b.yaml"}, r"b\.yaml: no such recipe file"),
        (
            {"a.yaml": "extends: smokey"},
            r"smokey: no such recipe; shipped: laptop, .*, smoke; a file's name ends in",
        ),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "extends: a.yaml"}, r"extends: more than 8 .* is there a circle\?"),
        ({"a.yaml": "extends: a.yaml"}, r"extends: more than 8 recipes extend each other; is there a circle\?"),
        ({"a.yaml": "extends: [smoke]"}, r"extends: got \['smoke'\], must be one recipe's name or path"),
        ({"a.yaml": "model: {num_layers: 2\nseed: 1"}, r"a\.yaml: line 2 is not valid YAML"),
        ({"a.yaml": "- smoke"}, r"a\.yaml: a recipe is a mapping of keys, got list"),
        ({"a.yaml": "extends: smoke\nseed: !!python/name:os.system"}, r"a\.yaml: line 2 is not valid YAML"),
        ({"a.yaml": ""}, r"a\.yaml: a recipe is a mapping of keys, got nothing"),
        ({"a.yaml": "extend: smoke\nseed: 1"}, r"extend: unknown key; did you mean 'extends'\?"),
        (
            {"a.yaml": "extends: smoke\nseed: 1\nseed: 2"},
            r"a\.yaml: seed stands twice in one mapping, in line 2 and in",
        ),
        ({"a.yaml": "seed: 1"}, r"model: is required \(ModelConfig\)"),
    ],
)
def test_a_file_that_is_no_recipe(files: dict[str, str], told: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told):
        load(str(tmp_path / "a.yaml"))


def test_the_main_line_and_what_is_tuned_beside_it() -> None:
    recipe = load("laptop-study")
    assert [*recipe.tuning][:3] == ["sft", "dpo", "dpo-1"]
    assert recipe.tuning["dpo"].start == "sft"
    assert recipe.tuning["dpo"].config == recipe.tuning["dpo-2"].config, "the seeds differ by name alone"
    assert recipe.stage_of("base") == "pretrain.long"
    assert recipe.key_of("ppo-0") == "tune.ppo-0.ppo"
    assert [load(name).form_of(stage) for name, stage in (("r1-zero", "zero"), ("r1", "rl-2"))] == ["document", "chat"]
    assert list(load("r1").inference) == ["rl-2"], "null takes away what the base recipe has"
