"""One micro-batch, and how sequences are laid into its rows.

A row may hold several segments (documents, conversations, samples), each with positions from 0:

    ids        a0 a1 a2 b0 b1  0        labels  a1 a2 a3 b1 b2 -100
    segments    0  0  0  1  1 -1        positions 0 1 2 0 1 0

Rows are row-major and of one fixed length per step; lengths come from a short bucket list, so that
pipelines and compiled graphs see few shapes. Labels are already shifted.

Shapes: `B` rows, `T` tokens per row, `S` segments per row (the most that any row holds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
EMPTY = {"ids": 0, "labels": IGNORED, "mask": 0, "positions": 0, "segments": -1}
"""What stands where there is no token."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one micro-batch.

    ids, labels: [B, T] int64; label -100 = not scored. mask: [B, T] float32, weight of each scored token.
    positions, segments: [B, T] int64; positions restart per segment, segment -1 = padding.
    extra: per token [B, T] or per segment [B, S] float32 or int64: advantages, old_logprobs, …
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    positions: Tensor
    segments: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        names = ("ids", "labels", "mask", "positions", "segments")
        moved = {name: getattr(self, name).to(device) for name in names}
        return Batch(**moved, extra={name: x.to(device) for name, x in self.extra.items()})

    def with_extra(self, **extra: Tensor) -> Batch:
        return replace(self, extra={**self.extra, **extra})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sequence before it is laid into a row.

    ids: n + 1 tokens: the first n become inputs, the last n labels.
    weights: n + 1 weights of the tokens as labels (the first never is one); None: 1 each.
    per_token: name -> n + 1 values, aligned with `ids`, that travel with the token as a label.
    per_segment: name -> one value.
    """

    ids: Sequence[int]
    weights: Sequence[float] | None = None
    per_token: Mapping[str, Sequence[float]] = field(default_factory=dict)
    per_segment: Mapping[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Inputs that it occupies in a row."""
        return len(self.ids) - 1


def lay_out(rows: Sequence[Sequence[Sample]], tokens: int, segments: int | None = None) -> Batch:
    """Lay samples into rows of `tokens` inputs.

    Args:
        rows: the samples of each row; their lengths sum to at most `tokens`.
        segments: `S`; None: the most that a row holds.
    Raises:
        ValueError: a row does not fit.
    """
    shape = (len(rows), tokens)
    width = segments if segments is not None else max((len(row) for row in rows), default=1)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels, segment = np.full(shape, IGNORED, np.int64), np.full(shape, -1, np.int64)
    mask = np.zeros(shape, np.float32)
    extra: dict[str, np.ndarray] = {}
    for b, row in enumerate(rows):
        start = 0
        for s, sample in enumerate(row):
            n = sample.length
            here = (b, slice(start, start + n))
            if start + n > tokens or s >= width:
                raise ValueError(f"row {b} needs more than {tokens} tokens or {width} segments")
            ids[here], positions[here], segment[here] = sample.ids[:-1], np.arange(n), s
            weights = np.ones(n, np.float32) if sample.weights is None else np.asarray(sample.weights[1:], np.float32)
            labels[here] = np.where(weights != 0, np.asarray(sample.ids[1:]), IGNORED)
            mask[here] = weights
            for name, values in sample.per_token.items():
                extra.setdefault(name, np.zeros(shape, np.float32))[here] = values[1:]
            for name, value in sample.per_segment.items():
                extra.setdefault(name, np.zeros((len(rows), width), np.float32))[b, s] = value
            start += n
    tensors = (torch.from_numpy(x) for x in (ids, labels, mask, positions, segment))
    names = ("ids", "labels", "mask", "positions", "segments")
    return Batch(**dict(zip(names, tensors, strict=True)), extra={k: torch.from_numpy(v) for k, v in extra.items()})
