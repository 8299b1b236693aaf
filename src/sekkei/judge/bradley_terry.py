"""One scale for many candidates from pairwise judgements: the Bradley–Terry model.

    P(i beats j) = sigmoid(q_i − q_j),   sum of q = 0           Bradley & Terry 1952; fitted by Newton's method

A tie, or a preference of 0.3, counts as a part of a win for either side (cross-entropy with soft labels, as arenas
do). Intervals resample questions with all their judgements, since answers to one question are not independent.
A candidate that never won or never lost has no finite q: a ridge of 0.01 keeps it finite, and it is named.

What it does not handle: a model of ties of its own (Davidson 1970), strengths that change with the topic, the judge's
biases (bias.py fits them together with q).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sekkei.core.errors import UserError
from sekkei.judge.difficulty import sigmoid
from sekkei.judge.intervals import DRAWS, Estimate, from_draws, resamples
from sekkei.judge.pairs import Pairs

RIDGE = 0.01  # on q, in units of judgements: moves a q of a candidate with 100 judgements by well under 0.1%
ELO = 400 / np.log(10)  # chess points per logit


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One candidate: strength q (logits, mean 0), the same in Elo points around 1000, and its rank (1 = best)."""

    name: str
    strength: Estimate
    elo: Estimate
    rank: int
    rank_low: int  # best and worst rank within the 95% interval of the rank
    rank_high: int
    judgements: int


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All candidates, best first; `win` [C, C]: fitted chance that the row's beats the column's, in that order."""

    candidates: list[Ranked]
    win: np.ndarray
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            "ranking": [
                {
                    "model": found.name,
                    "rank": found.rank,
                    "rank_interval": [found.rank_low, found.rank_high],
                    "strength": found.strength.as_json(),
                    "elo": found.elo.as_json(2),
                    "judgements": found.judgements,
                }
                for found in self.candidates
            ],
            "win_matrix": np.round(self.win, 6).tolist(),
            "notes": self.notes,
        }


def rank(pairs: Pairs, draws: int = DRAWS, seed: int = 0) -> Ranking:
    """Strengths, ranks and their intervals.

    Raises:
        UserError: the candidates fall into groups that were never compared with each other.
    """
    size = len(pairs.candidates)
    place = pairs.first * size + pairs.second
    whole = wins(pairs, place, np.ones(len(pairs)))
    _check_connected(whole, pairs.candidates)
    strength = fit_strengths(whole)
    drawn = np.empty((draws, size))
    for number, unit in enumerate(resamples(len(pairs.questions), draws, seed)):
        drawn[number] = fit_strengths(wins(pairs, place, unit[pairs.question]), strength)
    ranks = 1 + (-drawn).argsort(axis=1).argsort(axis=1)
    low, high = np.quantile(ranks, [0.025, 0.975], axis=0, method="nearest")
    order = (-strength).argsort(kind="stable")
    found = []
    for number, c in enumerate(order, start=1):
        estimate = from_draws(float(strength[c]), drawn[:, c])
        found.append(
            Ranked(
                name=pairs.candidates[c],
                strength=estimate,
                elo=_elo(estimate),
                rank=number,
                rank_low=int(low[c]),
                rank_high=int(high[c]),
                judgements=int(((pairs.first == c) | (pairs.second == c)).sum()),
            )
        )
    sorted_strength = strength[order]
    win = sigmoid(np.subtract.outer(sorted_strength, sorted_strength))
    return Ranking(candidates=found, win=win, notes=_notes(pairs, whole))


def wins(pairs: Pairs, place: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[C, C] weighted wins of the row's candidate over the column's; `place` [N] = first · C + second."""
    size = len(pairs.candidates)
    forward = np.bincount(place, weight * pairs.outcome, minlength=size * size).reshape(size, size)
    backward = np.bincount(place, weight * (1 - pairs.outcome), minlength=size * size).reshape(size, size)
    return forward + backward.T


def fit_strengths(won: np.ndarray, start: np.ndarray | None = None, ridge: float = RIDGE) -> np.ndarray:
    """[C] strengths with mean 0 from `won` [C, C], by Newton's method with the step halved where it overshoots."""
    size = len(won)
    played = won + won.T
    q = np.zeros(size) if start is None else start.copy()

    def loss(q: np.ndarray) -> float:
        gap = np.subtract.outer(q, q)
        return float((won * np.logaddexp(0, -gap)).sum() + 0.5 * ridge * (q @ q))

    value = loss(q)
    for _ in range(100):
        p = sigmoid(np.subtract.outer(q, q))
        slope = (won - played * p).sum(axis=1) - ridge * q
        curve = played * p * (1 - p)
        # the ridge makes it regular; ones in every place hold the mean, which the data say nothing about
        hessian = np.diag(curve.sum(axis=1) + ridge) - curve + np.ones((size, size)) / size
        step, scale = np.linalg.solve(hessian, slope), 1.0
        while loss(q + scale * step) > value + 1e-12 * abs(value) and scale > 1e-6:
            scale /= 2
        q = q + scale * step
        value = loss(q)
        if np.abs(step).max() < 1e-8:
            break
    return q - q.mean()


def _elo(estimate: Estimate) -> Estimate:
    points = estimate.scaled(ELO)
    return Estimate(value=1000 + points.value, se=points.se, low=1000 + points.low, high=1000 + points.high)


def _check_connected(won: np.ndarray, names: list[str]) -> None:
    reached, fresh = {0}, [0]
    while fresh:
        here = fresh.pop()
        for there in np.flatnonzero((won[here] + won[:, here]) > 0):
            if int(there) not in reached:
                reached.add(int(there))
                fresh.append(int(there))
    if len(reached) < len(names):
        apart = [name for number, name in enumerate(names) if number not in reached]
        raise UserError(
            f"no comparison links {names[0]} with {', '.join(apart[:5])}: judge some pairs across the groups first"
        )


def _notes(pairs: Pairs, won: np.ndarray) -> list[str]:
    notes = []
    for name, total in (("never won", won.sum(axis=1)), ("never lost", won.sum(axis=0))):
        who = [pairs.candidates[c] for c in np.flatnonzero(total == 0)]
        if who:
            notes.append(
                f"{', '.join(who)} {name}: the strength is held finite by a ridge, only its rank means something"
            )
    if pairs.unparsed:
        notes.append(f"{pairs.unparsed} rows could not be read and are left out")
    return notes
