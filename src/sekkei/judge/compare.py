"""All figures of one judging in one place, from its annotations and scorecards: what `sekkei judge compare` shows.

Beside the corrected quality (bias.py) stand raw win rates that no model has touched: over all judgements, without the
judges of either answer's own family, and where the two answers are about equally long.

What it does not handle: asking judges (runner.py), drawing (page.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sekkei.core.errors import UserError
from sekkei.judge.agreement import agreement_report
from sekkei.judge.annotations import Row
from sekkei.judge.bias import BiasFit, family_of, fit_biases, without_own_family
from sekkei.judge.bradley_terry import Ranking, rank
from sekkei.judge.intervals import DRAWS, Estimate, bootstrap, from_draws, resamples
from sekkei.judge.jury import votes_of
from sekkei.judge.pairs import Pairs, to_pairs
from sekkei.judge.winrate import MATCHED


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rankings and biases. `biases` is None where they cannot be fitted, and `notes` says why.

    Attributes:
        win: (model, other, win rate) of every two models that met, with intervals.
        agreement: kappas and alpha of the judges' verdicts ("cohen A B", "fleiss", "alpha (nominal)"), empty for one.
        raw: by model and kind ("all", "without_own_family", "equally_long"), mean preference for it; NaN where none.
    """

    ranking: Ranking
    biases: BiasFit | None
    win: list[tuple[str, str, Estimate]]
    agreement: dict[str, Estimate]
    raw: dict[str, dict[str, Estimate]]
    judges: list[str]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            **self.ranking.as_json(),
            "win_rates": [{"model": a, "against": b, **rate.scaled(100).as_json()} for a, b, rate in self.win],
            "agreement": {name: estimate.as_json() for name, estimate in self.agreement.items()},
            "raw_win_rates": {
                name: {kind: rate.scaled(100).as_json() for kind, rate in rates.items()}
                for name, rates in self.raw.items()
            },
            "biases": self.biases.as_json() if self.biases else None,
            "notes": [*self.ranking.notes, *self.notes],
        }


def compare(
    rows: Sequence[Row],
    baseline: str | None = None,
    judge_family: Sequence[str] | None = None,
    candidate_family: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Rankings, win rates and biases of judgements.

    Args:
        judge_family, candidate_family: in the sorted order of names, as `to_pairs` lists them.
    Raises:
        UserError: nothing can be ranked, see `rank` and `to_pairs`.
    """
    pairs = to_pairs(rows, baseline)
    judge_family = list(judge_family or map(family_of, pairs.judges))
    candidate_family = list(candidate_family or map(family_of, pairs.candidates))
    notes = []
    try:
        biases = fit_biases(pairs, judge_family, candidate_family)
    except (UserError, np.linalg.LinAlgError) as error:
        biases = None
        notes.append(f"biases were not fitted: {error}")
    return Comparison(
        ranking=rank(pairs, draws, seed),
        biases=biases,
        win=win_rates_by_pair(pairs, draws, seed),
        agreement=judges_agreement(pairs, draws, seed),
        raw=raw_rates(pairs, judge_family, candidate_family, draws, seed),
        judges=pairs.judges,
        notes=notes,
    )


def judges_agreement(pairs: Pairs, draws: int = DRAWS, seed: int = 0) -> dict[str, Estimate]:
    """Agreement of judges on who is better, beyond chance; {} where fewer than two judges share a pair of answers.

    A verdict on a pair of answers is that of both orders together: a judge whose winner changes with the order says
    "tie". Pairs of answers are what is resampled for the intervals.
    """
    _, votes = votes_of(pairs)  # [N, J]
    labels = [[None if np.isnan(vote) else int(np.sign(round(vote - 0.5, 6))) for vote in row] for row in votes]
    shared = [row for row in labels if sum(label is not None for label in row) > 1]
    return agreement_report(shared, pairs.judges, draws=draws, seed=seed) if shared else {}


def win_rates_by_pair(pairs: Pairs, draws: int = DRAWS, seed: int = 0) -> list[tuple[str, str, Estimate]]:
    """Mean preference of every two candidates that met, questions resampled with all their judgements."""
    found = []
    for a in range(len(pairs.candidates)):
        for b in range(a + 1, len(pairs.candidates)):
            forward = (pairs.first == a) & (pairs.second == b)
            chosen = forward | ((pairs.first == b) & (pairs.second == a))
            if not chosen.any():
                continue
            for_a = np.where(forward, pairs.outcome, 1 - pairs.outcome)[chosen]
            _, place = np.unique(pairs.question[chosen], return_inverse=True)
            size = int(place.max()) + 1
            total, count = np.bincount(place, for_a, size), np.bincount(place, minlength=size)

            def rate(weights: np.ndarray, total: np.ndarray = total, count: np.ndarray = count) -> float:
                return float(weights @ total / (weights @ count))

            found.append((pairs.candidates[a], pairs.candidates[b], bootstrap(rate, size, draws, seed)))
    return found


def raw_rates(
    pairs: Pairs, judge_family: Sequence[str], candidate_family: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """By candidate, its mean preference over all judgements and over the two parts that the header names."""
    longer = np.maximum(pairs.length_first, pairs.length_second)
    parts = {
        "all": pairs,
        "without_own_family": without_own_family(pairs, judge_family, candidate_family),
        "equally_long": pairs.only(np.abs(pairs.length_first - pairs.length_second) <= MATCHED * longer),
    }
    found: dict[str, dict[str, Estimate]] = {name: {} for name in pairs.candidates}
    for kind, part in parts.items():
        for name, estimate in zip(pairs.candidates, _mean_preference(part, draws, seed), strict=True):
            found[name][kind] = estimate
    return found


def _mean_preference(pairs: Pairs, draws: int, seed: int) -> list[Estimate]:
    """[C] questions resampled with all their judgements; NaN for a candidate without judgements."""
    shape = (len(pairs.questions), len(pairs.candidates))
    total, count = np.zeros(shape), np.zeros(shape)
    for side, preferred in ((pairs.first, pairs.outcome), (pairs.second, 1 - pairs.outcome)):
        np.add.at(total, (pairs.question, side), preferred)
        np.add.at(count, (pairs.question, side), 1.0)

    def rates(weights: np.ndarray) -> np.ndarray:
        judged = weights @ count
        return np.divide(weights @ total, judged, out=np.full(shape[1], np.nan), where=judged > 0)

    drawn = np.stack([rates(weights) for weights in resamples(shape[0], draws, seed)])
    return [from_draws(float(value), column) for value, column in zip(rates(np.ones(shape[0])), drawn.T)]
