"""ZeRO stages 0 to 2: what data ranks keep of gradients and optimizer state (Rajbhandari et al. 2020, section 5).

    bytes per parameter, bf16 weights and gradients, fp32 master and Adam moments, N ranks:
                      weights  gradients  master + moments
    stage 0              2         2            12            every rank has all
    stage 1              2         2          12 / N          gradients stay whole until the optimizer steps
    stage 2              2       2 / N        12 / N          a bucket's gradients are reduced as soon as they are there

A parameter of n elements is cut, flattened, into N slices (stage 0: one); rank r owns slice r as a *master*, float32 or
wider, which the optimizer updates. Where the weights are as wide as that, the master is a view of them and costs
nothing. Gradients are summed in float32, or in the weights' dtype (`reduce`), and kept so until `widen` hands them to
the masters, just before the optimizer: float32 sums of bf16 gradients cost 4 / N instead of the slice's 2 / N.
Parameters travel in buckets, so that collectives are few and large:

    bucket [N, K]      column block i = parameter i, row r = its slice for rank r      reduce-scatter -> row r

Gradients are summed, never averaged: losses are divided by global counts. Stage 3 is `fully_shard`'s (apply.py). It
does not handle parameters that are shared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sekkei.parallel.collectives import Group, all_gathered, reduce_scattered
from sekkei.parallel.cuts import BUCKET_ELEMENTS


@dataclass
class Slice:
    """One parameter and this rank's part of it."""

    name: str
    parameter: nn.Parameter
    master: nn.Parameter
    width: int  # elements of a slice; the last ranks' may be shorter
    narrow: Tensor | None = None  # its gradient where that is not in the master's dtype

    @property
    def gradient(self) -> Tensor | None:
        """Reduced, in whatever dtype it is kept."""
        return self.narrow if self.narrow is not None else self.master.grad


