"""Initial weights, drawn per parameter *name*, so that every layout starts from the same numbers.

Matrices are normal with std 1/√fan_in; those that write into the residual stream (`o_proj`, `down_proj`)
are divided by √(2·layers) (GPT-2, Radford et al. 2019, section 2.3); scalar heads and routers' biases start at zero,
norms at one. Each parameter has its own generator, seeded by its name and the run's seed. `model.init: induction`
starts some of them near a circuit instead (induction.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from sekkei.core.seed import derive_seed
from sekkei.model.config import ModelConfig
from sekkei.model.induction import seeded_weight
from sekkei.model.transformer import Head, Transformer


def build(
    config: ModelConfig, seed: int, heads: Collection[Head] = ("lm",), dtype: torch.dtype = torch.float32
) -> Transformer:
    """A whole model on the CPU with initial weights, made on the meta device first."""
    with torch.device("meta"):
        model = Transformer(config, heads)
    model = model.to(dtype).to_empty(device="cpu")
    if config.tied_embeddings and model.lm_head is not None and model.embed is not None:
        model.lm_head.weight = model.embed.weight  # to_empty() gives each its own storage
    initialize(model, seed)
    return model


def initialize(model: Transformer, seed: int) -> None:
    """Fill every parameter in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, model.config, seed))


def initial_weight(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> torch.Tensor:
    """The initial value of the parameter called `name`, float32, whole."""
    normal = _normal_weight(name, shape, config.num_layers, seed)
    seeded = seeded_weight(name, normal, config, seed) if config.init == "induction" else None
    return normal if seeded is None else seeded


def _normal_weight(name: str, shape: torch.Size, num_layers: int, seed: int) -> torch.Tensor:
    if name.endswith(".router.bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    if name.startswith(("value_head", "reward_head")):
        return torch.zeros(shape)
    std = 1 / math.sqrt(shape[-1])
    if "o_proj" in name.split(".") or "down_proj" in name.split("."):
        std /= math.sqrt(2 * num_layers)
    generator = torch.Generator().manual_seed(derive_seed("init", seed, name))
    return torch.empty(shape).normal_(0.0, std, generator=generator)
