"""Seeds are the same everywhere; draws are uniform and do not depend on who else draws."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekkei.core.seed import derive_seed, uniform

parts = st.lists(st.text(max_size=5) | st.integers(-(2**70), 2**70), max_size=4)


@given(parts, parts)
def test_other_parts_other_seed(a: list[str | int], b: list[str | int]) -> None:
    assert 0 <= derive_seed(*a) < 2**63
    assert (derive_seed(*a) == derive_seed(*b)) == (a == b)


def test_seeds_do_not_depend_on_the_process() -> None:
    code = "from sekkei.core.seed import derive_seed; print(derive_seed('laptop', 0, 'sft', 7))"
    for hash_seed in ("1", "2"):
        shown = subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed})
        assert int(shown) == derive_seed("laptop", 0, "sft", 7) == GOLDEN


GOLDEN = 4689559121010651862  # recorded once: a change of it would change every run of every recipe


def test_the_parts_are_kept_apart() -> None:
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    assert derive_seed(1) != derive_seed("1")


@pytest.mark.parametrize("seeds", [np.arange(1000), np.array([derive_seed("x", i) for i in range(1000)])])
def test_draws_are_uniform(seeds: np.ndarray) -> None:
    draws = np.stack([uniform(seeds, counter) for counter in range(100)])  # [100 draws, 1000 streams]
    n = draws.size
    assert draws.min() >= 0
    assert draws.max() < 1
    # Every bound is 4.5 standard deviations: 7e-6 for one check, and the seeds are fixed anyway.
    assert abs(draws.mean() - 0.5) < 4.5 / np.sqrt(12 * n)
    assert abs((draws**2).mean() - 1 / 3) < 4.5 * np.sqrt(4 / 45 / n)
    # Kolmogorov–Smirnov over all draws: P(sqrt(n)·D > 2.2) = 2·exp(-2·2.2²) = 1.3e-4
    ordered = np.sort(draws.ravel())
    assert np.sqrt(n) * np.abs(ordered - (np.arange(n) + 0.5) / n).max() < 2.2
    for a, b in [(draws[:-1], draws[1:]), (draws[:, :-1], draws[:, 1:])]:  # next draw; neighbouring seed
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4.5 / np.sqrt(a.size)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8), st.integers(0, 2**40))
def test_a_draw_does_not_depend_on_the_batch(seeds: list[int], counter: int) -> None:
    together = uniform(np.array(seeds), counter)
    alone = [uniform(np.array([seed]), counter)[0] for seed in seeds]
    assert together.tolist() == alone
    assert uniform(np.array(seeds), np.full(len(seeds), counter)).tolist() == alone
    assert uniform(np.array(seeds, dtype=np.uint64), counter).tolist() == alone