class Zero:
    """Stages 1 and 2, or with stage 0 plain data parallelism, for the parameters of one model.

    Args:
        named: parameters in order, float32 or wider. group: ranks with other tokens.
        weights: dtype that the parameters get while the masters keep theirs; None: they stay. reduce: of sums of
        gradients; None: the masters'.
    Attributes:
        targets: what the optimizer updates, by parameter name. parts: slices per parameter.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        group: Group,
        stage: int,
        weights: torch.dtype | None = None,
        reduce: torch.dtype | None = None,
    ) -> None:
        self.group, self.stage, self.weights, self.reduce = group, stage, weights, reduce
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.parts = self.size if stage else 1
        self.apart = bool(stage) or weights is not None  # masters are not the parameters themselves
        self.slices = [self._slice(name, p) for name, p in named if p.requires_grad]
        self.buckets = list(_buckets(self.slices))
        self.targets: dict[str, nn.Parameter] = {s.name: s.master if self.apart else s.parameter for s in self.slices}
        self._missing: dict[int, int] = {}
        if stage == 2:
            for number, bucket in enumerate(self.buckets):
                self._missing[number] = len(bucket)
                for part in bucket:
                    part.parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))

    def finish_gradients(self) -> None:
        """After the last backward pass: every target has its whole gradient (or its slice of it)."""
        for number, bucket in enumerate(self.buckets):
            if self.stage != 2 or any(s.parameter.grad is not None for s in bucket):  # a hook is not always called
                self._reduce(bucket)
                self._missing[number] = len(bucket)

    def finish_micro_batch(self) -> None:
        """After each backward pass: reduce the buckets of which some parameter took no part."""
        if self.stage == 2:
            for number, bucket in enumerate(self.buckets):
                if 0 < self._missing[number] < len(bucket):
                    self._reduce(bucket)
                    self._missing[number] = len(bucket)

    def widen(self) -> None:
        """Before the optimizer: every master has its gradient in its own dtype."""
        for s in self.slices:
            if s.narrow is not None:
                s.master.grad, s.narrow = s.narrow.to(s.master.dtype), None

    @torch.no_grad()
    def publish(self) -> None:
        """After the optimizer: every rank gets the other ranks' new slices."""
        if not self.stage:
            for s in self.slices if self.apart else ():
                s.parameter.copy_(s.master.view_as(s.parameter))
            return
        for bucket in self.buckets:
            like = bucket[0].parameter
            mine = torch.zeros(sum(s.width for s in bucket), dtype=like.dtype, device=like.device)
            offset = 0
            for s in bucket:
                mine[offset : offset + s.master.numel()].copy_(s.master)
                offset += s.width
            parts = all_gathered(mine, self.group)
            offset = 0
            for s in bucket:
                block = parts.view(self.size, -1)[:, offset : offset + s.width].reshape(-1)
                s.parameter.copy_(block[: s.parameter.numel()].view_as(s.parameter))
                offset += s.width

    def zero_grad(self) -> None:
        for s in self.slices:
            s.parameter.grad = s.master.grad = s.narrow = None

    def _slice(self, name: str, parameter: nn.Parameter) -> Slice:
        width = -(-parameter.numel() // self.parts)
        own = self._own(parameter.detach(), width)
        if self.weights is None:
            return Slice(name, parameter, nn.Parameter(own), width)
        master = nn.Parameter(own.clone())
        parameter.data = parameter.data.to(self.weights)
        return Slice(name, parameter, master, width)

    def _own(self, whole: Tensor, width: int) -> Tensor:
        """This rank's slice, a view."""
        place = self.rank if self.stage else 0
        return whole.view(-1)[place * width : (place + 1) * width]

    def _arrived(self, number: int) -> None:
        self._missing[number] -= 1
        if not self._missing[number]:
            self._reduce(self.buckets[number])
            self._missing[number] = len(self.buckets[number])

    @torch.no_grad()
    def _reduce(self, bucket: list[Slice]) -> None:
        if self.stage == 0:
            flat = torch.cat([_gradient(s.parameter).reshape(-1) for s in bucket])
            if self.apart:
                flat = flat.to(self.reduce or bucket[0].master.dtype)
            dist.all_reduce(flat, group=self.group)
            for s, part in zip(bucket, flat.split([s.parameter.numel() for s in bucket]), strict=True):
                s.parameter.grad = None if self.apart else part.view_as(s.parameter)
                if self.apart:
                    self._keep(s, part)
            return
        out = reduce_scattered(self._side_by_side(bucket).view(-1), self.group)
        for s, part in zip(bucket, out.split([s.width for s in bucket]), strict=True):
            own = part[: s.master.numel()]
            if self.stage == 2:
                s.parameter.grad = None
                self._keep(s, own.clone() if s.gradient is None else s.gradient + own)
                continue
            place = self._own(_gradient(s.parameter), s.width)  # the whole gradient stands there anyway
            self._keep(s, place.copy_(own) if place.dtype == own.dtype else own.clone())

    def _side_by_side(self, bucket: list[Slice]) -> Tensor:
        """Row i is what rank i keeps of each whole gradient: [ranks, sum of widths], in the sums' dtype."""
        rows = bucket[0].master.new_empty(
            (self.size, sum(s.width for s in bucket)), dtype=self.reduce or bucket[0].master.dtype
        )
        for s, columns in zip(bucket, rows.split([s.width for s in bucket], dim=1), strict=True):
            padded = s.parameter.new_zeros(self.size * s.width)
            padded[: s.parameter.numel()] = _gradient(s.parameter).reshape(-1)
            columns.copy_(padded.view(self.size, -1))
        return rows

    def _keep(self, s: Slice, gradient: Tensor) -> None:
        if gradient.dtype == s.master.dtype:
            s.master.grad = gradient.view_as(s.master)
        else:
            s.narrow = gradient.view_as(s.master)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _buckets(slices: list[Slice]) -> Iterable[list[Slice]]:
    """Parameters in the order in which backward passes finish them, of one dtype, up to a bucket's size."""
    bucket: list[Slice] = []
    for s in reversed(slices):
        full = sum(b.parameter.numel() for b in bucket) + s.parameter.numel() > BUCKET_ELEMENTS
        if bucket and (full or bucket[0].parameter.dtype != s.parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(s)
    if bucket:
        yield bucket
