"""The figures that the README shows were made with the recipe that is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sekkei.recipes.recipe import load
from sekkei.stages.run import recipe_digest

ROOT = Path(__file__).resolve().parents[2]


RECORDED = json.loads((ROOT / "docs" / "results" / "laptop.json").read_text(encoding="utf-8"))
FIGURES: dict[str, float] = RECORDED["figures"]


def bpb(stage: str, what: str) -> float:
    return FIGURES[f"pretrain.{stage}.bpb.{what}"]


def reasoning(label: str, what: str) -> float:
    return FIGURES[f"reasoning.{label}.{what}"]


def test_the_recorded_life_is_within_its_budget() -> None:
    assert FIGURES["run.peak_gib"] <= 4
    assert FIGURES["run.seconds"] <= 20 * 60
    assert RECORDED["machine"]["cores"] == 2


def test_pretraining_did_what_each_stage_is_for() -> None:
    for domain in ("docs", "code", "math"):
        assert bpb("general", domain) < bpb("start", domain)
    assert bpb("reasoning", "code") < bpb("general", "code")
    assert bpb("reasoning", "math") < bpb("general", "math")
    control = FIGURES["pretrain.long.control.bpb.beyond_context"]
    assert bpb("long", "beyond_context") <= 0.97 * control
    assert bpb("long", "beyond_context") < bpb("long", "positions_128_256")
    assert FIGURES["pretrain.long.token_share"] <= 0.10


def test_alignment_did_what_each_stage_is_for() -> None:
    assert reasoning("sft", "pass1_sampled") >= 0.10
    assert reasoning("grpo", "pass1_greedy") >= 0.95
    assert reasoning("grpo", "pass1_sampled") >= 0.60
    assert reasoning("grpo", "no_thinking.pass1_greedy") <= 0.10
    assert reasoning("grpo", "ended") >= 0.98
    assert reasoning("grpo", "steps") > reasoning("dpo", "steps")
    assert FIGURES["chat.base.answered"] == 0
    assert FIGURES["chat.sft.answered"] >= 0.90
    assert FIGURES["dpo.preference_accuracy.end"] >= FIGURES["dpo.preference_accuracy.start"] + 0.10
    assert reasoning("dpo", "pass1_sampled") >= reasoning("sft", "pass1_sampled") - 0.03


@pytest.mark.parametrize("name", ["laptop", "laptop-study", "r1", "r1-zero"])
def test_figures_are_of_the_shipped_recipe(name: str) -> None:
    recorded = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert recorded["digests"]["recipe"] == recipe_digest(load(name, [])), f"run sekkei run {name}, commit its results"


def study(name: str) -> dict[str, float]:
    text = (ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8")
    figures: dict[str, float] = json.loads(text)["figures"]
    return figures


def test_methods_side_by_side() -> None:
    found = study("laptop-study")

    def of(stage: str, what: str = "pass1_sampled") -> float:
        return found[f"reasoning.{stage}.{what}"]

    groups = sorted(of(f"grpo-{seed}") for seed in range(3))
    assert groups[1] >= 0.60
    assert groups[0] >= 0.30
    assert min(of(f"ppo-{seed}", "pass1_greedy") for seed in range(3)) >= 0.85
    assert abs(of("direct-grpo") - 1 / 23) <= 0.04, "nothing to select without a thought"
    assert of("grpo-0", "no_thinking.pass1_greedy") <= 0.10
    assert found["grpo-0.model_bytes"] <= 0.6 * found["ppo-0.model_bytes"]


def test_what_more_tokens_buy() -> None:
    found = study("laptop-study")

    def of(key: str, stage: str = "grpo-0") -> float:
        return found[f"inference.{stage}.{key}.accuracy"]

    assert of("cot.shots0") >= of("direct.shots0") + 0.50
    for stage in ("sft", "grpo-0"):
        assert of("self_consistency.k16", stage) >= of("self_consistency.k1", stage)
    assert FIGURES["icl.base.shots8"] >= FIGURES["icl.base.shots0"] + 0.30


def test_reinforcement_on_the_base_model() -> None:
    found = study("r1-zero")
    assert found["reasoning.base-document.pass8"] >= 0.10
    assert found["reasoning.zero.pass1_sampled"] > found["reasoning.base-document.pass1_sampled"] + 0.30
    assert found["reasoning.zero.steps"] > found["reasoning.base-document.steps"]


def test_problems_of_a_file_are_learned_from_their_outcome_alone() -> None:
    """GSM8K's format: the base has what RL selects (pass@8 >= .1), and one sample is right far more often after it."""
    zero, r1 = (study(name) for name in ("words-zero", "words-r1"))
    assert zero["own.base-document.pass8"] >= 0.1
    assert zero["own.zero.pass1_sampled"] >= zero["own.base-document.pass1_sampled"] + 0.3
    assert r1["own.rl-2.pass1_sampled"] >= r1["own.cold.pass1_sampled"] + 0.3
    for found, before, after in ((zero, "base-document", "zero"), (r1, "cold", "rl-1")):
        assert found[f"own.{after}.tokens"] > found[f"own.{before}.tokens"], "nothing rewards length; it grows"
        assert found[f"own.{after}.no_thinking.pass1_greedy"] <= 0.15


def test_length_curves_are_those_of_the_recorded_runs() -> None:
    curves = json.loads((ROOT / "docs" / "results" / "lengths.json").read_text(encoding="utf-8"))
    assert {(curve["run"], curve["stage"]) for curve in curves} == {
        ("r1-zero", "zero"), ("r1", "rl-1"), ("r1", "rl-2"),
        ("words-zero", "zero"), ("words-r1", "rl-1"), ("words-r1", "rl-2"),
    }  # fmt: skip
    for curve in curves:
        recorded = json.loads((ROOT / "docs" / "results" / f"{curve['run']}.json").read_text(encoding="utf-8"))
        assert curve["recipe"] == recorded["digests"]["recipe"]
        assert curve["steps"] == list(range(1, 81))
        if curve["stage"] != "rl-2":  # which begins where rejection sampling left it
            first, last = (sum(curve["completion_tokens"][part]) / 10 for part in (slice(10), slice(-10, None)))
            assert last > 1.1 * first
