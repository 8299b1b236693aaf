"""Win rates of many models against one baseline: raw, discrete, length-controlled and length-matched, with intervals.

    win rate            mean preference for the model
    discrete            share of items it wins, ties half
    length-controlled   the GLM of length_control.py, at equal length, over all items of the table
    length-matched      mean preference where the two answers differ in length by at most a tenth: no model behind it

All in per cent. Standard errors and 95% intervals come from resampling instructions: one draw serves all models, and
the GLM is fitted anew in each, difficulties included. (The published leaderboard's error of the length-controlled
rate is the spread of its predictions over instructions; it leaves out that the coefficients were estimated.)

What it does not handle: differences between two models (use draws of the same seed), the judge's own biases (bias.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sekkei.core.errors import UserError
from sekkei.judge.annotations import Counts, Table
from sekkei.judge.difficulty import Cells, to_cells
from sekkei.judge.intervals import Estimate, from_draws, resamples
from sekkei.judge.length_control import PUBLISHED_SLOPE, Fit, fit, refit

DRAWS = 500  # of the bootstrap: each fits the GLM anew
MATCHED = 0.1  # length-matched: |difference| of at most this share of the longer answer
HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One model's figures, shares in [0, 1]."""

    name: str
    win_rate: Estimate
    length_controlled: Estimate
    length_matched: Estimate
    length_slope: Estimate  # phi: logits that the judge adds for a much longer answer
    discrete: float
    wins: int
    losses: int
    ties: int
    matched_items: int
    mean_length: float
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class WinRates:
    """All models' figures, the fit behind them, and how they were made."""

    table: Table
    models: list[ModelResult]  # best length-controlled rate first
    fit: Fit | None
    draws: int
    seed: int
    slope: float
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Plain data in per cent; the names are those of AlpacaEval's leaderboard where it has the figure."""
        return {
            "baseline": self.table.baseline,
            "instructions": len(self.table.instructions),
            "models": {model.name: _model_json(model) for model in self.models},
            "method": self._method(),
            "rows_without_baseline": self.table.without_baseline,
            "notes": self.notes,
        }

    def _method(self) -> dict[str, Any]:
        method: dict[str, Any] = {
            "intervals": f"95%, {self.draws} resamples of instructions, seed {self.seed}",
            "formula": "logit p = theta_m + phi_m * tanh(dlen / std(dlen)) + psi_m * gamma_x; corrected: without phi_m",
            "source": "Dubois et al. 2024, arXiv:2404.04475",
        }
        if self.fit is not None:
            ridge = self.fit.difficulty.ridge
            method |= {
                "difficulty_ridge": ridge if np.isfinite(ridge) else None,
                "pull_rows_per_instruction": self.fit.pull.rows,
                "pull_towards_slope": round(float(self.fit.pull.centre[0]), 4),
                "length_slope_prior": self.slope,
            }
        return method


def win_rates(
    table: Table,
    draws: int = DRAWS,
    seed: int = 0,
    slope: float = PUBLISHED_SLOPE,
    progress: Callable[[int], None] = lambda done: None,
) -> WinRates:
    """Every model's figures.

    Args:
        draws: resamples for the intervals, at least 2. slope: see `length_control.fit`.
        progress: told how many resamples are done.
    Raises:
        UserError: `draws` is too small, or no judgement of any model could be read.
    """
    if draws < 2:
        raise UserError(f"--draws {draws}: an interval needs at least 2 resamples, 500 are usual")
    judged = np.isfinite(table.win).any(axis=1)
    if not judged.any():
        raise UserError(f"none of the {len(table.models)} models has a preference that could be read")
    fitted = np.flatnonzero(judged & np.array([model != table.baseline for model in table.models]))
    cells = _cells(table, fitted) if len(fitted) else None
    whole = fit(cells, seed, slope) if cells is not None else None
    measured = np.stack([_measures(table, np.ones(len(table.instructions)), fitted, whole)])
    drawn = np.empty((draws, *measured.shape[1:]))
    for number, unit in enumerate(resamples(len(table.instructions), draws, seed)):
        again = refit(cells.resampled(unit), whole) if cells is not None and whole is not None else None
        drawn[number] = _measures(table, unit, fitted, again)
        progress(number + 1)
    models = [_result(table, place, measured[0][:, place], drawn[:, :, place]) for place in range(len(table.models))]
    models.sort(key=lambda model: (-np.nan_to_num(model.length_controlled.value, nan=-1.0), model.name))
    notes = [*table.notes, *_notes(table, fitted, judged, slope)]
    return WinRates(table=table, models=models, fit=whole, draws=draws, seed=seed, slope=slope, notes=notes)


def _cells(table: Table, chosen: np.ndarray) -> Cells:
    instruction_length = np.array([len(text) for text in table.instructions], dtype=np.float64)
    return to_cells(table.win[chosen], table.length[chosen], table.baseline_length[chosen], instruction_length)


