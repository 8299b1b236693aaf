"""One training step seen storage by storage: what ZeRO-3 gathers, and when it lets go; the counting itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from sekkei.prove.timeline import Case, Events, Timeline, timelines
from sekkei.report import pictures

CASE = Case(ranks=2, layers=4, width=64)


@pytest.fixture(scope="module")
def found() -> list[Timeline]:
    return timelines(CASE)


def test_storages_are_counted_once_and_shrinking_is_seen() -> None:
    with Events() as events:
        kept = torch.zeros(100)  # 400 bytes
        view = kept.view(10, 10) + 0  # 400 more, the view none
        del view
        kept.untyped_storage().resize_(0)
        other = torch.ones(10)
    live, gathered = events.curves()
    assert max(live) == 800
    assert max(gathered) == 400  # only what was shrunk in place and lived on
    assert live[-1] == other.nbytes
    assert gathered[-1] == 0


def test_zero_3_holds_its_part_and_gathers_block_by_block(found: list[Timeline]) -> None:
    plain, sharded = found
    assert (plain.held, max(plain.gathered)) == (plain.whole, 0)
    assert sharded.held == pytest.approx(sharded.whole / CASE.ranks, rel=0.01)
    block = (sharded.whole - 2 * 64 * 64 * 4) / CASE.layers  # without embedding and head
    assert block < max(sharded.gathered) < 1.5 * block + 2 * 64 * 64 * 4  # one block at a time, and the root
    assert max(sharded.gathered) < 0.6 * sharded.whole


def test_gathered_parameters_are_discarded_at_once(found: list[Timeline]) -> None:
    """Up and down once per block in the forward pass, and again in the backward pass; nothing is left after it."""
    sharded = found[1]
    half = max(sharded.gathered) / 2
    low = [value < half for value in sharded.gathered]
    forward = low[: sharded.backward]
    backward = low[sharded.backward : sharded.optimizer]
    assert sum(before and not now for before, now in itertools.pairwise(forward)) == CASE.layers
    assert CASE.layers - 1 <= sum(before and not now for before, now in itertools.pairwise(backward))
    assert max(sharded.gathered[sharded.optimizer + 1 :]) == 0


def test_less_is_alive(found: list[Timeline]) -> None:
    plain, sharded = found
    assert sharded.live[0] == pytest.approx(plain.live[0] / CASE.ranks, rel=0.02)  # weights and moments
    assert max(sharded.live) < 0.75 * max(plain.live)
    for line in found:
        assert line.live[-1] == pytest.approx(line.live[0], rel=0.35)
        assert 0 < line.backward < line.optimizer < len(line.live)


def test_the_picture_shows_the_peaks(found: list[Timeline]) -> None:
    curves = [pictures.Curve(f.layout, f.live, f.gathered, f.backward, f.optimizer) for f in found]
    text = pictures.timelines(curves)
    for line in found:
        assert f"{line.layout}: peak {max(line.live) / 2**20:.1f} MiB" in text
    assert text.count("optimizer</text>") == 2
