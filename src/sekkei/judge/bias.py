"""What a judge likes besides quality: the first place, long answers, its own family. Measured together, and removed.

    logit P(first is preferred by judge j) = s_j (q_a − q_b) + pi_j + lambda_j · lean + beta_j (own_a − own_b)

q is the quality of candidates a (first) and b (second), shared by all judges; pi_j a judge's pull to the first place,
lambda_j its length slope (lean = tanh of the scaled length difference, as in Dubois et al. 2024), beta_j what it adds
for candidates of its own family, and s_j > 0 how sharply it judges (geometric mean 1: noisy judges have small s, and
noise must not pass for agreement). All at once by maximum likelihood, because each alone is confounded with the
others: own models may be better, better answers longer. q is then the corrected score. The beta and the log s of all
judges are then partially pooled (pooling.py), as they are the terms that a single judge's figures leave most in doubt.

beta_j is what j gives its own beyond what judges of other families give them; without such judges it cannot be told
from quality, and the fit is refused. Intervals are of the sandwich kind, clustered by question (Liang & Zeger 1986),
with Student's t for the number of questions: both orders of a pair and all judges of a question hang together.

What it does not handle: a position bias or slope that differs by candidate, topics, fewer than about 30 questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sekkei.core.errors import UserError
from sekkei.judge.difficulty import sigmoid
from sekkei.judge.intervals import Estimate
from sekkei.judge.pairs import Pairs
from sekkei.judge.pooling import pooled

RIDGE = 1e-3  # on every coefficient, so that a judge who always prefers the first place has a finite pull
MAX_STEPS = 100
FEW_QUESTIONS = 30


@dataclass(frozen=True, kw_only=True)
class JudgeBias:
    """One judge's terms in logits, and raw shares beside them. own_bonus is None for a judge without own candidates.

    own_bonus_alone: before pooling, from what this judge's own figures say against everybody's.
    """

    name: str
    family: str
    position: Estimate
    length_slope: Estimate
    own_bonus: Estimate | None
    own_bonus_alone: Estimate | None
    scale: Estimate
    first_share: float  # of all judgements, preference for the first answer
    flip_rate: float  # of pairs judged in both orders, the share whose winner changed with the order; NaN if none
    both_orders: int  # how many such pairs


@dataclass(frozen=True, kw_only=True)
class BiasFit:
    """All judges' terms, and the candidates' quality with these terms removed.

    Attributes:
        quality: corrected q of every candidate, logits, mean 0. raw: mean preference for it, nothing removed.
        matrix: [J, C] mean preference of judge for candidate, NaN where never judged.
    """

    judges: list[JudgeBias]
    candidates: list[str]
    quality: list[Estimate]
    raw: np.ndarray
    matrix: np.ndarray
    candidate_family: list[str]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            "judges": {
                judge.name: {
                    "family": judge.family,
                    "position": judge.position.as_json(),
                    "length_slope": judge.length_slope.as_json(),
                    "own_bonus": judge.own_bonus.as_json() if judge.own_bonus else None,
                    "own_bonus_alone": judge.own_bonus_alone.as_json() if judge.own_bonus_alone else None,
                    "scale": judge.scale.as_json(),
                    "first_share": round(judge.first_share, 6),
                    "flip_rate": round(judge.flip_rate, 6) if judge.both_orders else None,
                    "pairs_in_both_orders": judge.both_orders,
                }
                for judge in self.judges
            },
            "candidates": {
                name: {"family": family, "quality": quality.as_json(), "raw_win_rate": round(float(raw), 6)}
                for name, family, quality, raw in zip(self.candidates, self.candidate_family, self.quality, self.raw)
            },
            "matrix": [[None if np.isnan(v) else round(float(v), 6) for v in row] for row in self.matrix],
            "notes": self.notes,
        }


def family_of(name: str, families: Mapping[str, str] | None = None) -> str:
    """A model's family: the longest prefix of `families` that fits its name, else the name's first part.

    The first part ends at the first "-", "_", "/" (an organisation before it counts), ":" or digit: gpt-4o and
    gpt4_turbo are both "gpt", meta/llama3-8b is "meta".
    """
    fits = [prefix for prefix in families or {} if name.startswith(prefix)]
    if fits:
        return (families or {})[max(fits, key=len)]
    end = next((place for place, char in enumerate(name) if char in "-_/: ." or char.isdigit()), len(name))
    return name[:end].lower() or name.lower()


def fit_biases(
    pairs: Pairs, judge_family: Sequence[str] | None = None, candidate_family: Sequence[str] | None = None
) -> BiasFit:
    """Fit all terms at once.

    Args:
        judge_family, candidate_family: names of families; by `family_of` if None.
    Raises:
        UserError: fewer than two candidates, or a judge's own family is judged by judges of that family only.
    """
    judge_family = list(judge_family or map(family_of, pairs.judges))
    candidate_family = list(candidate_family or map(family_of, pairs.candidates))
    own = np.array([[float(f == g) for g in candidate_family] for f in judge_family])
    _check(pairs, own, judge_family)
    model = Likelihood(pairs, own)
    alone, covariance_alone, degrees = model.fit()
    unit = np.eye(len(alone))
    bonuses = unit[[model.places(j)["own"] for j in model.with_own]]
    values, covariance, _ = pooled(alone, covariance_alone, [model.log_scale_rows, bonuses])
    t = student_quantile(degrees)

    def estimate(
        value: float, gradient: np.ndarray, exponent: bool = False, spread: np.ndarray = covariance
    ) -> Estimate:
        se = float(np.sqrt(gradient @ spread @ gradient))
        low, high = value - t * se, value + t * se
        if exponent:
            return Estimate(value=np.exp(value), se=np.exp(value) * se, low=np.exp(low), high=np.exp(high))
        return Estimate(value=value, se=se, low=low, high=high)

    flips, both = flip_rates(pairs)
    judges = []
    for j, name in enumerate(pairs.judges):
        at, chosen = model.places(j), pairs.judge == j
        own_at = at.get("own")
        judges.append(
            JudgeBias(
                name=name,
                family=judge_family[j],
                position=estimate(values[at["position"]], unit[at["position"]]),
                length_slope=estimate(values[at["length"]], unit[at["length"]]),
                own_bonus=None if own_at is None else estimate(values[own_at], unit[own_at]),
                own_bonus_alone=(
                    None if own_at is None else estimate(alone[own_at], unit[own_at], spread=covariance_alone)
                ),
                scale=estimate(float(model.log_scale_rows[j] @ values), model.log_scale_rows[j], exponent=True),
                first_share=float(pairs.outcome[chosen].mean()),
                flip_rate=float(flips[j]),
                both_orders=int(both[j]),
            )
        )
    quality = [estimate(float(row @ values), row) for row in model.quality_rows]
    notes = [f"{pairs.unparsed} rows could not be read and are left out"] if pairs.unparsed else []
    if degrees + 1 < FEW_QUESTIONS:
        notes.append(f"{degrees + 1} questions: intervals are too narrow below about {FEW_QUESTIONS}")
    return BiasFit(
        judges=judges,
        candidates=pairs.candidates,
        quality=quality,
        raw=raw_scores(pairs),
        matrix=score_matrix(pairs),
        candidate_family=candidate_family,
        notes=notes,
    )


def raw_scores(pairs: Pairs) -> np.ndarray:
    """[C] mean preference for every candidate over all judgements that it stands in."""
    size = len(pairs.candidates)
    total = np.bincount(pairs.first, pairs.outcome, size) + np.bincount(pairs.second, 1 - pairs.outcome, size)
    count = np.bincount(pairs.first, minlength=size) + np.bincount(pairs.second, minlength=size)
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)


def score_matrix(pairs: Pairs) -> np.ndarray:
    """[J, C] mean preference of every judge for every candidate, NaN where it never judged it."""
    return np.stack([raw_scores(pairs.only(pairs.judge == j)) for j in range(len(pairs.judges))])


def flip_rates(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """([J] share of pairs whose winner changes with the order, [J] number of pairs judged in both orders).

    A tie in one order and a winner in the other counts as half a flip.
    """
    size = len(pairs.candidates)
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    key = ((pairs.judge * len(pairs.questions) + pairs.question) * size + low) * size + high
    forward = pairs.first == low
    verdict = np.sign(np.where(forward, pairs.outcome - 0.5, 0.5 - pairs.outcome))  # of the lower candidate
    _, place = np.unique(key, return_inverse=True)
    groups = place.max() + 1 if len(place) else 0
    sums, counts = np.zeros((2, groups)), np.zeros((2, groups))
    for side in (0, 1):
        chosen = forward == bool(side)
        sums[side] = np.bincount(place[chosen], verdict[chosen], groups)
        counts[side] = np.bincount(place[chosen], minlength=groups)
    both = (counts > 0).all(axis=0)
    mean = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    flipped = np.abs(mean[0] - mean[1]) / 2
    judge_of = np.zeros(groups, dtype=np.int64)
    judge_of[place] = pairs.judge
    judges = len(pairs.judges)
    number = np.bincount(judge_of[both], minlength=judges)
    total = np.bincount(judge_of[both], flipped[both], judges)
    return np.divide(total, number, out=np.full(judges, np.nan), where=number > 0), number


def without_own_family(pairs: Pairs, judge_family: Sequence[str], candidate_family: Sequence[str]) -> Pairs:
    """The judgements in which the judge's own family takes no part: scores "with and without it"."""
    own = np.array([[f == g for g in candidate_family] for f in judge_family])
    return pairs.only(~(own[pairs.judge, pairs.first] | own[pairs.judge, pairs.second]))


