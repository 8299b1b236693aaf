"""Small statistics of evaluations: pass@k, the majority vote, and intervals that say how sure a figure is.

    pass@k   = 1 - C(n - c, k) / C(n, k)        Chen et al. 2021, Evaluating LLMs Trained on Code, eq. 1
    wilson   : the p for which |p - c/n| = z * sqrt(p (1 - p) / n)          Wilson 1927; good at 0%, at 100%, at small n
    bootstrap: quantiles of a statistic over resamples of the values        Efron 1979, the percentile method

What it does not handle: paired comparisons, clustered samples (several answers to one question are not independent:
bootstrap over the questions' means), corrections for many comparisons.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean

from sekkei.core.errors import UserError


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of `k` samples is right, estimated without bias from `c` right ones of `n`.

    Raises:
        UserError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    if not 1 <= k <= n:
        raise UserError(f"pass@k: k={k} must be between 1 and the number of samples n={n}")
    if not 0 <= c <= n:
        raise UserError(f"pass@k: c={c} right samples must be between 0 and n={n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of equally frequent ones the first that was seen. None does not vote.

    Source: self-consistency, Wang et al. 2022. Answers are compared as they are: normalise them first.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__) if votes else None


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a proportion, (low, high) within [0, 1]; (0, 1) when nothing was observed.

    Raises:
        UserError: not 0 <= successes <= n, or `confidence` not strictly between 0 and 1.
    """
    if not 0 <= successes <= n:
        raise UserError(f"wilson: successes={successes} must be between 0 and n={n}")
    _check_confidence("wilson", confidence)
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, scale = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and at n the bound is exact; rounding must not leave 1e-17 there.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def bootstrap(
    values: Sequence[float],
    rng: random.Random,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    statistic: Callable[[Sequence[float]], float] = fmean,
) -> tuple[float, float]:
    """Percentile interval (low, high) of `statistic` over `resamples` draws with replacement.

    Raises:
        UserError: no values, fewer than 100 resamples, or `confidence` not strictly between 0 and 1.
    """
    if not values:
        raise UserError("bootstrap: there are no values; an interval needs at least one")
    if resamples < 100:
        raise UserError(f"bootstrap: resamples={resamples} is too few for quantiles, take 100 or more")
    _check_confidence("bootstrap", confidence)
    drawn = sorted(statistic(rng.choices(values, k=len(values))) for _ in range(resamples))
    tail = (1 - confidence) / 2
    return _quantile(drawn, tail), _quantile(drawn, 1 - tail)


def _quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile with linear interpolation between neighbours (Hyndman and Fan 1996, type 7)."""
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _check_confidence(name: str, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"{name}: confidence={confidence} must lie strictly between 0 and 1, as 0.95 does")
