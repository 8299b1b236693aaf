"""Tensor parallelism, applied from outside by the names of modules: each rank keeps some heads and some inner columns.

    x ─ spread ─┬─ q, k, v, gate, up: cut by rows of the weight (heads; inner columns) ─┐
                └─ … own heads, own columns …                                            │
    x + collect ─── o, down: cut by columns; the product is a part of a sum ─────────────┘

The model's code does not change: it reads head counts from shapes, and what crosses ranks happens in hooks around
`attention` and `mlp`. With the sequence cut too, the residual stream between them holds T / tp tokens, and spread and
collect become gather and scatter (collectives.py). Parameters stay plain local tensors.

What each rank computes on its own heads or tokens only has a gradient that is a part of the whole one: `q_norm`,
`k_norm` always, the other norms with the sequence cut, and the side of an adapter that is whole (A before cut outputs
sees their gradient only, B behind cut inputs their sum only). Those are named, to be summed over the group after
backward.

It does not handle tied embeddings, generation with cut heads, or head counts that tp does not divide.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sekkei.model.transformer import Transformer
from sekkei.parallel.collectives import Group, assemble, collect, gather, scatter, spread
from sekkei.parallel.cuts import ADAPTER_SIDES, CUTS, cut_dim
from sekkei.parallel.vocab import VocabEmbedding, VocabLogprobs


def apply_tensor_parallel(model: Transformer, group: Group, sequence_parallel: bool) -> frozenset[str]:
    """Cut a whole model in place.

    Returns:
        names of parameters whose gradients must be summed over the group after the backward pass.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for name, parameter in list(model.named_parameters()):
        dim = cut_dim(name)
        if dim is not None:
            part = parameter.detach().chunk(size, dim)[rank].clone()
            _replace(model, name, nn.Parameter(part, parameter.requires_grad))
    enter, leave = (gather, scatter) if sequence_parallel else (spread, collect)
    for layer in model.layers.values():
        for part in (layer.attention, layer.mlp):
            part.register_forward_pre_hook(lambda _, args: (enter(args[0], group), *args[1:]))
            part.register_forward_hook(lambda _, args, out: leave(out, group))
    if model.embed is not None:
        weight = model.embed.weight
        assert isinstance(weight, nn.Parameter)
        model.embed = VocabEmbedding(weight, rank * weight.shape[0], group, sequence_parallel)  # type: ignore[assignment]
    if model.norm is not None and sequence_parallel:
        model.norm.register_forward_hook(lambda _, args, out: assemble(out, group))
    if model.lm_head is not None:
        model.score_labels = VocabLogprobs(rank * model.lm_head.weight.shape[0], group)
    return frozenset(name for name, _ in model.named_parameters() if _is_partial(name, sequence_parallel))


def whole(name: str, local: Tensor, group: Group) -> Tensor:
    """A parameter (or its gradient) as the whole model has it, on every rank."""
    dim = cut_dim(name)
    if dim is None or dist.get_world_size(group) == 1:
        return local
    parts = [local.new_empty(local.shape) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local.contiguous(), group=group)
    return torch.cat(parts, dim)


def _is_partial(name: str, sequence_parallel: bool) -> bool:
    *_, module, last = name.split(".")
    if last in ADAPTER_SIDES:
        return module in CUTS and cut_dim(name) is None
    return module in ("q_norm", "k_norm") or (sequence_parallel and module.endswith("norm"))


def _replace(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, parameter)
