"""Generalised advantage estimation (Schulman et al. 2016, eq. 16), and what a value function is worth.

    δ_t = r_t + γ V_{t+1} - V_t            A_t = δ_t + γ λ A_{t+1}            return_t = A_t + V_t

t runs over the scored tokens of one answer; behind its last token both V and A are 0, whether it ended by itself or was
cut at the token limit (the price of a cut is `missing_end_penalty`, ppo.py). V_t is read where token t is predicted:
before it is known. It does not handle rewards that arrive after the answer.

Shapes: `B` rows, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, segments: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both [B, T], 0 where not scored.

    Args:
        rewards, values, mask, segments: [B, T] each; tokens of a segment that are not scored are passed over.
    """
    advantages = torch.zeros_like(values)
    ahead = torch.zeros_like(values[:, 0])
    value_ahead = torch.zeros_like(ahead)
    scored = mask != 0
    for t in reversed(range(values.shape[1])):
        if t + 1 < values.shape[1]:
            same = segments[:, t] == segments[:, t + 1]
            ahead, value_ahead = ahead * same, value_ahead * same
        delta = rewards[:, t] + gamma * value_ahead - values[:, t]
        here = scored[:, t]
        ahead = torch.where(here, delta + gamma * lam * ahead, ahead)
        value_ahead = torch.where(here, values[:, t], value_ahead)
        advantages[:, t] = ahead * here
    return advantages, (advantages + values) * scored


def explained_variance(values: Sequence[Tensor], returns: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """1 - Var(return - V) / Var(return) over scored tokens: 1 = perfect, 0 = no better than a constant, < 0 worse.

    Where returns have no spread it is 0.
    """
    value = torch.cat([v[m != 0].double() for v, m in zip(values, masks, strict=True)])
    target = torch.cat([r[m != 0].double() for r, m in zip(returns, masks, strict=True)])
    spread = target.var(correction=0)
    return float(1 - (target - value).var(correction=0) / spread) if float(spread) > 1e-12 else 0.0
