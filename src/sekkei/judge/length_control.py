"""The GLM behind the length-controlled win rate: what would the judge prefer if both answers were equally long?

    logit P(model m beats baseline b on x) = theta_m + phi_m · tanh(Δlen_mx / std_x(Δlen_mx)) + psi_m · gamma_x
    length-controlled win rate of m        = mean over x of sigmoid(theta_m + psi_m · gamma_x)

theta, phi and psi stand for the differences theta_m − theta_b, phi_{m,b} and psi_m − psi_b; Δlen is the model's
characters minus the baseline's; gamma_x, the instruction's difficulty, is shared by all models.
Source: Dubois, Galambosi, Liang, Hashimoto 2024, "Length-Controlled AlpacaEval" (arXiv:2404.04475), section 3, and its
published implementation. As there, the fit has two steps (cross-entropy with soft labels: a preference is a share):

    1. gamma from all models together, with psi = 1 and slopes phi_m of the models' own        (difficulty.py)
    2. gamma held fixed, (theta, phi, psi) of every model against its own judgements           (this file)

Regularisation of step 2. The paper adds judgements of the baseline's own verbose and concise variants, which have no
theta, with a weight worth 0.2 rows per instruction; this is what makes the score hard to game. An annotation file
has no such rows. Here phi and psi are pulled towards the slopes that all models of the file share, as strongly as
that many rows of an equally good model would; 5-fold cross-validation over instructions may ask for more, never for
less. The shared length slope in turn is pulled towards 1.6, the published one (1.58 and 1.64 for the two variants,
GPT-4 Turbo as judge), by the same number of rows, which one model feels and fifty do not. theta is never pulled.

With a single model gamma cannot be told from the model's own luck: see difficulty.py for what stands in.
What it does not handle: other covariates; several judges in one fit (fit one judge at a time).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sekkei.judge.difficulty import (
    FLOOR,
    FOLDS,
    MAX_STEPS,
    Cells,
    Difficulty,
    Pull,
    choose_ridge,
    cross_entropy,
    fit_difficulty,
    sigmoid,
)

PUBLISHED_SLOPE = 1.6  # weights of the baseline's verbose and concise variants in the published implementation
PULL_ROWS = (0.2, 0.4, 0.8, 1.6, 3.2)  # per instruction; the first is the paper's weight


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The fitted GLM: theta, phi, psi [M], gamma [X] inside `difficulty`, and the pull of step 2 that was chosen."""

    theta: np.ndarray
    phi: np.ndarray
    psi: np.ndarray
    difficulty: Difficulty
    pull: Pull

    def corrected(self, unit: np.ndarray) -> np.ndarray:
        """[M] length-controlled win rates in [0, 1]; `unit` [X] says how often each item counts."""
        at_equal_length = sigmoid(self.theta[:, None] + self.psi[:, None] * self.difficulty.gamma)
        return at_equal_length @ unit / unit.sum()


def fit(cells: Cells, seed: int = 0, slope: float = PUBLISHED_SLOPE) -> Fit:
    """Both steps, regularisation by cross-validation with folds drawn from `seed`.

    Args:
        slope: where the shared length slope is pulled by 0.2 rows per instruction.
    """
    rng = np.random.default_rng(seed)
    models, items = cells.win.shape
    towards = _published(cells, slope)
    if models == 1:
        return _single(cells, fit_difficulty(cells, np.inf, pull=towards), towards)
    difficulty = fit_difficulty(cells, choose_ridge(cells, rng.integers(0, FOLDS, size=(models, items))))
    return fit_models(cells, difficulty, choose_pull(cells, difficulty, towards, rng.permutation(items) % FOLDS))


def refit(cells: Cells, start: Fit) -> Fit:
    """Both steps on resampled cells, regularisation as it was chosen on the whole data."""
    before = start.difficulty
    if len(cells.win) == 1:
        return _single(cells, fit_difficulty(cells, np.inf, before, start.pull), start.pull)
    return fit_models(cells, fit_difficulty(cells, before.ridge, before), start.pull, start)


def choose_pull(cells: Cells, difficulty: Difficulty, towards: Pull, fold: np.ndarray) -> Pull:
    """The pull of step 2 with the least cross-entropy on held-out instructions; `fold` [X] numbers them."""
    centre = _shared_slopes(cells, difficulty, towards)
    features = _features(cells, difficulty)[:, :, 1:]
    p = sigmoid(features @ centre)  # an equally good model: theta = 0
    per_row = np.einsum("mxk,mx,mxl->kl", features, cells.weight * p * (1 - p), features) / cells.weight.sum()
    pulls = [Pull(centre=centre, curvature=per_row * share * len(cells.unit), rows=share) for share in PULL_ROWS]
    losses = []
    for pull in pulls:
        loss, start = 0.0, None
        for held in range(FOLDS):
            start = fit_models(cells.masked(fold != held), difficulty, pull, start)
            loss += cross_entropy(cells.masked(fold == held), _logits(cells, start))
        losses.append(loss)
    return pulls[int(np.argmin(losses))]


