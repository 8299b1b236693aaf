"""Judges and contests whose truth is known, to check every figure of this folder against it.

`contest`: M models against a baseline, as length_control.py sees them. A judge likes longer answers by phi_m and finds
some instructions easier; the true length-controlled win rate is known.

`panel`: J judges compare C candidates in both orders, as bias.py sees them:

    logit P(first preferred | taste) = (s_j (q_a − q_b) + pi_j + lambda_j · lean + beta_j (own_a − own_b)) / f + taste

with a position bias pi, a length slope lambda, a bonus beta for the judge's own family and a noise level through the
scale s. `taste` is drawn once per judge, question and pair of answers, so the two orders are correlated. It has the
bridge distribution (Wang & Louis 2003, Biometrika 90): averaged over it, P is again logistic with exactly the
coefficients above without 1/f, so "what was planted" is what a marginal fit must find.

What it does not handle: tastes of a candidate over topics, biases that depend on the answer's content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sekkei.judge.bias import Likelihood, student_quantile
from sekkei.judge.difficulty import lean, sigmoid
from sekkei.judge.pairs import Pairs

BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Judgements of M models against a baseline on X items, and the truth behind them.

    Attributes:
        win: [M, X] outcomes, 1 = the model is preferred. length, baseline_length: [M, X] characters.
        theta, phi, psi: [M] and gamma: [X], what was planted.
        true_rate: [M] win rate in [0, 1] of equally long answers.
    """

    models: list[str]
    win: np.ndarray
    length: np.ndarray
    baseline_length: np.ndarray
    theta: np.ndarray
    phi: np.ndarray
    psi: np.ndarray
    gamma: np.ndarray
    true_rate: np.ndarray

    def rows(self) -> list[dict[str, Any]]:
        """The judgements as rows of an annotation file, texts of the right lengths."""
        return [
            {
                "instruction": f"instruction {x}",
                "output_1": "b" * int(self.baseline_length[m, x]),
                "output_2": "m" * int(self.length[m, x]),
                "generator_1": BASELINE,
                "generator_2": model,
                "preference": 1 + float(self.win[m, x]),
            }
            for m, model in enumerate(self.models)
            for x in range(len(self.gamma))
        ]


def contest(seed: int, models: int = 12, items: int = 300, slope: float = 1.6) -> Contest:
    """Draw a contest: models differ in quality and, independently of it, in how long they write."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(-0.5, 0.9, size=models)
    phi, psi = slope + rng.normal(0, 0.15, size=models), rng.normal(1, 0.1, size=models)
    gamma = rng.normal(0, 1.2, size=items)
    base = rng.normal(6.5, 0.6, size=items)
    own = base + rng.normal(0, 0.5, size=(models, 1)) + rng.normal(0, 0.4, size=(models, items))
    length, baseline_length = np.round(np.exp(own)), np.tile(np.round(np.exp(base)), (models, 1))
    level = theta[:, None] + psi[:, None] * gamma
    p = sigmoid(level + phi[:, None] * lean(length, baseline_length))
    return Contest(
        models=[f"model-{m:02d}" for m in range(models)],
        win=(rng.random(p.shape) < p).astype(np.float64),
        length=length,
        baseline_length=baseline_length,
        theta=theta,
        phi=phi,
        psi=psi,
        gamma=gamma,
        true_rate=sigmoid(level).mean(axis=1),
    )


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Judgements of a panel and what was planted in it; per judge [J], per candidate [C]."""

    pairs: Pairs
    quality: np.ndarray
    position: np.ndarray
    length_slope: np.ndarray
    own_bonus: np.ndarray
    scale: np.ndarray
    judge_family: list[str]
    candidate_family: list[str]