def _measures(table: Table, unit: np.ndarray, fitted: np.ndarray, found: Fit | None) -> np.ndarray:
    """[4, M]: raw, length-controlled, length-matched win rate and length slope, items counted `unit` [X] times."""
    measures = np.full((4, len(table.models)), np.nan)
    judged = np.isfinite(table.win)
    measures[0] = _mean(table.win, judged * unit)
    measures[2] = _mean(table.win, (judged & matched(table)) * unit)
    measures[1] = [HALF if model == table.baseline else np.nan for model in table.models]
    if found is not None:
        measures[1, fitted], measures[3, fitted] = found.corrected(unit), found.phi
    return measures


def matched(table: Table) -> np.ndarray:
    """[M, X] whether the two answers differ in length by at most a tenth of the longer one."""
    longer = np.fmax(table.length, table.baseline_length)
    with np.errstate(invalid="ignore"):
        return np.abs(table.length - table.baseline_length) <= MATCHED * longer


def _mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = weight.sum(axis=1)
    sums = (np.where(weight > 0, values, 0) * weight).sum(axis=1)
    return np.divide(sums, total, out=np.full(len(values), np.nan), where=total > 0)


def _result(table: Table, place: int, value: np.ndarray, drawn: np.ndarray) -> ModelResult:
    """One model's figures from its measures [4] and their resamples [draws, 4]."""
    estimates = [from_draws(float(value[k]), drawn[:, k]) for k in range(4)]
    name, win = table.models[place], table.win[place][np.isfinite(table.win[place])]
    wins, losses = int((win > HALF).sum()), int((win < HALF).sum())
    ties = len(win) - wins - losses
    lengths = table.length[place][np.isfinite(table.length[place])]
    return ModelResult(
        name=name,
        win_rate=estimates[0],
        length_controlled=estimates[1],
        length_matched=estimates[2],
        length_slope=estimates[3],
        discrete=(wins + ties / 2) / len(win) if len(win) else np.nan,
        wins=wins,
        losses=losses,
        ties=ties,
        matched_items=int((matched(table)[place] & np.isfinite(table.win[place])).sum()),
        mean_length=float(lengths.mean()),
        counts=table.counts[name],
    )


def _notes(table: Table, fitted: np.ndarray, judged: np.ndarray, slope: float) -> list[str]:
    notes = []
    if len(fitted) == 1:
        notes.append(
            "one model: instruction difficulty cannot be told from its luck; the lengths of instruction and baseline "
            f"answer stand in for it, and its length slope is pulled towards {slope:g} by 0.2 rows per instruction; "
            "give other models' annotations of the same instructions too for the published method"
        )
    if table.baseline in table.models:
        notes.append(f"{table.baseline} against itself: its length-controlled win rate is 50 by construction")
    unread = [model for model, ok in zip(table.models, judged) if not ok]
    if unread:
        notes.append(f"no preference could be read for {', '.join(unread)}")
    missing = {model: count.unparsed for model, count in table.counts.items() if count.unparsed}
    if missing:
        notes.append("unparsed rows, not scored: " + ", ".join(f"{name} {number}" for name, number in missing.items()))
    copies = sum(count.copies for count in table.counts.values())
    if copies:
        notes.append(f"{copies} rows repeat an earlier row exactly and count once")
    if table.without_baseline:
        notes.append(f"{table.without_baseline} rows compare two other models and are left out")
    return notes


def _model_json(model: ModelResult) -> dict[str, Any]:
    raw, corrected, equal = (
        estimate.scaled(100).as_json() for estimate in (model.win_rate, model.length_controlled, model.length_matched)
    )
    slope = model.length_slope.as_json()
    return {
        "win_rate": raw["value"],
        "standard_error": raw["se"],
        "win_rate_interval": [raw["low"], raw["high"]],
        "length_controlled_winrate": corrected["value"],
        "lc_standard_error": corrected["se"],
        "length_controlled_winrate_interval": [corrected["low"], corrected["high"]],
        "discrete_win_rate": round(100 * model.discrete, 6) if np.isfinite(model.discrete) else None,
        "length_matched_win_rate": equal["value"],
        "length_matched_interval": [equal["low"], equal["high"]],
        "n_length_matched": model.matched_items,
        "length_slope": slope["value"],
        "length_slope_interval": [slope["low"], slope["high"]],
        "n_total": model.wins + model.losses + model.ties,
        "n_wins": model.wins,
        "n_wins_base": model.losses,
        "n_draws": model.ties,
        "avg_length": round(model.mean_length, 2),
        "n_rows": model.counts.rows,
        "n_unparsed": model.counts.unparsed,
        "n_copies": model.counts.copies,
        "n_repeats": model.counts.repeats,
    }
