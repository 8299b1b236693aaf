"""Planted biases are found: coverage, width beside an oracle, and rankings that come out right."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import t as student

from sekkei.core.errors import UserError
from sekkei.judge.bias import family_of, fit_biases, flip_rates, student_quantile, without_own_family
from sekkei.judge.pairs import Pairs
from sekkei.judge.pooling import DEGREES, SPREAD, pooled
from sekkei.judge.simulate import panel

_file = Path(__file__).parents[2] / "benchmarks" / "judge_bias.py"
_spec = importlib.util.spec_from_file_location("judge_bias", _file)
assert _spec is not None
assert _spec.loader is not None
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)


def check(figures: dict[str, Any], low: float, high: float) -> None:
    for kind in benchmark.KINDS:
        assert low <= figures[kind]["coverage"] <= high, (kind, figures[kind])
        assert figures[kind]["width_ratio"] <= 1.25, (kind, figures[kind])


def test_intervals_cover_what_was_planted() -> None:
    figures = benchmark.run(panels=15, questions=60)
    check(figures, 0.88, 1.0)
    assert figures["corrected_ranking_right"] > figures["raw_ranking_right"] + 2


@pytest.mark.slow
def test_intervals_cover_what_was_planted_in_200_panels() -> None:
    figures = benchmark.run(panels=200, questions=100)
    check(figures, 0.92, 0.98)
    for kind in set(benchmark.KINDS) - {"own_bonus_alone"}:
        assert figures[kind]["width_ratio_all_known"] <= 1.25, "even beside an oracle that knows the quality"
    assert figures["corrected_ranking_right"] > 2 * figures["raw_ranking_right"]


@pytest.mark.slow
def test_pooling_does_not_hide_the_one_judge_that_is_unlike_the_others() -> None:
    figures = benchmark.run(panels=200, questions=100, outlier=1.0)
    assert figures["own_bonus"]["coverage"] >= 0.88  # 92% measured: pulled by the two others, and still mostly right
    assert figures["own_bonus_alone"]["coverage"] >= 0.92


def test_pooling_by_hand() -> None:
    """Two terms, both known to a variance of 1, with tau² = t: their difference shrinks by t / (t + 1), no more."""
    values, covariance = np.array([3.0, -1.0, 5.0]), np.diag([1.0, 1.0, 4.0])
    x, v, (tau,) = pooled(values, covariance, [np.eye(3)[:2], np.eye(3)[2:]])
    assert x[0] + x[1] == pytest.approx(2.0), "the mean is left free"
    assert x[0] - x[1] == pytest.approx(4.0 * tau**2 / (tau**2 + 1))
    assert x[2] == 5.0, "a group of one is left alone"
    assert v[2, 2] == 4.0
    assert v[0, 0] == pytest.approx(0.5 + 0.5 * tau**2 / (tau**2 + 1))  # of the mean, and half of the difference
    # EM stands still where tau² = (sum of squared deviations + their doubt + prior) / (degrees + prior's)
    half = (x[0] - x[1]) / 2
    doubt = tau**2 / (tau**2 + 1)
    assert tau**2 == pytest.approx((2 * half**2 + doubt + DEGREES * SPREAD**2) / (1 + DEGREES), rel=1e-3)


def one_judge(seed: int) -> Pairs:
    """Only the first outsider's judgements: no own candidates, one scale, so a plain logistic regression."""
    drawn = panel(seed, questions=40)
    chosen = drawn.pairs.judge == 3
    kept = drawn.pairs.only(chosen)
    return Pairs(**{**vars(kept), "judges": ["outside-judge"], "judge": np.zeros(len(kept), dtype=int)})


def test_one_judge_equals_clustered_logistic_regression() -> None:
    pairs = one_judge(1)
    fitted = fit_biases(pairs, ["outside"], ["a"] * 6)
    design = np.zeros((len(pairs), 8))
    design[:, 0], design[:, 1] = 1.0, pairs.lean()
    design[np.arange(len(pairs)), 2 + pairs.first] += 1
    design[np.arange(len(pairs)), 2 + pairs.second] -= 1
    peer = sm.Logit(pairs.outcome, np.delete(design, 2, axis=1)).fit(
        disp=0, cov_type="cluster", cov_kwds={"groups": pairs.question}
    )
    judge = fitted.judges[0]
    assert judge.position.value == pytest.approx(peer.params[0], abs=1e-4)
    assert judge.length_slope.value == pytest.approx(peer.params[1], abs=1e-4)
    extra = np.sqrt((len(pairs) - 7) / (len(pairs) - 1))  # statsmodels also corrects for the 7 coefficients
    assert judge.position.se == pytest.approx(peer.bse[0] * extra, rel=1e-4)
    assert judge.length_slope.se == pytest.approx(peer.bse[1] * extra, rel=1e-4)
    others = np.concatenate([[0.0], peer.params[2:]])
    np.testing.assert_allclose([q.value for q in fitted.quality], others - others.mean(), atol=2e-3)


def test_a_family_that_only_its_own_judges_is_refused() -> None:
    drawn = panel(2, questions=20)
    pairs = drawn.pairs.only(drawn.pairs.judge < 1)
    alone = Pairs(**{**vars(pairs), "judges": pairs.judges[:1]})
    with pytest.raises(UserError, match="add a judge of another family"):
        fit_biases(alone, drawn.judge_family[:1], drawn.candidate_family)


def test_flip_rate_counts_both_orders() -> None:
    outcome = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.5, 1.0])
    pairs = Pairs(
        judges=["j"],
        candidates=["a", "b"],
        questions=["w", "x", "y", "z"],
        judge=np.zeros(7, dtype=int),
        question=np.array([0, 0, 1, 1, 2, 2, 3]),
        first=np.array([0, 1, 0, 1, 0, 1, 0]),
        second=np.array([1, 0, 1, 0, 1, 0, 1]),
        length_first=np.ones(7),
        length_second=np.ones(7),
        outcome=outcome,
    )
    flips, both = flip_rates(pairs)
    assert both.tolist() == [3]  # the last question was asked in one order only
    assert flips[0] == pytest.approx((0 + 1 + 0.5) / 3)


def test_own_family_is_left_out_on_request() -> None:
    drawn = panel(4, questions=5)
    rest = without_own_family(drawn.pairs, drawn.judge_family, drawn.candidate_family)
    families = np.array(drawn.candidate_family)
    judged_by_own = np.array(drawn.judge_family)[rest.judge]
    assert not (families[rest.first] == judged_by_own).any()
    assert not (families[rest.second] == judged_by_own).any()
    assert 0 < len(rest) < len(drawn.pairs)


def test_families_and_quantiles() -> None:
    assert family_of("gpt-4o") == family_of("gpt4_turbo") == "gpt"
    assert family_of("my-model", {"my": "house", "my-m": "lab"}) == "lab"
    for degrees in (10, 29, 100, 1000):
        assert student_quantile(degrees) == pytest.approx(student.ppf(0.975, degrees), abs=1e-3)
