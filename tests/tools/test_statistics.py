"""Statistics against figures computed by hand or by counting."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.core.errors import UserError
from sekkei.tools.statistics import bootstrap, majority, pass_at_k, wilson


def test_pass_at_k_by_hand():
    assert pass_at_k(10, 0, 5) == 0.0
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # C(3,2)=3 of C(5,2)=10 pairs hold no right one
    assert pass_at_k(5, 4, 2) == 1.0
    assert pass_at_k(1000, 1, 100) == pytest.approx(0.1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_counts_subsets(n: int, data: st.DataObject):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_majority():
    assert majority(["4", None, "5", "5", None, None]) == "5"
    assert majority(["4", "5", "5", "4"]) == "4"  # a tie: first seen
    assert majority([None, None]) is None
    assert majority([]) is None


def test_wilson_by_hand():
    # z = 1.959964, z^2 = 3.841459: centre (0.5 + 0.192073) / 1.384146 = 0.5, half 0.263406
    assert wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    # At 0 of 10 the upper end is z^2 / (n + z^2).
    assert wilson(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((10 / 13.841459, 1.0), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 10, 0.9)[0] > wilson(5, 10, 0.99)[0]


def test_bootstrap():
    values = [0.0] * 50 + [1.0] * 50
    low, high = bootstrap(values, random.Random(1))
    # The mean of 100 coin flips has a standard error of 0.05.
    assert low == pytest.approx(0.402, abs=0.03)
    assert high == pytest.approx(0.598, abs=0.03)
    assert bootstrap(values, random.Random(1)) == (low, high)
    assert bootstrap(values, random.Random(2)) != (low, high)
    assert bootstrap([3.0], random.Random(0)) == (3.0, 3.0)
    assert bootstrap([1.0, 2.0, 9.0], random.Random(0), statistic=max)[1] == 9.0
    narrow = bootstrap(values, random.Random(1), confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(3, 1, 4), "k=4 must be between 1 and the number of samples n=3"),
        (lambda: pass_at_k(3, 4, 1), "c=4"),
        (lambda: wilson(4, 3), "successes=4"),
        (lambda: wilson(1, 3, 95), "confidence=95"),
        (lambda: bootstrap([], random.Random(0)), "no values"),
        (lambda: bootstrap([1.0], random.Random(0), resamples=5), "resamples=5"),
        (lambda: bootstrap([1.0], random.Random(0), confidence=1.0), "confidence=1.0"),
    ],
)
def test_bad_input_is_refused(call, message: str):
    with pytest.raises(UserError, match=message):
        call()
