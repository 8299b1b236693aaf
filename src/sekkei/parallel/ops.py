"""The few reductions that a loss may need across tokens and ranks.

A loss is a sum over tokens or sequences. Sums over tokens need nothing from here; a per-sequence
quantity does: DPO, reward models and GSPO are nonlinear in it, and where a row is split over ranks a
local sum would give a wrong gradient. `sequence_sum` is therefore the only way to one.

This file holds the contract and its single-process form; a layout brings its own.

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Ops(Protocol):
    """What `Loss.terms` may call."""

    def sequence_sum(self, x: Tensor, segments: Tensor, count: int) -> Tensor:
        """Sum [B, T] over each segment -> [B, count]; differentiable, whole even where rows are split."""
        ...

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum over the data axes; not differentiable: for units and metrics."""
        ...


class LocalOps:
    """One process: a segment is whole, and nothing is reduced."""

    def sequence_sum(self, x: Tensor, segments: Tensor, count: int) -> Tensor:
        sums = torch.zeros(x.shape[0], count + 1, dtype=x.dtype, device=x.device)
        return sums.scatter_add(1, segments + 1, x)[:, 1:]  # column 0 takes the padding

    def all_sum(self, x: Tensor) -> Tensor:
        return x
