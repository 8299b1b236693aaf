"""How much better an answer did than others: the first factor of the GRPO family's algebra.

    group_std       (r - mean of its group) / (std + 1e-4)          GRPO (Shao et al. 2024, section 4.1)
    group_mean      r - mean of its group                           Dr.GRPO (Liu et al. 2025): no weight on easy ones
    leave_one_out   r - mean of the *other* answers of its group    RLOO (Ahmadian et al. 2024): unbiased
    batch_std       (r - mean of all) / std of all, over tokens     REINFORCE++ (Hu 2025); the KL of the tokens still
                                                                    to come may be taken off each token's r first

std is the population's (TRL takes the sample's, n - 1). A group whose answers all score the same has advantage 0,
never float noise divided by it. It does not handle rewards per step.

Shapes: `B` rows, `T` tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sekkei.parallel.ops import Ops

Advantage = Literal["group_std", "group_mean", "leave_one_out", "batch_std"]
STD_FLOOR = 1e-4  # as in the reference pilot; keeps a lucky near-constant group from dominating


def group_advantages(rewards: Sequence[float], kind: Advantage = "group_std") -> list[float]:
    """One group's advantages, for any kind but batch_std (there: the rewards as they are).

    An empty group has none, a single answer 0.
    """
    if kind == "batch_std":
        return list(rewards)
    if not rewards or max(rewards) == min(rewards):  # never divide by the float noise of a constant group
        return [0.0] * len(rewards)
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    if kind == "group_mean":
        return [reward - mean for reward in rewards]
    if kind == "leave_one_out":
        scale = len(rewards) / (len(rewards) - 1)  # r - mean of the others = n / (n - 1) · (r - mean)
        return [scale * (reward - mean) for reward in rewards]
    return [(reward - mean) / (spread + STD_FLOOR) for reward in rewards]


def to_go(x: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
    """[B, T]: the sum of x over this scored token and the later ones of its segment; 0 where not scored."""
    scored = x * (mask != 0)
    sums = torch.zeros_like(scored)
    ahead = torch.zeros_like(scored[:, 0])
    for t in reversed(range(scored.shape[1])):
        if t + 1 < scored.shape[1]:
            ahead = ahead * (segments[:, t] == segments[:, t + 1])
        ahead = ahead + scored[:, t]
        sums[:, t] = ahead
    return sums * (mask != 0)


def whitened(values: Sequence[Tensor], masks: Sequence[Tensor], ops: Ops, eps: float = 1e-8) -> list[Tensor]:
    """Zero mean and unit variance over all scored tokens of all batches and data ranks (the population's variance).

    Args:
        values, masks: [B, T] each; weights count as 0 or 1.
    """
    total = torch.zeros(3, dtype=torch.float64, device=values[0].device)
    for value, mask in zip(values, masks, strict=True):
        here = value[mask != 0].double()
        total += torch.stack(
            [here.sum(), (here**2).sum(), torch.tensor(float(here.numel()), device=here.device).double()]
        )
    total = ops.all_sum(total)
    count = total[2].clamp(min=1)
    mean = total[0] / count
    variance = (total[1] / count - mean**2).clamp(min=0)
    scale = (variance + eps).rsqrt()
    return [(((v.double() - mean) * scale) * (m != 0)).to(v) for v, m in zip(values, masks, strict=True)]