def fit_models(cells: Cells, difficulty: Difficulty, pull: Pull, start: Fit | None = None) -> Fit:
    """Step 2: (theta, phi, psi) of every model, all models at once, by Newton's method."""
    features = _features(cells, difficulty)  # [M, X, 3]
    penalty, centre = np.eye(3) * FLOOR, np.concatenate([[0.0], pull.centre])
    penalty[1:, 1:] += pull.curvature
    beta = np.tile(centre, (len(cells.win), 1))
    if start is not None:
        beta = np.stack([start.theta, start.phi, start.psi], axis=1)
    for _ in range(MAX_STEPS):
        p = sigmoid(np.einsum("mxk,mk->mx", features, beta))
        slope = np.einsum("mxk,mx->mk", features, cells.weight * (cells.win - p)) - (beta - centre) @ penalty
        weighted = features * (cells.weight * p * (1 - p))[:, :, None]
        step = np.linalg.solve(features.transpose(0, 2, 1) @ weighted + penalty, slope[:, :, None])[:, :, 0]
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-12))  # no wild first steps
        beta = beta + step
        if np.abs(step).max() < 1e-6:
            break
    return Fit(theta=beta[:, 0], phi=beta[:, 1], psi=beta[:, 2], difficulty=difficulty, pull=pull)


def _single(cells: Cells, difficulty: Difficulty, pull: Pull) -> Fit:
    """One model: step 1 with the stand-ins alone is the whole fit, and psi is 1."""
    return Fit(theta=difficulty.theta, phi=difficulty.phi, psi=np.ones(1), difficulty=difficulty, pull=pull)


def _published(cells: Cells, slope: float) -> Pull:
    """The pull of the shared length slope: 0.2 rows per instruction of an equally good model."""
    p = sigmoid(slope * cells.lean)
    per_row = (cells.weight * p * (1 - p) * cells.lean**2).sum() / cells.weight.sum()
    rows = PULL_ROWS[0]
    return Pull(centre=np.array([slope]), curvature=np.array([[per_row * rows * len(cells.unit)]]), rows=rows)


def _shared_slopes(cells: Cells, difficulty: Difficulty, towards: Pull) -> np.ndarray:
    """[2] phi and psi that all models share, theta of each model's own, by Newton's method."""
    features = _features(cells, difficulty)[:, :, 1:]
    theta, slopes = np.zeros(len(cells.win)), np.array([towards.centre[0], 1.0])
    penalty, centre = np.diag([towards.curvature[0, 0] + FLOOR, FLOOR]), np.array([towards.centre[0], 0.0])
    for _ in range(MAX_STEPS):
        p = sigmoid(theta[:, None] + features @ slopes)
        off, curve = cells.weight * (cells.win - p), cells.weight * p * (1 - p)
        own = curve.sum(axis=1) + FLOOR
        cross = np.einsum("mxk,mx->mk", features, curve)
        inner = np.einsum("mxk,mx,mxl->kl", features, curve, features) + penalty
        slope_theta = off.sum(axis=1) - FLOOR * theta
        slope = np.einsum("mxk,mx->k", features, off) - penalty @ (slopes - centre)
        step = np.linalg.solve(inner - (cross.T / own) @ cross, slope - cross.T @ (slope_theta / own))
        step_theta = (slope_theta - cross @ step) / own
        largest = max(np.abs(step).max(), np.abs(step_theta).max())
        damp = min(1.0, 2.0 / max(largest, 1e-12))
        slopes, theta = slopes + damp * step, theta + damp * step_theta
        if largest < 1e-6:
            break
    return slopes


def _features(cells: Cells, difficulty: Difficulty) -> np.ndarray:
    """[M, X, 3]: one, the length term, the difficulty."""
    gamma = np.broadcast_to(difficulty.gamma, cells.lean.shape)
    return np.stack([np.ones_like(cells.lean), cells.lean, gamma], axis=2)


def _logits(cells: Cells, found: Fit) -> np.ndarray:
    return found.theta[:, None] + found.phi[:, None] * cells.lean + found.psi[:, None] * found.difficulty.gamma
