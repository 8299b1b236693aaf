"""`sequence_sum`: per-segment sums, padding left out, differentiable."""

from __future__ import annotations

import torch

from sekkei.parallel.ops import LocalOps


def test_a_sum_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 2.0, 4.0, 8.0, 16.0]])
    segments = torch.tensor([[0, 0, 1, 1, -1], [-1, 0, 0, 2, 2]])
    sums = LocalOps().sequence_sum(x, segments, 3)
    assert sums.tolist() == [[3.0, 12.0, 0.0], [6.0, 0.0, 24.0]]
    assert LocalOps().all_sum(sums) is sums


def test_every_token_gets_its_own_segments_gradient() -> None:
    x = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    segments = torch.tensor([[0, 0, 1, -1, 1]])
    sums = LocalOps().sequence_sum(x, segments, 2)
    assert sums.dtype == torch.float64
    (sums * torch.tensor([[3.0, 5.0]])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[3.0, 3.0, 5.0, 0.0, 5.0]]
