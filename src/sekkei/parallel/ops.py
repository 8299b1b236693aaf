"""The few reductions that a loss may need across tokens and ranks.

A loss is a sum over tokens or sequences. Sums over tokens need nothing from here; a per-sequence
quantity does: DPO, reward models and GSPO are nonlinear in it, and where a row is split over ranks a
local sum would give a wrong gradient. `sequence_sum` is therefore the only way to one.

This file holds the contract, its single-process form, and that of a layout. There, what is one per *sequence* is
computed alike on all context-parallel ranks: whoever adds such terms over ranks divides them by cp first.

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sekkei.parallel.mesh import Mesh


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


class MeshOps:
    """A row's tokens lie on the ranks of `mesh.cp`; other rows on those of `mesh.dp`."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def sequence_sum(self, x: Tensor, segments: Tensor, count: int) -> Tensor:
        from sekkei.parallel.collectives import total

        return total(LocalOps().sequence_sum(x, segments, count), self.mesh.cp)

    def all_sum(self, x: Tensor) -> Tensor:
        from sekkei.parallel.collectives import all_reduced

        return all_reduced(x, self.mesh.data)
