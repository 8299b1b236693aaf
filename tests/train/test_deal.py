"""Rows dealt to data ranks: each once, equally many micro-batches of one shape, and what is added weighs nothing."""

from __future__ import annotations

import pytest
import torch

from sekkei.data.batch import IGNORED, Batch
from sekkei.parallel.layout import CHUNKS, Layout
from sekkei.train.deal import deal, padded


def batch(rows: int, tokens: int, first: int, pairs: int = 1) -> Batch:
    """Row r holds the ids `first + r`, so that a row is known by its ids."""
    ids = (torch.arange(rows) + first).unsqueeze(1).expand(rows, tokens).contiguous()
    zeros = torch.zeros_like(ids)
    extra = {"ref": torch.full((rows, pairs), float(first)), "old": ids.double()}
    return Batch(ids=ids, labels=ids, mask=zeros + 1, positions=zeros, segments=zeros, extra=extra)


UPDATE = [batch(3, 8, 1), batch(3, 8, 4, pairs=2), batch(1, 6, 7)]  # seven rows


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(dp=2),
        Layout(dp=4, zero=1),
        Layout(dp=2, cp=2),
        Layout(dp=2, tp=2, sequence_parallel=True),
        Layout(dp=2, microbatches=3),
        *(Layout(pp=2, dp=2, schedule=schedule) for schedule in CHUNKS),
        Layout(pp=4, schedule="interleaved"),
        Layout(dp=16),
    ],
    ids=lambda layout: layout.name,
)
def test_every_row_is_dealt_once(layout: Layout) -> None:
    parts = [deal(UPDATE, layout, rank) for rank in range(layout.dp)]
    shapes = {part.ids.shape for dealt in parts for part in dealt}
    assert len(shapes) == 1, "collectives of the ranks would not match"
    assert len({len(dealt) for dealt in parts}) == 1
    rows, tokens = shapes.pop()
    assert rows <= 3
    assert tokens % (2 * layout.cp if layout.cp > 1 else 1) == 0
    layout.check_micro_batches(len(parts[0]))
    assert len(parts[0]) >= layout.microbatches
    real = [int(row[0]) for dealt in parts for part in dealt for row in part.ids if row[0]]
    assert sorted(real) == [1, 2, 3, 4, 5, 6, 7]
    weight = sum(float(part.mask.sum()) for dealt in parts for part in dealt)
    assert weight == 3 * 8 + 3 * 8 + 6


def test_what_is_added_is_no_token() -> None:
    last = deal(UPDATE, Layout(dp=2), 1)[-1]
    empty = last.ids[:, 0] == 0
    assert empty.any()
    assert (last.labels[empty] == IGNORED).all()
    assert (last.segments[empty] == -1).all()
    assert not last.mask[empty].any()
    short = next(part for part in deal(UPDATE, Layout(), 0) if 7 in part.ids)
    row = int((short.ids[:, 0] == 7).nonzero()[0])
    assert short.mask[row].tolist() == [1] * 6 + [0] * 2
    assert short.segments[row].tolist() == [0] * 6 + [-1] * 2


def test_extras_keep_their_rows() -> None:
    """Per token and per segment alike, widened where another micro-batch has more segments."""
    for part in deal(UPDATE, Layout(dp=2), 0):
        for row in range(part.ids.shape[0]):
            first = {1: 1.0, 2: 1.0, 3: 1.0, 4: 4.0, 5: 4.0, 6: 4.0, 7: 7.0, 0: 0.0}[int(part.ids[row, 0])]
            assert float(part.extra["ref"][row, 0]) == first
            assert part.extra["ref"].shape[1] == 2
            assert part.extra["old"][row, 0] == part.ids[row, 0]


def test_padding_does_not_touch_a_batch_that_is_wide_enough() -> None:
    assert padded(UPDATE[0], 8) is UPDATE[0]
