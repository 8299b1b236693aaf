"""Attention of one rank's queries over every rank's keys, a source at a time: what the ring and the gather share.

Which parts of a source's keys a rank's queries can see at all, causal, zig-zag (chunks r and 2·cp-1-r):

    own keys              keys of an earlier rank       keys of a later rank
        k₁ k₂                  k₁ k₂                         k₁ k₂
    q₁  ◣  .               q₁  ■  .                      q₁  .  .
    q₂  ■  ◣               q₂  ■  .                      q₂  ■  ■

so each block is one kernel call without a mask, and every rank computes the same number of scores. Results of disjoint
sets of keys are merged by their log-sum-exps (Rabe & Staats 2021; Liu et al. 2023, Ring Attention):

    lse = log(exp lse₁ + exp lse₂)          out = out₁ + exp(lse₂ - lse) (out₂ - out₁)

In packed rows a query sees its own segment only: a block in which no query sees a key is skipped, one in which the
segments change nothing runs without a mask, the others build their mask when it is needed and drop it again.
Not handled: attention biases, windows; balance of packed rows (see `zigzag.py`).

Shapes: `B` batch, `N` query heads, `K` key/value heads, `T` tokens of one rank, `H` head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from sekkei.parallel import kernels
from sekkei.parallel.zigzag import Order, chunks_of


@dataclass(frozen=True)
class Block:
    """A rectangle of scores: some of this rank's queries, some of a source's keys.

    queries, keys: slices of the T local tokens. diagonal: query t sees keys <= t only. masked: segments matter.
    """

    queries: slice
    keys: slice
    diagonal: bool
    masked: bool = False


def causal_halves(mine: tuple[int, int], theirs: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Halves of queries and halves of keys that meet, for two different ranks that hold these chunks.

    >>> causal_halves((0, 7), (1, 6))   # keys of a later rank: the second half of the queries sees all
    [(slice(1, 2, None), slice(0, 2, None))]
    """
    first, second = (sum(key < query for key in theirs) for query in mine)
    if first == second:
        return [(slice(0, 2), slice(0, first))] if first else []
    early = [(slice(0, 1), slice(0, first))] if first else []
    return [*early, (slice(1, 2), slice(0, second))]


class Visibility:
    """Who sees whom between the ranks of one group; made once per forward pass, by all ranks together.

    Args:
        segments: [B, T] int64, this rank's part of the rows, -1 = padding (which sees padding); None: one document
            per row, and nothing is communicated.
        group: the context-parallel process group; None: all processes.
        causal: whether later tokens are hidden.
        order: how rows were cut.
    """

    def __init__(
        self,
        segments: Tensor | None,
        group: dist.ProcessGroup | None,
        causal: bool = True,
        order: Order = "zigzag",
    ) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.causal, self.order = causal, order
        self.segments = None if segments is None else _gather(segments, group)
        self._known: dict[tuple[int, int], list[Block]] = {}

    def blocks(self, source: int, tokens: int) -> list[Block]:
        """The blocks that this rank computes with the keys of rank `source`, each rank holding `tokens` tokens."""
        if (source, tokens) not in self._known:
            seen = (self._by_segment(source, block) for block in self._by_order(source, tokens))
            self._known[source, tokens] = [block for block in seen if block is not None]
        return self._known[source, tokens]

    def allowed(self, source: int, block: Block) -> Tensor | None:
        """[B, 1, queries, keys] bool where a mask is needed, causality included; else None."""
        if not block.masked:
            return None
        same = self._same_segment(source, block)
        return same.tril() if block.diagonal else same

    def _by_order(self, source: int, tokens: int) -> list[Block]:
        everything = slice(0, tokens)
        if not self.causal or source == self.rank:
            return [Block(everything, everything, diagonal=self.causal)]
        mine, theirs = (chunks_of(rank, self.size, self.order) for rank in (self.rank, source))
        assert tokens % 2 == 0, "two chunks of one length: layout.check_length"
        half = tokens // 2
        return [
            Block(*(slice(part.start * half, part.stop * half) for part in pair), diagonal=False)
            for pair in causal_halves(mine, theirs)
        ]

    def _by_segment(self, source: int, block: Block) -> Block | None:
        """The block with `masked` set; None where no query sees a key."""
        if self.segments is None:
            return block
        same = self._same_segment(source, block)
        if bool((same if not block.diagonal else same | torch.ones_like(same).triu(1)).all()):
            return block
        return replace(block, masked=True) if bool(same.any()) else None

    def _same_segment(self, source: int, block: Block) -> Tensor:
        assert self.segments is not None
        queries, keys = self.segments[self.rank][:, block.queries], self.segments[source][:, block.keys]
        return (queries[:, :, None] == keys[:, None, :])[:, None]


