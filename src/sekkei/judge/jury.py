"""Several judges in one: by majority, by mean, or by weights learnt from a few answers that people labelled.

    P(first answer is better) = sigmoid(sum_j w_j x_j),   x_j = 2 · preference_j − 1 in [−1, 1],   w_j >= 0

fitted to the anchors by maximum likelihood with a ridge on w; its strength is chosen by cross-validation over anchors
(stacking: Wolpert 1992, Breiman 1996, whose non-negative weights these are). Judges of one kind share their errors: a
majority of them counts one error several times and can be far worse than its best member, and so can methods that
take errors to be independent (Dawid & Skene 1979). The fit sees on the anchors that such judges add nothing to each
other. A missing vote (NaN) is x = 0: it pulls nowhere.

There is no constant term: a pull to the first place is removed by judging both orders, and with 80 anchors the error
of a constant alone made the jury worse than its best member three times as often.

What it does not handle: fewer than about 40 anchors (it says so), answers on a scale (take the mean), anchors of
another kind than the items to be judged: weights learnt on mathematics say nothing about poems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sekkei.core.errors import UserError
from sekkei.judge.difficulty import sigmoid
from sekkei.judge.pairs import Pairs

FOLDS = 10
RIDGES = (0.03, 0.1, 0.3, 1.0)  # on w, in units of anchors
FEW_ANCHORS = 40
MAX_STEPS = 2000


@dataclass(frozen=True, kw_only=True)
class Jury:
    """Judges with the weights that were learnt.

    Attributes:
        judges: [J] names. weights: [J], >= 0, in logits.
        ridge: chosen. anchors: how many labels. notes: lines for the reader.
    """

    judges: list[str]
    weights: np.ndarray
    ridge: float
    anchors: int
    notes: list[str]

    def verdict(self, votes: np.ndarray) -> np.ndarray:
        """[N] chance that the first answer is better, from votes [N, J] in [0, 1], NaN = none."""
        return sigmoid(signed(votes) @ self.weights)

    def as_json(self) -> dict[str, Any]:
        return {
            "weights": {name: round(float(w), 6) for name, w in zip(self.judges, self.weights)},
            "ridge": self.ridge,
            "anchors": self.anchors,
            "notes": self.notes,
        }


def majority(votes: np.ndarray) -> np.ndarray:
    """[N] 1, 0 or 0.5 (as many for as against, or no votes): what most judges prefer. Ties of a judge do not vote."""
    return (np.sign(np.sign(signed(votes)).sum(axis=1)) + 1) / 2


def mean(votes: np.ndarray) -> np.ndarray:
    """[N] mean preference of the judges that voted, 0.5 where none did."""
    there = np.isfinite(votes).sum(axis=1)
    return 0.5 + 0.5 * signed(votes).sum(axis=1) / np.maximum(there, 1)


def calibrate(votes: np.ndarray, labels: np.ndarray, judges: Sequence[str], seed: int = 0) -> Jury:
    """Learn weights from anchors.

    Args:
        votes: [A, J] preferences for the first answer in [0, 1], NaN = none.
        labels: [A] what people say, in [0, 1]. seed: of the folds.
    Raises:
        UserError: shapes that do not fit, values outside of [0, 1], or labels that are all the same.
    """
    votes, labels = np.asarray(votes, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if votes.shape != (len(labels), len(judges)):
        raise UserError(f"anchors: votes are {votes.shape}, want {(len(labels), len(judges))}: anchors × judges")
    given = np.append(votes[np.isfinite(votes)], labels)
    if not ((given >= 0) & (given <= 1)).all():
        raise UserError("anchors: votes and labels are preferences in [0, 1], 1 = the first answer is better")
    if len(labels) < 2 or np.ptp(labels) == 0:
        raise UserError("anchors: all labels are the same; shuffle which answer stands first, or label more items")
    x = signed(votes)
    fold = np.random.default_rng(seed).permutation(len(labels)) % min(FOLDS, len(labels))
    losses = [_held_out_loss(x, labels, fold, ridge) for ridge in RIDGES]
    ridge = RIDGES[int(np.argmin(losses))]
    weights = _fit(x, labels, ridge)
    notes = []
    if len(labels) < FEW_ANCHORS:
        notes.append(f"{len(labels)} anchors: below about {FEW_ANCHORS} the weights are mostly chance")
    silent = [name for name, column in zip(judges, votes.T) if not np.isfinite(column).any()]
    if silent:
        notes.append(f"{', '.join(silent)} judged no anchor and counts nothing")
    return Jury(judges=list(judges), weights=weights, ridge=ridge, anchors=len(labels), notes=notes)


def signed(votes: np.ndarray) -> np.ndarray:
    """Preferences in [0, 1] as votes in [−1, 1], none as 0."""
    return np.nan_to_num(2 * np.asarray(votes, dtype=np.float64) - 1, nan=0.0)


def accuracy(verdicts: np.ndarray, labels: np.ndarray) -> float:
    """Share of items whose verdict [N] is on the label's side; 0.5 in either counts as half right."""
    return float((1 - np.abs(np.sign(verdicts - 0.5) - np.sign(labels - 0.5)) / 2).mean())


