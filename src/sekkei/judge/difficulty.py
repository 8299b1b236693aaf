"""How hard an instruction is for everybody: step 1 of the length-controlled win rate.

    logit P(m beats b on x) = theta_m + phi_m · lean_mx + gamma_x

fitted to all models together (psi = 1, as in Dubois et al. 2024, section 3); gamma is pulled towards 0 by a ridge
whose strength is chosen by 5-fold cross-validation over judgements (`choose_ridge`).

A single model's gamma cannot be told from its luck. Then gamma_x = z_x · b, with stand-ins z_x that every file has:
the logarithms of the lengths of the baseline's answer and of the instruction, and their squares. They are needed: where
the baseline's answer is short, weak models do well and the length difference is near 0, which a fit without any
gamma takes for an effect of length (published annotations of 57 models, each fitted alone: mean slope 2.4 without
stand-ins, 1.6 with them; all fitted together give 1.7). With several models they do not help and are not used.

What it does not handle: difficulties that differ in kind (psi of more than one dimension), resuming gamma from a file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

FOLDS = 5  # as in the published implementation
RIDGES = (0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
FLOOR = 1e-3  # ridge on every coefficient, so that a model that never wins has a finite theta
STAND_IN_RIDGE = 1.0  # on b: a stand-in moves the logit by about 1 per standard deviation, or less
MAX_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Judgements of M models on X items, as the fit needs them.

    Attributes:
        win: [M, X] in [0, 1], 0 where there is none. weight: [M, X] 1 = judged, 0 = not, times resampling weights.
        lean: [M, X] tanh of the normalised length difference.
        stand_ins: [X, K] observable signs of difficulty, standardised: K = 4 with one model, 0 with several.
        unit: [X] how often each item counts (1; other in a resample).
    """

    win: np.ndarray
    weight: np.ndarray
    lean: np.ndarray
    stand_ins: np.ndarray
    unit: np.ndarray

    def resampled(self, unit: np.ndarray) -> Cells:
        return replace(self, weight=self.weight * unit, unit=unit)

    def masked(self, keep: np.ndarray) -> Cells:
        """Only the judgements where `keep` [M, X] or [X] holds."""
        return replace(self, weight=self.weight * keep)


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Where slopes are pulled: centre [K], curvature [K, K] of that pull, worth `rows` judgements per instruction."""

    centre: np.ndarray
    curvature: np.ndarray
    rows: float


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """gamma [X] = stand_ins @ b [K] + rest [X], and the coefficients theta, phi [M] it was estimated with."""

    gamma: np.ndarray
    theta: np.ndarray
    phi: np.ndarray
    b: np.ndarray
    rest: np.ndarray
    ridge: float


def to_cells(win: np.ndarray, length: np.ndarray, baseline_length: np.ndarray, instruction_length: np.ndarray) -> Cells:
    """Cells of a table: win and lengths [M, X], NaN where there is no judgement or no row; the last one [X]."""
    judged = np.isfinite(win)
    with np.errstate(invalid="ignore"):
        answered = np.isfinite(baseline_length)
        baseline = np.where(answered, baseline_length, 0).sum(axis=0) / np.maximum(answered.sum(axis=0), 1)
    signs = [_standard(np.log1p(baseline)), _standard(np.log1p(instruction_length))]
    stand_ins = np.stack([*signs, *(_standard(sign**2) for sign in signs)], axis=1)
    return Cells(
        win=np.where(judged, win, 0.0),
        weight=judged.astype(np.float64),
        lean=lean(length, baseline_length),
        stand_ins=stand_ins if len(win) == 1 else stand_ins[:, :0],
        unit=np.ones(win.shape[1]),
    )


def lean(length: np.ndarray, baseline_length: np.ndarray) -> np.ndarray:
    """[M, X] tanh(Δlen / std(Δlen)), the std over each model's own rows; 0 where a row is missing."""
    gap = length - baseline_length
    there = np.isfinite(gap)
    count = there.sum(axis=1, keepdims=True)
    mean = np.where(there, gap, 0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    squares = np.where(there, (gap - mean) ** 2, 0).sum(axis=1, keepdims=True)
    std = np.sqrt(squares / np.maximum(count - 1, 1))
    return np.tanh(np.divide(gap, std, out=np.zeros_like(gap), where=there & (std > 0)))


def choose_ridge(cells: Cells, fold: np.ndarray) -> float:
    """The stiffest ridge on gamma whose held-out cross-entropy is within one standard error of the least.

    The one-standard-error rule (Breiman et al. 1984, section 3.4.3), the error taken over instructions. The least loss
    itself is found with a gamma so free that it takes over a part of the effect of length, where most models are
    shorter than the baseline (48 such models: length-controlled rates 1.8 points too low, under this rule 0.9).

    Args:
        fold: [M, X] numbers each judgement's fold.
    """
    losses = np.zeros((len(RIDGES), cells.win.shape[1]))  # per instruction
    for held in range(FOLDS):
        train, test = cells.masked(fold != held), cells.masked(fold == held)
        start = None
        for place in reversed(range(len(RIDGES))):  # from stiff to loose, each from the last one's end
            start = fit_difficulty(train, RIDGES[place], start)
            logits = start.theta[:, None] + start.phi[:, None] * cells.lean + start.gamma
            losses[place] += _entropies(test, logits).sum(axis=0)
    total = losses.sum(axis=1)
    best = int(total.argmin())
    error = losses[best].std() * np.sqrt(losses.shape[1])
    return RIDGES[int(np.flatnonzero(total <= total[best] + error).max())]


def fit_difficulty(cells: Cells, ridge: float, start: Difficulty | None = None, pull: Pull | None = None) -> Difficulty:
    """Fit theta, phi [M], b [K] and the rest of gamma [X] by Newton's method, the rest by Schur complement.

    Args:
        ridge: on the rest; infinity holds it at 0, as is right for one model.
        start: an earlier fit to begin from. pull: on phi, none by default.
    """
    models, items = cells.win.shape
    system = _System(cells, ridge, pull)
    if start is None:
        outer, rest = np.zeros(2 * models + cells.stand_ins.shape[1]), np.zeros(items)
    else:
        outer, rest = np.concatenate([np.stack([start.theta, start.phi], axis=1).reshape(-1), start.b]), start.rest
    value = system.objective(outer, rest)
    for _ in range(MAX_STEPS):
        step, step_rest = system.step(outer, rest)
        size = 1.0
        while True:
            moved = outer + size * step, rest + size * step_rest
            tried = system.objective(*moved)
            if tried <= value + 1e-9 * abs(value) or size < 1e-4:
                break
            size /= 2
        outer, rest = moved
        done, value = value - tried < 1e-8 * abs(value), tried
        if done:
            break
    theta, phi, b = system.parts(outer)
    return Difficulty(gamma=cells.stand_ins @ b + rest, theta=theta, phi=phi, b=b, rest=rest, ridge=ridge)


class _System:
    """The penalised likelihood and its Newton step; parameters are [theta_1, phi_1, theta_2, …, b] and the rest."""

    def __init__(self, cells: Cells, ridge: float, pull: Pull | None) -> None:
        self.cells, self.models = cells, len(cells.win)
        self.free = np.isfinite(ridge)
        self.ridge = (ridge if self.free else 1.0) * cells.unit
        size = 2 * self.models + cells.stand_ins.shape[1]
        self.penalty, self.centre = np.full(size, FLOOR), np.zeros(size)
        self.penalty[2 * self.models :] = STAND_IN_RIDGE
        if pull is not None:
            self.penalty[1 : 2 * self.models : 2] += pull.curvature[0, 0]
            self.centre[1 : 2 * self.models : 2] = pull.centre[0]

    def parts(self, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        own = outer[: 2 * self.models].reshape(self.models, 2)
        return own[:, 0], own[:, 1], outer[2 * self.models :]

    def logits(self, outer: np.ndarray, rest: np.ndarray) -> np.ndarray:
        theta, phi, b = self.parts(outer)
        return theta[:, None] + phi[:, None] * self.cells.lean + (self.cells.stand_ins @ b + rest)

    def objective(self, outer: np.ndarray, rest: np.ndarray) -> float:
        penalty = (self.penalty * (outer - self.centre) ** 2).sum() + (self.ridge * rest**2).sum()
        return cross_entropy(self.cells, self.logits(outer, rest)) + 0.5 * float(penalty)

    def step(self, outer: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cells, models, z = self.cells, self.models, self.cells.stand_ins
        p = sigmoid(self.logits(outer, rest))
        off, curve = cells.weight * (cells.win - p), cells.weight * p * (1 - p)
        per_item, leaning = curve.sum(axis=0), curve * cells.lean
        cross = np.empty((len(outer), len(rest)))  # second derivatives between outer parameters and the logit of x
        cross[0 : 2 * models : 2], cross[1 : 2 * models : 2], cross[2 * models :] = curve, leaning, z.T * per_item
        hessian = np.diag(self.penalty)
        places = np.arange(0, 2 * models, 2)
        hessian[places, places] += curve.sum(axis=1)
        hessian[places + 1, places + 1] += (leaning * cells.lean).sum(axis=1)
        hessian[places, places + 1] = hessian[places + 1, places] = leaning.sum(axis=1)
        shared = cross[: 2 * models] @ z
        hessian[: 2 * models, 2 * models :], hessian[2 * models :, : 2 * models] = shared, shared.T
        hessian[2 * models :, 2 * models :] += (z.T * per_item) @ z
        own = np.stack([off.sum(axis=1), (off * cells.lean).sum(axis=1)], axis=1).reshape(-1)
        slope = np.concatenate([own, z.T @ off.sum(axis=0)]) - self.penalty * (outer - self.centre)
        if not self.free:
            return np.linalg.solve(hessian, slope), np.zeros_like(rest)
        slope_rest = off.sum(axis=0) - self.ridge * rest
        inner = per_item + self.ridge
        inner = np.where(inner > 0, inner, 1.0)  # an item that was not drawn stays where it is
        reduced = np.linalg.solve(hessian - (cross / inner) @ cross.T, slope - cross @ (slope_rest / inner))
        return reduced, (slope_rest - reduced @ cross) / inner


def cross_entropy(cells: Cells, logits: np.ndarray) -> float:
    """Weighted cross-entropy of soft labels against `logits` [M, X], in nats, summed."""
    return float(_entropies(cells, logits).sum())


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def _entropies(cells: Cells, logits: np.ndarray) -> np.ndarray:
    return cells.weight * (np.logaddexp(0, logits) - cells.win * logits)


def _standard(values: np.ndarray) -> np.ndarray:
    std = values.std()
    return (values - values.mean()) / std if std > 0 else np.zeros_like(values)
