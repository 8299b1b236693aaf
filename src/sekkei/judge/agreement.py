"""How far raters agree beyond chance: Cohen's and Fleiss' kappa, Krippendorff's alpha, with intervals.

    kappa = 1 - observed disagreement / disagreement expected by chance
    Cohen 1960 (1968 weighted)   two raters, chance from each rater's own marginals
    Fleiss 1971                  any raters, the same number per item; chance from the pooled marginals
    alpha = 1 - D_o / D_e        Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": any raters, missing
                                 values, distances for nominal, ordinal, interval and ratio data

Ratings are a table [N items, R raters]; None and NaN are missing. Cohen uses items that both rated, Fleiss items that
all rated, alpha every item with at least two ratings. Intervals resample items. Where all ratings are the same value,
chance agreement is complete and the coefficient is undefined: NaN, never 1.

What it does not handle: several labels per rating, raters nested in groups, Gwet's AC1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from sekkei.core.errors import UserError
from sekkei.judge.annotations import read_json_rows
from sekkei.judge.intervals import DRAWS, Estimate, bootstrap

Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weighting = Literal["linear", "quadratic"]
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval", "ratio")


class Ratings:
    """A table of ratings, its values numbered in sorted order.

    Attributes:
        codes: [N, R] int64, number of the category, -1 = missing.
        values: the V categories, sorted.
    Raises:
        UserError: the rows have different lengths, there are fewer than two raters, or values cannot be ordered.
    """

    def __init__(self, table: Sequence[Sequence[Any]] | np.ndarray) -> None:
        rows = [list(row) for row in table]
        if not rows or len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
            raise UserError("ratings: need a table of items × raters with at least two raters and rows of one length")
        present = {value for row in rows for value in row if not _missing(value)}
        try:
            self.values: list[Any] = sorted(present)
        except TypeError:
            raise UserError("ratings: text and numbers are mixed; use one kind") from None
        number = {value: place for place, value in enumerate(self.values)}
        self.codes = np.array([[-1 if _missing(v) else number[v] for v in row] for row in rows], dtype=np.int64)

    def counts(self) -> np.ndarray:
        """[N, V] float64: how many raters put item n into category v."""
        return np.stack([(self.codes == v).sum(axis=1) for v in range(len(self.values))], axis=1).astype(np.float64)

    def numbers(self) -> np.ndarray:
        """[V] the categories as numbers.

        Raises:
            UserError: they are not numbers.
        """
        try:
            return np.array([float(value) for value in self.values])
        except (TypeError, ValueError):
            raise UserError(f"ratings: interval and ratio levels need numbers, got {self.values[0]!r}") from None


def cohen_kappa(
    first: Sequence[Any], second: Sequence[Any], weighting: Weighting | None = None, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Cohen's kappa of two raters [N]; `weighting` counts a near miss as less than a far one (by category rank)."""
    ratings = Ratings(list(zip(first, second, strict=True)))
    both = (ratings.codes >= 0).all(axis=1)
    pairs, size = ratings.codes[both], len(ratings.values)
    distance = _rank_distance(size, weighting)
    cells = pairs[:, 0] * size + pairs[:, 1] if len(pairs) else np.zeros(0, dtype=np.int64)

    def kappa(weights: np.ndarray) -> float:
        table = np.bincount(cells, weights, minlength=size * size).reshape(size, size)
        return _beyond_chance((distance * table).sum() * table.sum(), distance, table.sum(axis=1), table.sum(axis=0))

    return _over_items(kappa, len(pairs), draws, seed)


def fleiss_kappa(table: Sequence[Sequence[Any]] | np.ndarray, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Fleiss' kappa of a table [N, R]; items that lack a rating are left out (alpha is made for those)."""
    ratings = Ratings(table)
    counts = ratings.counts()[(ratings.codes >= 0).all(axis=1)]
    raters = ratings.codes.shape[1]
    agree = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))

    def kappa(weights: np.ndarray) -> float:
        share = weights @ counts / (weights.sum() * raters)
        chance = float((share**2).sum())
        return _ratio(1 - float(weights @ agree / weights.sum()), 1 - chance)

    return _over_items(kappa, len(counts), draws, seed)


