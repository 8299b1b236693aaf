"""LoRA (Hu et al. 2021, section 4.1): a frozen matrix and a trained one of low rank beside it.

    y = W x + s B A x        A [r, in] random, B [out, r] zero at first, s = alpha / r (rsLoRA: alpha / √r)

`add_lora` changes a model in place: the linear layers keep their weight and its name, and get `lora_a` and `lora_b`;
everything else is frozen but scalar heads, which a fresh reward model or critic has to learn. Since the layers compute
with the adapter, so does an engine that shares the model, and its weight hash covers it. `without_lora` is the
reference of DPO and RL at no cost in memory. On disk it is PEFT's layout, read and written:

    adapter_config.json, adapter_model.safetensors        base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight

`merge_lora` folds the adapter into W for export. It does not handle dropout (refused in RL and DPO anyway), DoRA,
routed experts, quantised bases, or ranks that differ by layer (parallel/tensor.py says how a pair is cut).

Shapes: `r` rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.model.hf import PARTS
from sekkei.model.moe import biases
from sekkei.model.transformer import Transformer

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
REFUSED = {  # settings of PEFT whose other values are another computation
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layers_to_transform": ([], None),
    "trainable_token_indices": ([], None),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
}


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """rank: r; 0 = no adapter. alpha: s = alpha / rank, or alpha / √rank with `rslora` (Kalajdzievski 2023). targets:
    which layers get one.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ATTENTION + MLP
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError("rank", f"got {self.rank}, must be >= 0 (0 = no adapter)")
        if not 0 < self.alpha < math.inf:
            raise ConfigError("alpha", f"got {self.alpha}, must be > 0 and finite: at 0 the adapter has no effect")
        unknown = sorted(set(self.targets) - {*ATTENTION, *MLP})
        if unknown or not self.targets:
            raise ConfigError("targets", f"got {list(self.targets)}, must name some of {', '.join((*ATTENTION, *MLP))}")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoRALinear(nn.Linear):
    """A linear layer without bias and its adapter."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.config = config
        self.weight = base.weight
        self.lora_a = nn.Parameter(base.weight.new_zeros(config.rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, config.rank))
        self.scale = config.scale
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight)
        if not self.on:
            return y
        low = nn.functional.linear(x, self.lora_a)
        return y + self.scale * nn.functional.linear(low, self.lora_b)


def add_lora(model: Transformer, config: LoRAConfig, seed: int) -> Transformer:
    """Put adapters into a model and freeze the rest but scalar heads; in place. It computes what it did before.

    A is uniform in ±1/√in (PEFT's default, Kaiming with a = √5), drawn by its name.

    Raises:
        ConfigError: rank 0, a rank larger than a layer. UserError: the model has adapters already.
    """
    for name, layer in empty_lora(model, config).items():
        bound = 1 / math.sqrt(layer.in_features)
        generator = torch.Generator().manual_seed(derive_seed("lora", seed, name))
        drawn = torch.empty(layer.lora_a.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            layer.lora_a.copy_(drawn)
    return model


def empty_lora(model: Transformer, config: LoRAConfig) -> dict[str, LoRALinear]:
    """As `add_lora`, but A is 0 as well: for an adapter that is about to be copied. Returns the layers, by name.

    Raises:
        As `add_lora`.
    """
    if config.rank < 1:
        raise ConfigError("rank", "got 0, must be >= 1 to add an adapter")
    if lora_layers(model):
        raise UserError("the model has a LoRA adapter already; merge it first")
    model.requires_grad_(False)
    for head in (model.value_head, model.reward_head):
        if head is not None:
            head.requires_grad_(True)
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if not isinstance(module, nn.Linear) or last not in config.targets:
            continue
        if config.rank > min(module.in_features, module.out_features):
            raise ConfigError("rank", f"{config.rank} is larger than {name}: {tuple(module.weight.shape)}")
        setattr(model.get_submodule(parent), last, LoRALinear(module, config))
    return lora_layers(model)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_config(model: nn.Module) -> LoRAConfig | None:
    """Of the adapters in a model, or in a part of one; None: it has none."""
    return next((layer.config for layer in lora_layers(model).values()), None)


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as its base: the reference of DPO and RL without a second copy."""
    layers = lora_layers(model).values()
    before = [layer.on for layer in layers]
    for layer in layers:
        layer.on = False
    try:
        yield
    finally:
        for layer, on in zip(layers, before, strict=True):
            layer.on = on


@torch.no_grad()
def merge_lora(model: Transformer) -> Transformer:
    """Fold adapters into the weights, in place; the layers are plain again and everything is trainable.

    The product is added in float32 at least, and rounded once to the weight's dtype.
    """
    for name, layer in lora_layers(model).items():
        parent, _, last = name.rpartition(".")
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        change = layer.scale * (layer.lora_b.to(wide) @ layer.lora_a.to(wide))
        merged = (layer.weight.to(wide) + change).to(layer.weight.dtype)
        plain.weight = nn.Parameter(merged)
        setattr(model.get_submodule(parent), last, plain)
    model.requires_grad_(True)
    for bias in biases(model).values():
        bias.requires_grad_(False)
    return model


def save_lora(folder: Path, model: Transformer, config: LoRAConfig, base: str = "") -> None:
    """Write the adapter as PEFT does, atomically.

    Args:
        base: path or name of the base model, for those who load it elsewhere.
    Raises:
        UserError: the model has no adapter.
    """
    layers = lora_layers(model)
    if not layers:
        raise UserError("the model has no LoRA adapter to save")
    state = {}
    for name, layer in layers.items():
        theirs = _to_peft(name)
        state[f"{theirs}.lora_A.weight"] = layer.lora_a.detach().cpu().contiguous()
        state[f"{theirs}.lora_B.weight"] = layer.lora_b.detach().cpu().contiguous()
    data = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rslora,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with atomic.new_folder(folder) as aside:
        (aside / CONFIG_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        safetensors.torch.save_file(state, aside / WEIGHTS_FILE, metadata={"format": "pt"})


def load_lora(folder: Path, model: Transformer) -> LoRAConfig:
    """Put an adapter of PEFT's layout into a model, in place.

    Raises:
        UserError: files are missing or damaged, tensors missing, left over or of another shape.
        ConfigError: a setting that is not handled, by key and value.
    """
    data = _read_config(folder / CONFIG_FILE)
    config = _config_of(data)
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE}: cannot be read ({error}); save the adapter again") from None
    expected = {
        f"{_to_peft(name)}.lora_{side}.weight": _shape(module, side, config.rank)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in config.targets
        for side in ("A", "B")
    }
    for name, shape in expected.items():
        if name not in state:
            raise UserError(f"{folder}: tensor {name} is missing; the adapter is of another model")
        if tuple(state[name].shape) != shape:
            raise UserError(f"{folder}: tensor {name} is {list(state[name].shape)}, this model needs {list(shape)}")
    for name in state:
        if name not in expected:
            raise UserError(f"{folder}: tensor {name} has no place in this model")
    layers = empty_lora(model, config)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_a.copy_(state[f"{_to_peft(name)}.lora_A.weight"])
            layer.lora_b.copy_(state[f"{_to_peft(name)}.lora_B.weight"])
    return config


def _shape(module: nn.Linear, side: str, rank: int) -> tuple[int, int]:
    return (rank, module.in_features) if side == "A" else (module.out_features, rank)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); a LoRA adapter needs it") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a JSON object")
    return data


def _config_of(data: dict[str, Any]) -> LoRAConfig:
    if data.get("peft_type") != "LORA":
        raise ConfigError("peft_type", f"got {data.get('peft_type')!r}, only 'LORA' is handled")
    for key, allowed in REFUSED.items():
        if data.get(key) not in allowed:
            raise ConfigError(key, f"got {data[key]!r}, only {allowed[0]!r} is handled")
    targets = data.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ConfigError("target_modules", f"got {targets!r}, must be a list of layer names")
    if not isinstance(data.get("r"), int) or not isinstance(data.get("lora_alpha"), int | float):
        raise ConfigError("r", f"r={data.get('r')!r} and lora_alpha={data.get('lora_alpha')!r} must be numbers")
    return LoRAConfig(
        rank=data["r"],
        alpha=float(data["lora_alpha"]),
        targets=tuple(sorted(targets)),
        rslora=bool(data.get("use_rslora", False)),
    )


def _to_peft(name: str) -> str:
    """`layers.3.attention.q_proj` -> `base_model.model.model.layers.3.self_attn.q_proj`."""
    _, layer, part, rest = name.split(".", 3)
    return f"{PREFIX}model.layers.{layer}.{PARTS[part]}.{rest}"
