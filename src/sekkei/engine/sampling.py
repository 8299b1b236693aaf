"""From logits to tokens, for many rows at once.

One uniform number per row and step decides, by inverting the cumulative distribution; it is a function of
the sample's own seed and the token's index, so what a sample says does not depend on which others ran
beside it. Log-probabilities are those of softmax(logits / temperature) before top-k and top-p cut it.

Shapes: `R` rows, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sekkei.core.seed import uniform
from sekkei.engine.request import Sampling


@dataclass(frozen=True)
class SamplingRows:
    """Sampling settings and seeds of rows as arrays, each [R]."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    seeds: np.ndarray

    @classmethod
    def of(cls, settings: Sequence[Sampling], seeds: Sequence[int]) -> SamplingRows:
        return cls(
            np.array([s.temperature for s in settings], np.float32),
            np.array([s.top_k for s in settings], np.int64),
            np.array([s.top_p for s in settings], np.float32),
            np.array(seeds, np.uint64),
        )

    def take(self, rows: np.ndarray) -> SamplingRows:
        return SamplingRows(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.seeds[rows])

    def join(self, other: SamplingRows) -> SamplingRows:
        names = ("temperature", "top_k", "top_p", "seeds")
        return SamplingRows(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))


def sample(logits: Tensor, rows: SamplingRows, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: [R, V]. index: [R], how many tokens each sample has drawn before.
    Returns:
        tokens [R] int64 and their log-probabilities [R] float32.
    """
    temperature = torch.from_numpy(rows.temperature).to(logits.device)
    greedy = temperature == 0
    logp = torch.log_softmax(logits.float() / temperature.where(~greedy, 1.0)[:, None], dim=-1)
    tokens = logp.argmax(-1)
    if not bool(greedy.all()):
        kept = logp if _uncut(rows) else _cut(logp, rows)
        draws = torch.from_numpy(uniform(rows.seeds, index)).to(logits.device)
        tokens = torch.where(greedy, tokens, _invert(kept, draws))
    return tokens, logp.gather(-1, tokens[:, None]).squeeze(-1)


def _uncut(rows: SamplingRows) -> bool:
    return not rows.top_k.any() and bool((rows.top_p >= 1).all())


def _cut(logp: Tensor, rows: SamplingRows) -> Tensor:
    """-inf outside of the top k and of the smallest set whose probability reaches top p (never empty)."""
    ordered, order = logp.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logp.shape[-1], device=logp.device)
    top_k = torch.from_numpy(np.where(rows.top_k == 0, logp.shape[-1], rows.top_k)).to(logp.device)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of better tokens
    top_p = torch.from_numpy(rows.top_p).to(logp.device)
    drop = (rank >= top_k[:, None]) | ((before >= top_p[:, None]) & (top_p < 1)[:, None])
    drop[:, 0] = False
    return torch.empty_like(logp).scatter_(-1, order, ordered.masked_fill(drop, -torch.inf))


def _invert(logp: Tensor, draws: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes `draws`; float64, so that no tail is lost."""
    cumulative = logp.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # strictly below the total, so that the token found has a positive probability
    target = torch.minimum(draws[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)