class Merged:
    """Running result of a rank's queries: `out` [B, N, T, H] and `lse` [B, N, T], in float32 at least."""

    def __init__(self, q: Tensor) -> None:
        wide = kernels.wide_dtype(q.dtype)
        self.out = torch.zeros(q.shape, dtype=wide, device=q.device)
        self.lse = torch.full(q.shape[:-1], -torch.inf, dtype=wide, device=q.device)

    def add(self, queries: slice, out: Tensor, lse: Tensor) -> None:
        """Merge in what `queries` found among further keys; lse = -inf: nothing."""
        old, old_lse = self.out[:, :, queries], self.lse[:, :, queries]
        lse = lse.to(old_lse.dtype)
        total = torch.logaddexp(old_lse, lse)
        weight = (lse - total).exp().where(lse != -torch.inf, 0.0)
        old += weight[..., None] * (out - old)
        old_lse.copy_(total)


def attend_source(merged: Merged, q: Tensor, kv: Tensor, visibility: Visibility, source: int) -> None:
    """Add to `merged` what q [B, N, T, H] sees of the keys and values kv [2, B, K, T, H] of rank `source`."""
    for block in visibility.blocks(source, q.shape[2]):
        allowed = visibility.allowed(source, block)
        k, v = kv[:, :, :, block.keys]
        causal = block.diagonal and allowed is None
        merged.add(block.queries, *kernels.block_forward(q[:, :, block.queries], k, v, allowed, causal))


@dataclass(frozen=True)
class Finished:
    """What the backward pass knows of the forward: grad, q, out [B, N, T, H], lse [B, N, T] over all keys."""

    grad: Tensor
    q: Tensor
    out: Tensor
    lse: Tensor


def source_gradients(whole: Finished, dq: Tensor, kv: Tensor, visibility: Visibility, source: int) -> Tensor:
    """Add this source's share to dq [B, N, T, H]; returns this rank's share of dkv [2, B, K, T, H]. Both wide."""
    dkv = torch.zeros(kv.shape, dtype=dq.dtype, device=kv.device)
    for block in visibility.blocks(source, dq.shape[2]):
        allowed = visibility.allowed(source, block)
        k, v = kv[:, :, :, block.keys]
        grad, q, out, lse = (x[:, :, block.queries] for x in (whole.grad, whole.q, whole.out, whole.lse))
        causal = block.diagonal and allowed is None
        share, dk, dv = kernels.block_backward(grad, q, k, v, out, lse, allowed, causal)
        dq[:, :, block.queries] += share
        dkv[0, :, :, block.keys] += dk
        dkv[1, :, :, block.keys] += dv
    return dkv


def to_compute_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As torch's own attention does under autocast: all in its dtype (float64 is left alone)."""
    kind, dtype = tensors[0].device.type, tensors[0].dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) for x in tensors)


def _gather(segments: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    """Every rank's segments, in order of rank."""
    if dist.get_world_size(group) == 1:
        return [segments]
    parts = [
        torch.empty_like(segments, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))
    ]
    dist.all_gather(parts, segments.contiguous(), group=group)
    return parts
