"""Agreement coefficients against other people's implementations, and on real annotators."""

from __future__ import annotations

import json
import math
from pathlib import Path

import krippendorff as peer
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import fleiss_kappa as peer_fleiss

from sekkei.core.errors import UserError
from sekkei.judge.agreement import LEVELS, cohen_kappa, fleiss_kappa, krippendorff_alpha, pairwise_cohen

PANDALM = Path(__file__).parents[2].parent / "shared" / "data" / "pandalm_testset.json"


def table(seed: int, missing: float = 0.0) -> np.ndarray:
    """[N, R] ratings 1 … V of raters that agree more or less, NaN where missing."""
    rng = np.random.default_rng(seed)
    items, raters, values = rng.integers(15, 60), rng.integers(2, 6), rng.integers(2, 7)
    truth = rng.integers(1, values + 1, size=(items, 1))
    rated = np.where(rng.random((items, raters)) < 0.6, truth, rng.integers(1, values + 1, size=(items, raters)))
    return np.where(rng.random(rated.shape) < missing, np.nan, rated.astype(float))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(8))
def test_alpha_equals_krippendorff_with_missing_values(seed: int, level: str) -> None:
    ratings = table(seed, missing=0.25)
    expected = peer.alpha(reliability_data=ratings.T, level_of_measurement=level)
    assert krippendorff_alpha(ratings, level, draws=2).value == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_fleiss_equals_statsmodels_on_items_that_all_rated(seed: int) -> None:
    ratings = table(seed, missing=0.1)
    whole = ratings[np.isfinite(ratings).all(axis=1)].astype(int)
    assert len(whole) < len(ratings)
    expected = peer_fleiss(aggregate_raters(whole)[0])
    assert fleiss_kappa(ratings, draws=2).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighting", [None, "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(8))
def test_cohen_equals_scikit_learn(seed: int, weighting: str | None) -> None:
    ratings = table(seed, missing=0.2)[:, :2]
    whole = ratings[np.isfinite(ratings).all(axis=1)].astype(int)
    # all values that occur, also those of left-out items, number the categories in both
    labels = sorted({int(v) for v in ratings[np.isfinite(ratings)]})
    expected = cohen_kappa_score(whole[:, 0], whole[:, 1], labels=labels, weights=weighting)
    found = cohen_kappa(ratings[:, 0], ratings[:, 1], weighting, draws=2)  # type: ignore[arg-type]
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_text_labels_and_none() -> None:
    rows = [["a", "a", None], ["b", "b", "b"], ["a", "b", "a"], [None, None, "b"]]
    as_numbers = [[{"a": 0.0, "b": 1.0}.get(v, math.nan) for v in row] for row in rows]
    assert krippendorff_alpha(rows).value == krippendorff_alpha(as_numbers).value
    with pytest.raises(UserError, match="need numbers"):
        krippendorff_alpha(rows, "interval")
    with pytest.raises(UserError, match="mixed"):
        krippendorff_alpha([["a", 1], ["b", 2]])
    with pytest.raises(UserError, match="at least two raters"):
        fleiss_kappa([[1], [2]])


def test_without_variation_agreement_is_undefined() -> None:
    same = np.ones((20, 3))
    for found in (fleiss_kappa(same), krippendorff_alpha(same), cohen_kappa(same[:, 0], same[:, 1])):
        assert math.isnan(found.value)
        assert found.as_json()["low"] is None


def test_intervals_cover_the_value_of_the_population() -> None:
    """The true kappa is that of a very large table; 95% intervals of small ones hold it about 95% of the time."""
    rng = np.random.default_rng(5)

    def draw(items: int) -> np.ndarray:
        truth = rng.integers(0, 3, size=(items, 1))
        return np.where(rng.random((items, 3)) < 0.7, truth, rng.integers(0, 3, size=(items, 3)))

    true = krippendorff_alpha(draw(200_000), draws=2).value
    found = [krippendorff_alpha(draw(120), draws=300, seed=seed) for seed in range(100)]
    inside = sum(e.low <= true <= e.high for e in found)
    assert 88 <= inside <= 100  # 95 expected; both bounds are outside of ±3 standard deviations
    widths = [e.high - e.low for e in found]
    assert 3.5 < np.median(widths) / np.std([e.value for e in found]) < 4.4  # 2 · 1.96 standard errors


@pytest.mark.skipif(not PANDALM.exists(), reason="../shared/data/pandalm_testset.json is not there")
def test_pandalm_annotators() -> None:
    """The three people of PandaLM's test set: the kappas of its README, to its two digits."""
    rows = [[item[f"annotator{k}"] for k in (1, 2, 3)] for item in json.loads(PANDALM.read_text())]
    assert len(rows) == 999
    kappas = {pair: round(found.value, 2) for pair, found in pairwise_cohen(rows, draws=2).items()}
    assert kappas == {"1-2": 0.85, "1-3": 0.88, "2-3": 0.86}
    fleiss = fleiss_kappa(rows)
    assert round(fleiss.value, 3) == 0.864
    assert fleiss.low < 0.864 < fleiss.high
    assert 0.03 < fleiss.high - fleiss.low < 0.06
