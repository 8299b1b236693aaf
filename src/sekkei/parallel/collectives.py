"""The differentiable collectives of tensor and sequence parallelism: each is the other's backward pass.

    name         forward                         backward                        where
    spread       identity                        all-reduce                      into column-cut weights
    collect      all-reduce                      identity                        out of row-cut weights
    gather       all-gather tokens               reduce-scatter tokens           spread, sequence cut
    scatter      reduce-scatter tokens           all-gather tokens               collect, sequence cut
    assemble     all-gather tokens               take own tokens                 before what every rank computes alike
    total        all-reduce                      all-reduce                      sums over ranks that differ

(f and g of Megatron-LM, Shoeybi et al. 2019, section 3; with the sequence cut: Korthikanti et al. 2022, section 4.2.2.)
They work on local tensors, so nothing but the shapes tells what is cut. It does not handle second derivatives.

Shapes: `B` batch, `T` tokens, `D` width; tokens are dim 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup

# torch 2.13 gave these two new names and warns about the old ones
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def reduce_scattered(x: Tensor, group: Group) -> Tensor:
    """[n · K] on every rank -> [K]: this rank's part of the sum."""
    out = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
    _reduce_scatter(out, x.contiguous(), group=group)
    return out


def all_gathered(x: Tensor, group: Group) -> Tensor:
    """[K] on every rank -> [n · K], in order of rank."""
    out = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    _all_gather(out, x.contiguous(), group=group)
    return out


def all_reduced(x: Tensor, group: Group) -> Tensor:
    """A summed copy."""
    x = x.contiguous().clone()
    dist.all_reduce(x, group=group)
    return x


def tokens_gathered(x: Tensor, group: Group) -> Tensor:
    """[B, T / n, D] -> [B, T, D], parts in order of rank."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim=1)


def tokens_scattered(x: Tensor, group: Group) -> Tensor:
    """[B, T, D] -> [B, T / n, D]: this rank's tokens of the sum."""
    return reduce_scattered(torch.cat(x.chunk(dist.get_world_size(group), dim=1)), group)


def own_tokens(x: Tensor, group: Group) -> Tensor:
    """[B, T, D] -> [B, T / n, D]: this rank's tokens."""
    return x.chunk(dist.get_world_size(group), dim=1)[dist.get_rank(group)].contiguous()


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduced(grad, ctx.group), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return all_reduced(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tokens_gathered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return tokens_scattered(grad, ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tokens_scattered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return tokens_gathered(grad, ctx.group), None


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tokens_gathered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return own_tokens(grad, ctx.group), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return all_reduced(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduced(grad, ctx.group), None


def spread(x: Tensor, group: Group) -> Tensor:
    return _Spread.apply(x, group)


def collect(x: Tensor, group: Group) -> Tensor:
    return _Collect.apply(x, group)


def gather(x: Tensor, group: Group) -> Tensor:
    return _Gather.apply(x, group)


def scatter(x: Tensor, group: Group) -> Tensor:
    return _Scatter.apply(x, group)


def assemble(x: Tensor, group: Group) -> Tensor:
    return _Assemble.apply(x, group)


def total(x: Tensor, group: Group) -> Tensor:
    return _Total.apply(x, group)
