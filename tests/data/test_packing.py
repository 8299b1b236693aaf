"""Packing: nothing lost, nothing over, the same every time, and rows that are nearly full."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.core.seed import derive_seed
from sekkei.data.packing import pack


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 60).flatmap(lambda top: st.tuples(st.just(top), st.lists(st.integers(1, top), max_size=80))))
def test_every_index_once_and_no_row_over(given_lengths: tuple[int, list[int]]) -> None:
    capacity, lengths = given_lengths
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < total <= capacity for total in sums)
    assert all(row == sorted(row) for row in rows)
    assert rows == pack(list(lengths), capacity)
    # best fit never opens a row for what an older row could hold: any two rows together are over
    assert all(a + b > capacity for i, a in enumerate(sums) for b in sums[i + 1 :])


def test_best_fit_by_hand() -> None:
    #     6 opens a row, 5 a second, 4 fills the first, 3 joins the second, 2 fills the second
    assert pack([3, 6, 2, 5, 4], 10) == [[1, 4], [0, 2, 3]]
    # 3 goes where least room is left (7 + 3), not where it fits first (6 + 3)
    assert pack([6, 7, 3], 10) == [[1, 2], [0]]
    assert pack([], 10) == []


def test_rows_are_full() -> None:
    rng = random.Random(derive_seed("packing"))
    lengths = [rng.randrange(1, 257) for _ in range(2000)]
    rows = pack(lengths, 256)
    assert sum(lengths) / (256 * len(rows)) > 0.98


@pytest.mark.parametrize("length", [0, -1, 11])
def test_what_no_row_can_hold(length: int) -> None:
    with pytest.raises(ValueError, match=f"sequence 1 has {length} tokens, a row holds 1 to 10"):
        pack([5, length], 10)
