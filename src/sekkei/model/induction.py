"""Initial weights that hold the seed of an induction circuit: what makes a model copy from its context.

    … A B … A ▸ B      layer 0, one head:     a token looks at the one before it and notes who that was
                       layers 1 …, one head:  it looks for places whose note names *it*, and copies what stands there

Such heads (Olsson et al. 2022, section "induction heads") carry in-context learning, and the use of long contexts with
it, but they form late: both halves must be there before either one pays. From random weights a laptop's budget is
over first (docs/log.md). Here one key/value head per layer starts near its half of the circuit, a "mimetic"
initialisation (Trockman & Kolter 2023, Mimetic Initialization of Self-Attention Layers) that training is free to undo:

    embedding      noise + constant c: without biases, a head that looks at *positions* needs a constant to read
    lm head        the embedding's noise: what is copied is what is said. Two tensors, so nothing is tied
    layer 0        keys u cᵀ, queries turned back by one position, values V, output O: position t gets O(V x) of t - 1
    layer i > 0    queries read V, keys read O, on slowly rotating dims only (fast ones forget who is far away);
                   values and output copy
    q_norm, k_norm 1.5, which sharpens all heads

The other heads, and everything else, start as in init.py. It does not handle models without QK-norm.

Shapes: `D` model width, `H` head width, `K` key/value heads, `G` query heads of each, `V` vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sekkei.core.seed import derive_seed
from sekkei.model.config import ModelConfig
from sekkei.model.layers import rope_frequencies

EMBED_STD = 0.5  # with 1/√D, AdamW's first steps overwrite the tokens' identities before a circuit can use them
GAIN = 1.5  # of q_norm and k_norm
NOTE = 4.0  # size of what a head writes, relative to the embedding; found by trial between 1 and 8
FAST = 0.01  # radians per position: a head that looks one position back uses dims that turn faster than this
SLOW = 0.02  # a head that matches tokens uses dims that turn slower than this: a full turn in over 300 positions
REST = 0.3  # size of the random weights on its other dims


def seeded_weight(name: str, normal: Tensor, config: ModelConfig, seed: int) -> Tensor | None:
    """The initial value of the parameter called `name`, or None where it is the usual one.

    Args:
        normal: the usual one, whole.
    """
    if name == "embed.weight":
        noise = _noise(normal.shape, seed)
        return EMBED_STD * (noise + math.sqrt(config.hidden_size) * _constant(config, seed))
    if name == "lm_head.weight":
        return _noise(normal.shape, seed) / math.sqrt(config.hidden_size)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return torch.full_like(normal, GAIN)
    parts = name.split(".")
    if parts[0] != "layers" or parts[2] != "attention":
        return None
    weight = normal.clone()
    fill = _look_back if parts[1] == "0" else _match
    fill(parts[3], weight, config, seed, parts[1])
    return weight


def _look_back(part: str, weight: Tensor, config: ModelConfig, seed: int, layer: str) -> None:
    """Layer 0: the first key/value head and its queries attend to the position before."""
    head, queries = slice(config.head_size), slice(config.num_heads // config.num_kv_heads * config.head_size)
    groups = config.num_heads // config.num_kv_heads
    constant = _constant(config, seed)
    key, query = _previous_position(config)
    if part == "k_proj":
        weight[head] = torch.outer(key, constant)
    elif part == "q_proj":
        weight[queries] = torch.outer(query.repeat(groups), constant)
    elif part == "v_proj":
        weight[head] = _frame("who", config, seed)
    elif part == "o_proj":
        weight[:, queries] = _frame("note", config, seed).T.repeat(1, groups) * _size(groups)


def _match(part: str, weight: Tensor, config: ModelConfig, seed: int, layer: str) -> None:
    """Later layers: the first key/value head and its queries look for notes that name the query's own token."""
    head, queries = slice(config.head_size), slice(config.num_heads // config.num_kv_heads * config.head_size)
    groups = config.num_heads // config.num_kv_heads
    slow = (rope_frequencies(config.head_size, config.rope_theta, None) < SLOW).nonzero().squeeze(1)
    dims = torch.cat((slow, slow + config.head_size // 2))
    if part in ("k_proj", "q_proj"):
        frame = _frame("note" if part == "k_proj" else "who", config, seed)[: len(dims)]
        one = weight[head] * REST
        one[dims] = frame
        weight[head if part == "k_proj" else queries] = one if part == "k_proj" else one.repeat(groups, 1)
    elif part == "v_proj":
        weight[head] = _frame(f"copy {layer}", config, seed)
    elif part == "o_proj":
        weight[:, queries] = _frame(f"copy {layer}", config, seed).T.repeat(1, groups) * _size(groups)


def _size(groups: int) -> float:
    """Factor of an output matrix, shared by the query heads of one group."""
    return NOTE * 2 / groups * EMBED_STD * math.sqrt(2)  # the embedding's noise and constant are of one size


def _previous_position(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Key and query [H] whose product, once rotated, is largest one position apart: Σ a cos(f (distance - 1))."""
    freqs = rope_frequencies(config.head_size, config.rope_theta, None).float()
    share = torch.where(freqs > FAST, freqs**0.6, 0.0)
    amplitude = (share / share.sum()).sqrt()
    key = torch.cat((amplitude, torch.zeros_like(amplitude)))
    return key, torch.cat((amplitude * freqs.cos(), -amplitude * freqs.sin()))


def _noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.empty(shape).normal_(generator=_generator("tokens", seed))


def _constant(config: ModelConfig, seed: int) -> Tensor:
    """The direction [D], of length 1, that all embeddings share."""
    drawn = torch.empty(config.hidden_size).normal_(generator=_generator("constant", seed))
    return drawn / drawn.norm()


def _frame(which: str, config: ModelConfig, seed: int) -> Tensor:
    """[H, D] orthonormal rows, orthogonal to the constant."""
    drawn = torch.empty(config.hidden_size, config.head_size).normal_(generator=_generator(which, seed))
    constant = _constant(config, seed)
    return torch.linalg.qr(drawn - torch.outer(constant, constant @ drawn))[0].T


def _generator(which: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("induction", which, seed))
