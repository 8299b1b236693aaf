"""Estimates with intervals, by resampling whole units (items, questions).

Judgements of one question are not independent: its answers are judged in both orders, by several judges, against
several models. So what is drawn with replacement is always the question with all that hangs on it. A resample is
written as weights: how often each unit was drawn (multinomial, n draws of n units); a statistic takes these weights.

    low, high = the 2.5% and 97.5% quantiles of the statistic over resamples     Efron 1979, percentile method

What it does not handle: fewer than about ten units, where no bootstrap can be trusted; the BCa correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

DRAWS = 1000  # resamples: the error of a 2.5% quantile is then about a tenth of the standard error
MIN_FINITE = 0.9  # of the resamples a statistic must be defined in so many, or no interval is given


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its standard error and 95% interval; NaN where undefined."""

    value: float
    se: float
    low: float
    high: float

    def as_json(self, digits: int = 6) -> dict[str, float | None]:
        """Plain numbers, None for NaN, so that the file is strict JSON."""
        return {name: _plain(getattr(self, name), digits) for name in ("value", "se", "low", "high")}

    def scaled(self, factor: float) -> Estimate:
        """The same figure in another unit (a share in per cent)."""
        return Estimate(value=self.value * factor, se=self.se * factor, low=self.low * factor, high=self.high * factor)


def resamples(units: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """`draws` weight vectors [units] float64: how often each unit was drawn. The same seed gives the same draws."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(0, units, size=units), minlength=units).astype(np.float64)


def from_draws(value: float, drawn: np.ndarray) -> Estimate:
    """The estimate whose resampled values are `drawn` [draws]."""
    finite = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or len(finite) < max(2, MIN_FINITE * len(drawn)):
        return Estimate(value=value, se=math.nan, low=math.nan, high=math.nan)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Estimate(value=float(value), se=float(finite.std(ddof=1)), low=float(low), high=float(high))


def bootstrap(statistic: Callable[[np.ndarray], float], units: int, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Value and interval of `statistic`, a function of the units' weights [units]."""
    value = statistic(np.ones(units))
    return from_draws(value, np.array([statistic(weights) for weights in resamples(units, draws, seed)]))


def _plain(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None