def krippendorff_alpha(
    table: Sequence[Sequence[Any]] | np.ndarray, level: Level = "nominal", draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Krippendorff's alpha of a table [N, R] with missing values.

    Raises:
        UserError: an unknown `level`, or text at an interval or ratio level.
    """
    if level not in LEVELS:
        raise UserError(f"level: {level!r} must be one of {', '.join(LEVELS)}")
    ratings = Ratings(table)
    counts = ratings.counts()
    counts = counts[counts.sum(axis=1) >= 2]
    numbers = ratings.numbers() if level in ("interval", "ratio") else np.arange(len(ratings.values), dtype=np.float64)
    per_item = counts.sum(axis=1) - 1

    def alpha(weights: np.ndarray) -> float:
        scaled = counts * (weights / per_item)[:, None]
        together = scaled.T @ counts - np.diag(scaled.sum(axis=0))  # coincidences of values within items, [V, V]
        marginal = together.sum(axis=0)
        squared = _distance(level, numbers, marginal)
        expected = float(marginal @ squared @ marginal)
        return _ratio(float((together * squared).sum()) * (marginal.sum() - 1), expected)

    return _over_items(alpha, len(counts), draws, seed)


def pairwise_cohen(
    table: Sequence[Sequence[Any]] | np.ndarray, draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimate]:
    """Cohen's kappa of every pair of raters of a table [N, R], keyed "1-2", "1-3" …, raters counted from 1."""
    columns = list(zip(*[list(row) for row in table], strict=True))
    return {
        f"{a + 1}-{b + 1}": cohen_kappa(columns[a], columns[b], draws=draws, seed=seed)
        for a in range(len(columns))
        for b in range(a + 1, len(columns))
    }


def read_ratings(path: Path, raters: Sequence[str]) -> list[list[Any]]:
    """Table [N, R] from a JSON list or JSON lines of items, each rater's label under its own key.

    Raises:
        UserError: the file is not such a list, fewer than two raters are named, or a rater is in no row.
    """
    if len(raters) < 2:
        raise UserError(f"--raters {','.join(raters)}: name at least two keys, comma-separated")
    rows = read_json_rows(path)
    if any(not isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: every row must be a mapping with the raters' keys")
    for rater in raters:
        if all(row.get(rater) is None for row in rows):
            raise UserError(f"{path}: no row has a label under {rater!r}; keys: {', '.join(map(str, rows[0]))}"[:300])
    return [[row.get(rater) for rater in raters] for row in rows]


def agreement_report(
    table: Sequence[Sequence[Any]], raters: Sequence[str], level: str = "nominal", draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimate]:
    """All coefficients of a table [N, R] by name: "cohen a b" for every pair, "fleiss", "alpha (level)"."""
    found = {
        f"cohen {raters[int(pair[0]) - 1]} {raters[int(pair[1]) - 1]}": estimate
        for pair, estimate in ((key.split("-"), value) for key, value in pairwise_cohen(table, draws, seed).items())
    }
    found["fleiss"] = fleiss_kappa(table, draws, seed)
    found[f"alpha ({level})"] = krippendorff_alpha(table, cast(Level, level), draws, seed)
    return found


def _over_items(statistic: Any, items: int, draws: int, seed: int) -> Estimate:
    if items == 0:
        return Estimate(value=math.nan, se=math.nan, low=math.nan, high=math.nan)
    return bootstrap(statistic, items, draws, seed)


def _beyond_chance(observed: float, distance: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    return _ratio(float(observed), float(rows @ distance @ columns))


def _ratio(observed: float, expected: float) -> float:
    """1 - observed / expected disagreement; NaN where chance alone leaves none."""
    return 1 - observed / expected if expected > 1e-12 else math.nan


def _rank_distance(size: int, weighting: Weighting | None) -> np.ndarray:
    gap = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(np.float64)
    if weighting is None:
        return (gap > 0).astype(np.float64)
    if weighting not in ("linear", "quadratic"):
        raise UserError(f"weighting: {weighting!r} must be linear or quadratic")
    return gap if weighting == "linear" else gap**2


def _distance(level: Level, numbers: np.ndarray, marginal: np.ndarray) -> np.ndarray:
    """[V, V] squared distances of Krippendorff 2011, section F; the ordinal ones depend on how often values occur."""
    if level == "nominal":
        return 1.0 - np.eye(len(numbers))
    if level == "ordinal":
        middle = np.cumsum(marginal) - marginal / 2  # ranks of the values' midpoints
        return np.subtract.outer(middle, middle) ** 2
    gap = np.subtract.outer(numbers, numbers)
    if level == "interval":
        return gap**2
    total = np.add.outer(numbers, numbers)
    return np.divide(gap, total, out=np.zeros_like(gap), where=total != 0) ** 2


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))