def _held_out_loss(x: np.ndarray, labels: np.ndarray, fold: np.ndarray, ridge: float) -> float:
    loss = 0.0
    for held in range(int(fold.max()) + 1):
        logits = x[fold == held] @ _fit(x[fold != held], labels[fold != held], ridge)
        loss += float((np.logaddexp(0, logits) - labels[fold == held] * logits).sum())
    return loss


def _fit(x: np.ndarray, labels: np.ndarray, ridge: float) -> np.ndarray:
    """Weights [J] >= 0 by accelerated projected gradient (Beck & Teboulle 2009, FISTA)."""
    rate = 1.0 / (0.25 * np.linalg.norm(x, 2) ** 2 + ridge)
    here = ahead = np.zeros(x.shape[1])
    momentum = 1.0
    for _ in range(MAX_STEPS):
        moved = np.maximum(ahead - rate * (x.T @ (sigmoid(x @ ahead) - labels) + ridge * ahead), 0.0)
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / faster * (moved - here)
        done = np.abs(moved - here).max() < 1e-7
        here, momentum = moved, faster
        if done:
            break
    return here


def votes_of(pairs: Pairs) -> tuple[list[tuple[str, str, str]], np.ndarray]:
    """([N] (question, candidate, other), [N, J] each judge's mean preference for the candidate over both orders)."""
    size = len(pairs.candidates)
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    key = (pairs.question * size + low) * size + high
    known, place = np.unique(key, return_inverse=True)
    for_low = np.where(pairs.first == low, pairs.outcome, 1 - pairs.outcome)
    shape = (len(known), len(pairs.judges))
    cell = place * shape[1] + pairs.judge
    total = np.bincount(cell, for_low, shape[0] * shape[1]).reshape(shape)
    count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    votes = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    names = pairs.candidates
    units = [(pairs.questions[k // (size * size)], names[(k // size) % size], names[k % size]) for k in map(int, known)]
    return units, votes


@dataclass(frozen=True, kw_only=True)
class Convened:
    """A jury learnt from files.

    Attributes:
        accuracies: on the anchors, by judge and by way of combining.
        rows: its verdicts in AlpacaEval's format, without the answers' texts (annotations.with_texts adds them).
    """

    jury: Jury
    accuracies: dict[str, float]
    rows: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return self.jury.as_json() | {"accuracies": {name: round(value, 6) for name, value in self.accuracies.items()}}


def convene(pairs: Pairs, anchors: Pairs, seed: int = 0) -> Convened:
    """Learn a jury from people's verdicts on some of the pairs, and let it judge all of them.

    The accuracy "calibrated, held out" is that of weights learnt on the other nine tenths of the anchors.

    Raises:
        UserError: no anchor's question and models are among the judged pairs; see also `calibrate`.
    """
    units, votes = votes_of(pairs)
    labelled, said = votes_of(anchors)
    place = {unit: number for number, unit in enumerate(units)}
    label_of = {place[unit]: float(np.nanmean(row)) for unit, row in zip(labelled, said) if unit in place}
    if not label_of:
        raise UserError("anchors: none has the question and the two models of a judged pair; check names and texts")
    chosen, labels = np.array(list(label_of)), np.array(list(label_of.values()))
    learnt = calibrate(votes[chosen], labels, pairs.judges, seed)
    fold = np.random.default_rng(seed).permutation(len(labels)) % min(FOLDS, len(labels))
    held_out = np.empty(len(labels))
    x = signed(votes[chosen])
    for held in range(int(fold.max()) + 1):
        held_out[fold == held] = sigmoid(x[fold == held] @ _fit(x[fold != held], labels[fold != held], learnt.ridge))
    accuracies = {name: accuracy(column, labels) for name, column in zip(pairs.judges, x.T / 2 + 0.5)}
    accuracies |= {
        "majority": accuracy(majority(votes[chosen]), labels),
        "mean": accuracy(mean(votes[chosen]), labels),
        "calibrated, held out": accuracy(held_out, labels),
    }
    rows = [
        {"instruction": unit[0], "generator_1": unit[1], "generator_2": unit[2], "annotator": "jury"}
        | {"preference": round(2 - float(p), 6)}
        for unit, p in zip(units, learnt.verdict(votes))
    ]
    return Convened(jury=learnt, accuracies=accuracies, rows=rows)