def _check(pairs: Pairs, own: np.ndarray, judge_family: list[str]) -> None:
    if len(pairs.candidates) < 2:
        raise UserError("biases need at least two candidates")
    outsiders = np.zeros(len(pairs.candidates), dtype=bool)
    for side in (pairs.first, pairs.second):
        outside = own[pairs.judge, side] == 0
        outsiders[side[outside]] = True
    for j, family in enumerate(judge_family):
        if own[j].any() and not own[j].all() and not outsiders[own[j] > 0].any():
            raise UserError(
                f"{pairs.judges[j]}: only judges of its own family ({family}) judged that family's candidates, so its "
                "bonus cannot be told from their quality; add a judge of another family, or name other families"
            )


class Likelihood:
    """The model of the header. Parameters: q of all candidates but the first, log s of all judges but the first, then
    of every judge position, of every judge length, and own of those that have own candidates. The first candidate's q
    and the first judge's log s are minus the sum of the others', so that the means are 0.
    """

    def __init__(self, pairs: Pairs, own: np.ndarray) -> None:
        self.pairs = pairs
        candidates, judges = len(pairs.candidates), len(pairs.judges)
        self.with_own = [j for j in range(judges) if own[j].any() and not own[j].all()]
        size = (candidates - 1) + (judges - 1) + 2 * judges + len(self.with_own)
        self.start = candidates + judges - 2  # of the judges' own terms
        self.quality_rows = _centred(candidates, size, 0)  # [C, P]: q = quality_rows @ parameters
        self.log_scale_rows = _centred(judges, size, candidates - 1)
        self.fixed = np.zeros((len(pairs), size))  # derivatives of the terms that are linear
        every = np.arange(len(pairs))
        self.fixed[every, self.start + pairs.judge] = 1.0
        self.fixed[every, self.start + judges + pairs.judge] = pairs.lean()
        for number, j in enumerate(self.with_own):
            gap = own[j, pairs.first] - own[j, pairs.second]
            self.fixed[:, self.start + 2 * judges + number] = np.where(pairs.judge == j, gap, 0.0)

    def places(self, judge: int) -> dict[str, int]:
        judges = len(self.pairs.judges)
        found = {"position": self.start + judge, "length": self.start + judges + judge}
        if judge in self.with_own:
            found["own"] = self.start + 2 * judges + self.with_own.index(judge)
        return found

    def linearised(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logits [N], their derivatives [N, P])."""
        quality, scale = self.quality_rows @ values, np.exp(self.log_scale_rows @ values)
        pairs = self.pairs
        gap, sharp = quality[pairs.first] - quality[pairs.second], scale[pairs.judge]
        moving = sharp[:, None] * (self.quality_rows[pairs.first] - self.quality_rows[pairs.second])
        moving += (sharp * gap)[:, None] * self.log_scale_rows[pairs.judge]
        return sharp * gap + self.fixed @ values, self.fixed + moving

    def objective(self, values: np.ndarray) -> float:
        logits, _ = self.linearised(values)
        return float((np.logaddexp(0, logits) - self.pairs.outcome * logits).sum() + 0.5 * RIDGE * (values @ values))

    def fit(self) -> tuple[np.ndarray, np.ndarray, int]:
        """(estimates [P], clustered covariance [P, P], degrees of freedom), by Fisher scoring."""
        values = np.zeros(self.fixed.shape[1])
        value = self.objective(values)
        for _ in range(MAX_STEPS):
            logits, slopes = self.linearised(values)
            p = sigmoid(logits)
            information = (slopes * (p * (1 - p))[:, None]).T @ slopes + RIDGE * np.eye(len(values))
            step, size = np.linalg.solve(information, slopes.T @ (self.pairs.outcome - p) - RIDGE * values), 1.0
            while (tried := self.objective(values + size * step)) > value and size > 1e-6:
                size /= 2
            values, value = values + size * step, tried
            if np.abs(size * step).max() < 1e-7:
                break
        return values, *self.covariance(values, np.ones(len(values), dtype=bool))

    def covariance(self, values: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, int]:
        """(clustered covariance [P, P] at `values`, degrees of freedom); 0 where a parameter is not `free` [P]."""
        logits, slopes = self.linearised(values)
        p, slopes = sigmoid(logits), slopes[:, free]
        bread = np.linalg.inv((slopes * (p * (1 - p))[:, None]).T @ slopes + RIDGE * np.eye(int(free.sum())))
        part, degrees = clustered(bread, slopes * (self.pairs.outcome - p)[:, None], self.pairs.question)
        whole = np.zeros((len(values), len(values)))
        whole[np.ix_(free, free)] = part
        return whole, degrees


def clustered(bread: np.ndarray, scores: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, int]:
    """(sandwich covariance [P, P], clusters − 1) of scores [N, P] that hang together in clusters [N]."""
    _, place = np.unique(cluster, return_inverse=True)
    clusters = int(place.max()) + 1
    sums = np.stack([np.bincount(place, column, clusters) for column in scores.T], axis=1)
    correction = clusters / max(clusters - 1, 1)
    return correction * bread @ (sums.T @ sums) @ bread, clusters - 1


def _centred(count: int, size: int, start: int) -> np.ndarray:
    """[count, size]: `count` values of mean 0 written by `count` − 1 parameters that begin at `start`."""
    rows = np.zeros((count, size))
    rows[0, start : start + count - 1] = -1.0
    rows[np.arange(1, count), start + np.arange(count - 1)] = 1.0
    return rows


def student_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t: Cornish–Fisher terms around the normal one (error < 0.001 from 10 on)."""
    z, v = 1.959963984540054, max(degrees, 1)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
