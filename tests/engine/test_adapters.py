"""LoRA adapters side by side: a mixed batch against merged models, one for each adapter."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sekkei.core.errors import UserError
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.lora import LoRAConfig, add_lora, load_lora, lora_layers, merge_lora, save_lora, without_lora
from sekkei.model.transformer import Transformer

VOCABULARY = 60
ADAPTERS = {
    "wide": LoRAConfig(rank=4, alpha=40),
    "narrow": LoRAConfig(rank=2, alpha=30, targets=("q_proj", "down_proj"), rslora=True),
}
PROMPTS = [tuple(range(1, 40)), (5, 6, 7), tuple(range(1, 39))]


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=48, vocab_size=VOCABULARY,
        max_context=96, qk_norm=True,
    )  # fmt: skip
    return build(config, seed=4)


@pytest.fixture(scope="module")
def folders(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters on the disk, of random matrices that move the scores."""
    root = tmp_path_factory.mktemp("adapters")
    for number, (name, config) in enumerate(ADAPTERS.items()):
        adapted = add_lora(copy.deepcopy(model), config, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for layer in lora_layers(adapted).values():
                layer.lora_b.normal_(0, 0.1, generator=generator)
        save_lora(root / name, adapted, config)
    return {name: root / name for name in ADAPTERS}


def merged(model: Transformer, folder: Path | None) -> Transformer:
    own = copy.deepcopy(model)
    if folder is not None:
        load_lora(folder, own)
        merge_lora(own)
    return own


def requests(temperature: float, adapters: list[str | None]) -> list[Request]:
    sampling = Sampling(temperature=temperature, max_tokens=12)
    return [
        Request(prompt_ids=prompt, sampling=sampling, n=2, seed=i, adapter=name)
        for i, prompt in enumerate(PROMPTS)
        for name in adapters
    ]


def distance(found: list[Completion], expected: list[Completion]) -> float:
    """Largest difference of log-probabilities; the tokens are the same."""
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    return max(float(np.abs(np.subtract(a.logprobs, b.logprobs)).max()) for a, b in zip(found, expected))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("prefill_tokens", [8192, 7])
def test_a_mixed_batch_is_what_merged_models_say(
    model: Transformer, folders: dict[str, Path], temperature: float, prefill_tokens: int
) -> None:
    names: list[str | None] = [None, *folders]
    engine = Engine(model, adapters=folders, block_size=8, prefill_tokens=prefill_tokens)
    asked = requests(temperature, names)
    first, again = engine.generate(asked), engine.generate(asked)  # the second time, prompts are found in the store
    answers: dict[str | None, list[tuple[int, ...]]] = {}
    for name in names:
        alone = Engine(merged(model, folders[name] if name else None))
        expected = alone.generate([copy.copy(one) for one in requests(temperature, [None])])
        for found in (first, again):
            mine = [group for one, group in zip(asked, found, strict=True) if one.adapter == name]
            assert max(distance(a, b) for a, b in zip(mine, expected, strict=True)) < 1e-5
        answers[name] = [one.token_ids for group in expected for one in group]
    assert len({tuple(tokens) for tokens in answers.values()}) == len(names)  # the adapters do something


def test_scores_of_a_prompt_are_the_adapters(model: Transformer, folders: dict[str, Path]) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=1, prompt_logprobs=True)
    engine = Engine(model, adapters=folders)
    asked = [Request(prompt_ids=PROMPTS[0], sampling=sampling, adapter=name) for name in (None, "wide")]
    (base,), (wide,) = engine.generate(asked)
    ((expected,),) = Engine(merged(model, folders["wide"])).generate(
        [Request(prompt_ids=PROMPTS[0], sampling=sampling)]
    )
    assert np.abs(np.subtract(wide.prompt_logprobs, expected.prompt_logprobs)).max() < 1e-5
    assert np.abs(np.subtract(wide.prompt_logprobs, base.prompt_logprobs)).max() > 0.1


def test_preempted_requests_find_their_own_adapters_blocks(model: Transformer, folders: dict[str, Path]) -> None:
    engine = Engine(model, adapters=folders, block_size=8, blocks=14, max_batch=6)
    asked = requests(1.0, [None, *folders])
    found = engine.generate(asked)
    assert engine.preemptions > 0
    for one, group in zip(asked, found, strict=True):
        assert distance(group, Engine(model, adapters=folders).generate([one])[0]) < 1e-5


def test_the_model_stays_as_it_is_and_unknown_names_are_refused(model: Transformer, folders: dict[str, Path]) -> None:
    before = Engine(model).weights_hash
    engine = Engine(model, adapters=folders)
    assert engine.weights_hash == before
    assert not lora_layers(model)
    with pytest.raises(UserError, match=r"adapter 'rude' is not known; the engine has wide, narrow"):
        engine.check(Request(prompt_ids=(1,), sampling=Sampling(), adapter="rude"))


def test_adapters_of_another_model_are_refused(folders: dict[str, Path], model: Transformer, tmp_path: Path) -> None:
    other = build(ModelConfig(hidden_size=16, num_layers=3, num_heads=2, num_kv_heads=1, intermediate_size=48,
                              vocab_size=VOCABULARY, max_context=32), seed=0)  # fmt: skip
    with pytest.raises(UserError, match="this model needs"):
        Engine(other, adapters={"wide": folders["wide"]})
    with pytest.raises(UserError, match="must be merged first"):
        Engine(load_into(copy.deepcopy(model), folders["narrow"]), adapters={"wide": folders["wide"]})
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX"}))
    with pytest.raises(UserError, match="peft_type"):
        Engine(model, adapters={"broken": broken})


def load_into(model: Transformer, folder: Path) -> Transformer:
    load_lora(folder, model)
    return model


def test_a_model_with_an_adapter_of_its_own(model: Transformer, folders: dict[str, Path]) -> None:
    """As in training with LoRA: the engine shares the model, with and without its adapter."""
    asked = requests(1.0, [None])
    shared = load_into(copy.deepcopy(model), folders["wide"])
    engine = Engine(shared)
    expected = Engine(merged(model, folders["wide"])).generate(asked)
    assert max(distance(a, b) for a, b in zip(engine.generate(asked), expected, strict=True)) < 1e-5
    with without_lora(shared):
        engine.refresh(None)
        base = Engine(model).generate(asked)
        assert max(distance(a, b) for a, b in zip(engine.generate(asked), base, strict=True)) < 1e-5
