"""LoRA: PEFT's numbers from PEFT's files and back, the base untouched, merged exactly, trained by the one loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sekkei.core.errors import ConfigError, UserError
from sekkei.engine.engine import Engine
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.heads import with_heads
from sekkei.model.hf import PARTS, load_hf
from sekkei.model.init import build
from sekkei.model.lora import (
    ATTENTION,
    LoRAConfig,
    add_lora,
    load_lora,
    lora_layers,
    merge_lora,
    save_lora,
    without_lora,
)
from sekkei.model.transformer import Transformer

GOLDEN = Path(__file__).with_name("golden_lora")
SIZES = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=31, qk_norm=True
)
CONFIG = LoRAConfig(rank=4, alpha=8)


def scores(model: Transformer, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return model.logits(model.hidden(ids, positions, DenseAttend(None)))


def golden_base() -> Transformer:
    config, state = load_hf(GOLDEN / "base")
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return model.double()


def shaken(model: Transformer) -> Transformer:
    """With adapters that do something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_b.copy_(torch.randn(layer.lora_b.shape, generator=generator))
    return model


def test_scores_and_gradients_are_those_of_peft() -> None:
    known = load_file(GOLDEN / "expected.safetensors")
    model, ids = golden_base(), known["ids"]
    assert torch.allclose(scores(model, ids), known["base_scores"], rtol=0, atol=1e-6)
    config = load_lora(GOLDEN / "adapter", model)
    assert (config.rank, config.alpha, config.targets, config.rslora) == (3, 5.0, ("down_proj", "q_proj"), True)
    found = scores(model, ids)
    assert float((found - known["scores"]).detach().abs().max()) < 1e-6
    assert float((known["scores"] - known["base_scores"]).abs().max()) > 0.1
    found.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).mean().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len([name for name in known if name.startswith("grad/")])
    for name, parameter in trained.items():
        _, layer, part, rest = name.split(".", 3)
        rest = rest.replace("lora_a", "lora_A.weight").replace("lora_b", "lora_B.weight")
        true = known[f"grad/base_model.model.model.layers.{layer}.{PARTS[part]}.{rest}"]
        assert parameter.grad is not None
        assert float((parameter.grad - true).norm() / true.norm()) < 1e-6, name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_what_is_written_is_read_and_is_what_peft_wrote(tmp_path: Path) -> None:
    model = golden_base().float()
    config = load_lora(GOLDEN / "adapter", model)
    save_lora(tmp_path / "out", model, config, base="somewhere")
    folders = (tmp_path / "out", GOLDEN / "adapter")
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    written, known = (json.loads((folder / "adapter_config.json").read_text()) for folder in folders)
    assert written.keys() <= known.keys()
    for key in written.keys() - {"base_model_name_or_path", "target_modules", "task_type"}:
        assert written[key] == known[key], key
    assert sorted(known["target_modules"]) == written["target_modules"]
    again = golden_base().float()
    assert load_lora(tmp_path / "out", again) == config
    ids = torch.arange(10)[None]
    assert torch.equal(scores(again, ids), scores(model, ids))


def test_a_fresh_adapter_changes_nothing_and_trains_alone() -> None:
    base, model = build(SIZES, 1), build(SIZES, 1)
    ids = torch.arange(12)[None]
    add_lora(model, CONFIG, seed=3)
    assert torch.equal(scores(model, ids), scores(base, ids))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 7 * SIZES.num_layers
    assert all(name.endswith(("lora_a", "lora_b")) for name in names)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen.keys() == dict(base.named_parameters()).keys()
    other = add_lora(build(SIZES, 1), CONFIG, seed=4)
    assert not torch.equal(dict(other.named_parameters())["layers.0.mlp.up_proj.lora_a"],
                           dict(model.named_parameters())["layers.0.mlp.up_proj.lora_a"])  # fmt: skip


