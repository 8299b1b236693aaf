"""All-gathered attention: every rank fetches all keys and values at once, then computes as the ring does.

    forward    kv of all ranks = all-gather(own kv)       backward   gather again; own dkv = reduce-scatter(dkv of all)

The alternative to `ring.py` that Llama 3 trained with (Grattafiori et al. 2024, section 3.3.2): one collective in place
of cp - 1 hops, cheap where grouped heads make keys and values small against queries, at the price of holding them for
the whole row, which does not shrink as ranks are added. The gathered copy is dropped after the forward and fetched
again in the backward. Results are the ring's, block by block. Not handled: what `ring.py` does not.

Shapes: `B` batch, `N` query heads, `K` key/value heads, `T` tokens of one rank, `H` head width, `R` ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sekkei.parallel import kernels
from sekkei.parallel.blockwise import (
    Finished,
    Merged,
    Visibility,
    attend_source,
    source_gradients,
    to_compute_dtype,
)
from sekkei.parallel.zigzag import Order


class AllGatherAttend:
    """As `ring.RingAttend`, with keys and values gathered instead of passed round.

    Args:
        segments: [B, T] int64, this rank's tokens of `zigzag.shard_batch`, -1 = padding; None: one document per row.
        group: the context-parallel process group; None: all processes.
        causal: whether later tokens are hidden.
        order: how rows were cut.
    """

    def __init__(
        self,
        segments: Tensor | None,
        group: dist.ProcessGroup | None = None,
        causal: bool = True,
        order: Order = "zigzag",
    ) -> None:
        self.segments = segments
        self.visibility = Visibility(segments, group, causal, order)
        self.group = group

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q [B, N, T, H], k and v [B, K, T, H], T even -> [B, N, T, H]."""
        q, k, v = to_compute_dtype(q, k, v)
        return _GatheredAttention.apply(q, k, v, self.visibility, self.group)


class _GatheredAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, group: dist.ProcessGroup | None
    ) -> Tensor:
        own = torch.stack((k, v))
        merged = Merged(q)
        with torch.autocast(q.device.type, enabled=False):
            for source, kv in enumerate(_all_gather(own, visibility.size, group)):
                attend_source(merged, q, kv, visibility, source)
        out = merged.out.to(q.dtype)
        ctx.save_for_backward(q, own, out, merged.lse)
        ctx.visibility, ctx.group = visibility, group
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, own, out, lse = ctx.saved_tensors
        visibility: Visibility = ctx.visibility
        whole = Finished(grad, q, out, lse)
        dq = torch.zeros(q.shape, dtype=kernels.wide_dtype(q.dtype), device=q.device)
        sources = enumerate(_all_gather(own, visibility.size, ctx.group))
        shares = [source_gradients(whole, dq, kv, visibility, source) for source, kv in sources]
        dk, dv = _reduce_scatter(shares, visibility.size, ctx.group).to(q.dtype)
        return dq.to(q.dtype), dk, dv, None, None


def _all_gather(own: Tensor, size: int, group: dist.ProcessGroup | None) -> list[Tensor]:
    """R tensors of `own`'s shape, in order of rank."""
    if size == 1:
        return [own]
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own, group=group)
    return parts


def _reduce_scatter(shares: list[Tensor], size: int, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over ranks of each rank's share for this one."""
    if size == 1:
        return shares[0]
    total = torch.empty_like(shares[0])
    dist.reduce_scatter(total, shares, group=group)
    return total
