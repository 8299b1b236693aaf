"""GAE over gaps, explained variance and the value clip, by hand."""

from __future__ import annotations

import pytest
import torch

from sekkei.data.batch import Batch
from sekkei.model.output import Output
from sekkei.objectives.gae import explained_variance, gae
from sekkei.objectives.ppo import ValueLoss
from sekkei.parallel.ops import LocalOps


def test_gae_passes_over_tokens_that_are_not_scored() -> None:
    """A tool's output in the middle of an answer: the two scored stretches are neighbours."""
    mask = torch.tensor([[0.0, 1, 1, 0, 1, 1, 1, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, -1]])
    rewards = torch.tensor([[9.0, 1, 2, 9, 4, 8, 16, 9]])
    values = torch.tensor([[7.0, 0.5, 0.25, 7, 1, 2, 3, 7]])
    advantages, returns = gae(rewards, values, mask, segments, 1.0, 0.5)
    last = 4 - 1.0
    middle = 2 + 1 - 0.25 + 0.5 * last
    first = 1 + 0.25 - 0.5 + 0.5 * middle
    other = 8 + 3 - 2 + 0.5 * 13
    assert advantages.tolist() == [[0.0, first, middle, 0.0, last, other, 13.0, 0.0]]
    assert returns.tolist() == [[0.0, first + 0.5, middle + 0.25, 0.0, 4.0, other + 2, 16.0, 0.0]]


def test_explained_variance_by_hand() -> None:
    masks = [torch.tensor([[1.0, 1, 0]]), torch.tensor([[1.0, 1, 0]])]
    returns = [torch.tensor([[1.0, 2, 99]]), torch.tensor([[3.0, 4, -99]])]
    assert explained_variance(returns, returns, masks) == 1.0
    assert explained_variance([torch.full((1, 3), 5.0)] * 2, returns, masks) == 0.0
    backwards = [-part for part in returns]
    assert explained_variance(backwards, returns, masks) == pytest.approx(-3.0)
    assert explained_variance(returns, [torch.ones(1, 3)] * 2, masks) == 0.0


def test_the_value_clip_by_hand() -> None:
    """Old values 0, returns 1, ε .5: beyond .5 nothing is gained; moving away is never clipped."""
    values = torch.tensor([[0.3, 0.8, -0.9, 5.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1, 1, 0]])
    ids = torch.zeros(1, 4, dtype=torch.int64)
    extra = {"returns": torch.ones(1, 4), "old_values": torch.zeros(1, 4)}
    batch = Batch(ids=ids, labels=ids, mask=mask, positions=ids, segments=ids, extra=extra)
    terms, metrics = ValueLoss(0.5).terms(Output(values=values), batch, LocalOps())
    assert float(terms["tokens"].detach()) == pytest.approx(0.5 * (0.49 + 0.25 + 3.61))
    terms["tokens"].backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([-0.7, 0.0, -1.9, 0.0])
    assert float(metrics["value_clip_fraction"].total / metrics["value_clip_fraction"].weight) == pytest.approx(1 / 3)