def test_targets_and_heads() -> None:
    model = add_lora(with_heads(build(SIZES, 1), ("reward",)), LoRAConfig(rank=2, targets=("q_proj", "v_proj")), 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "reward_head.weight" in trained
    assert len(trained) == 1 + 2 * 2 * SIZES.num_layers
    assert set(ATTENTION) - {name.rpartition(".")[2] for name in lora_layers(model)} == {"k_proj", "o_proj"}


def test_the_base_is_the_reference() -> None:
    base, ids = build(SIZES, 1), torch.arange(12)[None]
    model = shaken(add_lora(build(SIZES, 1), CONFIG, seed=3))
    changed = scores(model, ids)
    assert not torch.allclose(changed, scores(base, ids))
    with without_lora(model):
        assert torch.equal(scores(model, ids), scores(base, ids))
        with without_lora(model):
            pass
        assert torch.equal(scores(model, ids), scores(base, ids))  # the inner one gives back what it found
    assert torch.equal(scores(model, ids), changed)


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_it_computes_the_same(rslora: bool) -> None:
    ids = torch.arange(12)[None]
    model = shaken(add_lora(build(SIZES, 1, dtype=torch.float64), replace(CONFIG, rslora=rslora), seed=3))
    before = scores(model, ids)
    merge_lora(model)
    assert float((scores(model, ids) - before).detach().abs().max()) < 1e-12
    assert lora_layers(model) == {}
    assert dict(model.named_parameters()).keys() == dict(build(SIZES, 1).named_parameters()).keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    rounded = shaken(add_lora(build(SIZES, 1, dtype=torch.bfloat16), CONFIG, seed=3))
    layer = lora_layers(rounded)["layers.0.mlp.up_proj"]
    exact = layer.weight.float() + CONFIG.scale * (layer.lora_b.float() @ layer.lora_a.float())
    merge_lora(rounded)
    assert torch.equal(dict(rounded.named_parameters())["layers.0.mlp.up_proj.weight"], exact.bfloat16())


def test_the_engines_hash_covers_the_adapter() -> None:
    """A rollout from stale adapters must be seen: the base's weights never change."""
    model = add_lora(build(SIZES, 1), CONFIG, seed=3)
    engine = Engine(model, max_batch=2)
    before = engine.weights_hash
    shaken(model)
    engine.refresh(None)
    assert engine.weights_hash != before


def test_wrong_settings_are_refused() -> None:
    for key, settings in (("rank", {"rank": -1}), ("alpha", {"rank": 1, "alpha": 0.0}), ("targets", {"targets": ()}),
                          ("targets", {"targets": ("lm_head",)})):  # fmt: skip
        with pytest.raises(ConfigError, match=f"^{key}: "):
            LoRAConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^rank: got 0"):
        add_lora(build(SIZES, 1), LoRAConfig(), 0)
    with pytest.raises(ConfigError, match=r"^rank: 17 is larger than layers"):
        add_lora(build(SIZES, 1), LoRAConfig(rank=17), 0)
    model = add_lora(build(SIZES, 1), CONFIG, 0)
    with pytest.raises(UserError, match="already"):
        add_lora(model, CONFIG, 0)
    with pytest.raises(UserError, match="no LoRA"):
        save_lora(Path("nowhere"), build(SIZES, 1), CONFIG)


def changed_config(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def changed_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        state = load_file(folder / "adapter_model.safetensors")
        change(state)
        save_file(state, folder / "adapter_model.safetensors")

    return write


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (changed_config("use_dora", True), "use_dora: got True"),
        (changed_config("bias", "all"), "bias: got 'all'"),
        (changed_config("rank_pattern", {"q_proj": 8}), "rank_pattern"),
        (changed_config("peft_type", "IA3"), "peft_type"),
        (changed_config("target_modules", "all-linear"), "target_modules"),
        (changed_config("target_modules", ["embed_tokens"]), "targets"),
        (changed_config("r", "3"), "r='3'"),
        (changed_config("r", 4), "this model needs"),
        (changed_tensors(lambda state: state.pop(NAME)), "is missing"),
        (changed_tensors(lambda state: state.update(more=torch.ones(1))), "has no place"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "cannot be read"),
    ],
)
def test_a_damaged_adapter_changes_nothing(tmp_path: Path, damage: Callable[[Path], Any], words: str) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "adapter", folder)
    damage(folder)
    model = golden_base()
    with pytest.raises((UserError, ConfigError), match=words):
        load_lora(folder, model)
    assert lora_layers(model) == {}
    assert all(parameter.requires_grad for parameter in model.parameters())
