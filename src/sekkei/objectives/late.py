"""Advantages that are known only after scoring: a KL in the reward, or a baseline over the whole rollout.

    group kinds   (r_i - Σ_t β KL_t), then within its group as in advantages.py
    batch_std     r_i - Σ of β KL over this token and the later ones, whitened over all tokens of all batches and ranks

KL_t is the estimate of policy_loss.py on the log-probs of the trainer before the first update. It does not handle KL in
the loss, which needs none of this.

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sekkei.data.batch import Batch
from sekkei.objectives.advantages import group_advantages, to_go, whitened
from sekkei.objectives.policy_loss import kl_estimate, spread
from sekkei.objectives.rollout import Group
from sekkei.objectives.variants import Point
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Context


def late_advantages(
    parts: list[list[Batch]], groups: Sequence[Sequence[Group]], point: Point, ctx: Context
) -> list[list[Batch]]:
    """Advantages that need log-probs (a KL in the reward) or all of the rollout (batch_std)."""
    done: list[list[Batch]] = []
    for batches, here in zip(parts, groups, strict=True):
        penalties = [_penalty(batch, point) for batch in batches]
        if point.advantage == "batch_std":
            rewards = torch.tensor([reward for group in here for reward in group.rewards])
            late = [
                per_token(batch, rewards) - to_go(penalty, batch.mask, batch.segments).cpu()
                for batch, penalty in zip(batches, penalties, strict=True)
            ]
        else:
            late = _group_late(batches, penalties, here, point)
        done.append([batch.with_extra(advantages=a) for batch, a in zip(batches, late, strict=True)])
    if point.advantage == "batch_std":
        flat = [batch for batches in done for batch in batches]
        white = iter(
            whitened(
                [b.extra["advantages"].to(ctx.device) for b in flat], [b.mask.to(ctx.device) for b in flat], ctx.ops
            )
        )
        done = [[batch.with_extra(advantages=next(white)) for batch in batches] for batches in done]
    return done


def _penalty(batch: Batch, point: Point) -> Tensor:
    """[B, T]: β times the KL estimate of each token; 0 without one in the reward."""
    if not (point.kl > 0 and point.kl_place == "reward"):
        return torch.zeros_like(batch.mask)
    kl = kl_estimate(batch.extra["old"], batch.extra["reference"], point.estimator)
    return point.kl * kl.cpu()


def _group_late(batches: list[Batch], penalties: list[Tensor], groups: Sequence[Group], point: Point) -> list[Tensor]:
    """Advantages within groups, of rewards less the summed penalty of each answer."""
    taken: dict[int, float] = {}
    for batch, penalty in zip(batches, penalties, strict=True):
        width = batch.extra["number"].shape[1]
        sums = LocalOps().sequence_sum(penalty * (batch.mask != 0), batch.segments, width)
        here = batch.extra["length"] > 0
        for number, value in zip(batch.extra["number"][here].tolist(), sums[here].tolist(), strict=True):
            taken[int(number)] = value
    advantages: list[float] = []
    for group in groups:
        less = [r - taken[len(advantages) + i] for i, r in enumerate(group.rewards)]
        advantages += group_advantages(less, point.advantage)
    return [per_token(batch, torch.tensor(advantages)) for batch in batches]


def per_token(batch: Batch, values: Tensor) -> Tensor:
    """[B, T]: the value of each segment's answer on its scored tokens, by the number that the sample carries."""
    numbers = batch.extra["number"].long()
    return spread(values[numbers] * (batch.extra["length"] > 0), batch.segments) * (batch.mask != 0)