def panel(
    seed: int,
    questions: int = 100,
    candidates: int = 6,
    taste: float = 0.8,
    bonuses: tuple[float, float, float] | None = None,
) -> Panel:
    """Draw a panel of five judges: three share a family with two candidates each, two are of other families.

    Args:
        taste: f in (0, 1]; the smaller, the more the two orders of a pair agree beyond quality. 1 = no taste.
        bonuses: of the three judges with own candidates, in logits; None = drawn.
    """
    rng = np.random.default_rng(seed)
    candidate_family = [f"family-{c % 3}" for c in range(candidates)]
    judge_family = ["family-0", "family-1", "family-2", "outside-3", "outside-4"]
    judges = len(judge_family)
    quality = rng.normal(0, 0.45, size=candidates)
    quality -= quality.mean()
    scale = np.exp(rng.normal(0, 0.2, size=judges))
    scale /= np.exp(np.log(scale).mean())
    position, slope = rng.normal(0.3, 0.3, size=judges), rng.normal(0.9, 0.3, size=judges)
    bonus = np.where(np.arange(judges) < 3, rng.normal(0.5, 0.25, size=judges), 0.0)
    if bonuses is not None:
        bonus = np.array([*bonuses, 0.0, 0.0])
    verbosity = rng.normal(0, 0.4, size=candidates)
    length = np.exp(6.5 + verbosity + rng.normal(0, 0.5, size=(questions, candidates)))
    a, b = np.triu_indices(candidates, 1)
    judge, question, pair = (part.reshape(-1) for part in np.indices((judges, questions, len(a))))
    drawn = _bridge(rng, taste, len(judge))
    forward = np.tile([True, False], len(judge))
    judge, question, pair, drawn = (np.repeat(part, 2) for part in (judge, question, pair, drawn))
    first, second = np.where(forward, a[pair], b[pair]), np.where(forward, b[pair], a[pair])
    pairs = Pairs(
        judges=[f"{family}-judge" for family in judge_family],
        candidates=[f"{family}-model-{c}" for c, family in enumerate(candidate_family)],
        questions=[f"question {x}" for x in range(questions)],
        judge=judge,
        first=first,
        second=second,
        question=question,
        length_first=np.round(length[question, first]),
        length_second=np.round(length[question, second]),
        outcome=np.zeros(len(judge)),
    )
    own = np.array([[float(f == g) for g in candidate_family] for f in judge_family])
    marginal = scale[judge] * (quality[first] - quality[second]) + position[judge] + slope[judge] * pairs.lean()
    marginal += bonus[judge] * (own[judge, first] - own[judge, second])
    p = sigmoid(marginal / taste + np.where(forward, drawn, -drawn))
    outcome = (rng.random(len(p)) < p).astype(np.float64)
    return Panel(
        pairs=Pairs(**{**vars(pairs), "outcome": outcome}),
        quality=quality,
        position=position,
        length_slope=slope,
        own_bonus=bonus,
        scale=scale,
        judge_family=judge_family,
        candidate_family=candidate_family,
    )


def _bridge(rng: np.random.Generator, f: float, size: int) -> np.ndarray:
    """Draws of the bridge distribution of the logistic link by its inverse distribution function."""
    if f >= 1:
        return np.zeros(size)
    u = rng.random(size)
    return np.log(np.sin(f * np.pi * u) / np.sin(f * np.pi * (1 - u))) / f


def oracle_widths(drawn: Panel, knows_quality: bool) -> dict[str, np.ndarray]:
    """Widths of an oracle's 95% intervals by kind of term, in the order of `fit_biases`' judges and candidates.

    For each kind of term the oracle is told the planted values of all other kinds of bias; the candidates' quality
    it must estimate from the same judgements, unless `knows_quality`.
    """
    own = np.array([[float(f == g) for g in drawn.candidate_family] for f in drawn.judge_family])
    model, judges, candidates = Likelihood(drawn.pairs, own), len(drawn.judge_family), len(drawn.quality)
    bonus = drawn.own_bonus[model.with_own]
    planted = [drawn.quality[1:], np.log(drawn.scale)[1:], drawn.position, drawn.length_slope, bonus]
    sizes = [candidates - 1, judges - 1, judges, judges, len(bonus)]
    kind_of = np.repeat(["quality", "scale", "position", "length_slope", "own_bonus"], sizes)
    values = np.concatenate(planted)
    unit = np.eye(len(values))
    rows = {kind: unit[kind_of == kind] for kind in ("position", "length_slope", "own_bonus")}
    rows |= {"quality": model.quality_rows, "scale": model.log_scale_rows}
    widths = {}
    for kind, gradients in rows.items():
        free = (kind_of == kind) | ((kind_of == "quality") & (not knows_quality))
        covariance, degrees = model.covariance(values, free)
        se = np.sqrt(np.einsum("kp,pq,kq->k", gradients, covariance, gradients))
        half = student_quantile(degrees) * se
        widths[kind] = drawn.scale * 2 * np.sinh(half) if kind == "scale" else 2 * half
    return widths


@dataclass(frozen=True, kw_only=True)
class Courtroom:
    """Votes [N, J] in {0, 1} of judges with shared errors, and the labels [N] of the same items."""

    votes: np.ndarray
    labels: np.ndarray


def courtroom(seed: int, items: int = 420, judges: int = 6) -> Courtroom:
    """Draw judges of whom most fall for the same lure: a sign of quality that points to the wrong answer.

    One to three judges rarely follow the lure, the others nearly always; all make errors of their own besides. So a
    weak judge is right on about 6 of 10 items, a strong one on 8 or 9, and the weak ones are wrong together.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=items).astype(np.float64)
    lured = rng.random((items, 1)) < rng.uniform(0.25, 0.45)
    strong = rng.permutation(judges) < rng.integers(1, 4)
    follows = np.where(strong, rng.uniform(0.05, 0.3, size=judges), rng.uniform(0.75, 0.95, size=judges))
    error = rng.uniform(0.05, 0.2, size=judges)
    wrong = np.where(lured & (rng.random((items, judges)) < follows), True, rng.random((items, judges)) < error)
    return Courtroom(votes=np.where(wrong, 1 - labels[:, None], labels[:, None]), labels=labels)
