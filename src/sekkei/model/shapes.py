"""Shapes for a number of parameters: what `--params 70b` stands for.

Near a published model (within 25%) it is that model; elsewhere a shape between the two nearest ones:

    width  log-log interpolated, to a multiple of 1024      heads = width / 128, 8 key/value heads
    inner  3.5 · width                                      layers: as many as bring the count nearest

Sources: Grattafiori et al. 2024 (The Llama 3 Herd of Models), table 3, for 8B, 70B and 405B; the `config.json` of Llama
3.2 for 1B and 3B, whose embeddings are tied. It does not handle mixtures of experts, or other families.
"""

from __future__ import annotations

import math
import re

from sekkei.core.errors import ConfigError
from sekkei.model.config import ModelConfig
from sekkei.model.flops import count_parameters

VOCABULARY, HEAD = 128_256, 128
NEAR = 0.25  # a published model this close is taken as it is
SMALLEST, LARGEST = 0.5e9, 2e12  # beyond these, interpolation would be invention
UNITS = {"m": 1e6, "b": 1e9, "t": 1e12}


def _llama(layers: int, width: int, heads: int, inner: int, head: int = HEAD, tied: bool = False) -> ModelConfig:
    return ModelConfig(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        intermediate_size=inner,
        vocab_size=VOCABULARY,
        head_dim=head,
        max_context=131_072,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        tied_embeddings=tied,
    )


PUBLISHED = {
    "Llama 3.2 1B": _llama(16, 2048, 32, 8192, head=64, tied=True),
    "Llama 3.2 3B": _llama(28, 3072, 24, 8192, tied=True),
    "Llama 3.1 8B": _llama(32, 4096, 32, 14_336),
    "Llama 3.1 70B": _llama(80, 8192, 64, 28_672),
    "Llama 3.1 405B": _llama(126, 16_384, 128, 53_248),
}


def parse_count(text: str) -> float:
    """`70b` -> 7e10.

    Raises:
        ConfigError: not a number with m, b or t behind it, or outside of what the table spans.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([mbt])", text.strip().lower())
    if not found:
        raise ConfigError("--params", f"got {text!r}, must be a number and a unit: 500m, 8b, 70b, 1t")
    count = float(found[1]) * UNITS[found[2]]
    if not SMALLEST <= count <= LARGEST:
        raise ConfigError("--params", f"got {text!r}, must be between 500m and 2t; give a recipe or a config.json")
    return count


def shape_of(text: str) -> tuple[ModelConfig, str]:
    """A model of about so many parameters, and the words that say where its shape is from.

    Raises:
        ConfigError: see `parse_count`.
    """
    count = parse_count(text)
    sizes = {name: sum(count_parameters(model).values()) for name, model in PUBLISHED.items()}
    nearest = min(sizes, key=lambda name: abs(math.log(sizes[name] / count)))
    if abs(sizes[nearest] / count - 1) <= NEAR:
        return PUBLISHED[nearest], f"the shape of {nearest}"
    names = list(PUBLISHED)
    upper = next((i for i, name in enumerate(names) if sizes[name] > count), len(names) - 1)
    low, high = names[max(upper, 1) - 1], names[max(upper, 1)]
    share = math.log(count / sizes[low]) / math.log(sizes[high] / sizes[low])
    widths = PUBLISHED[low].hidden_size, PUBLISHED[high].hidden_size
    width = max(1, round(widths[0] * (widths[1] / widths[0]) ** share / 1024)) * 1024
    one = _llama(1, width, width // HEAD, width * 7 // 2)
    counts = count_parameters(one)
    layer = counts["attention"] + counts["mlp"]
    layers = max(1, round((count - counts["embedding"] - counts["lm_head"]) / layer))
    where = "between" if sizes[low] < count < sizes[high] else "on the line through"
    return _llama(layers, width, width // HEAD, width * 7 // 2), f"a shape {where} {low} and {high}"
