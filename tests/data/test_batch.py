"""How samples are laid into rows, by hand."""

from __future__ import annotations

import pytest
import torch

from sekkei.data.batch import Sample, lay_out


def test_rows_by_hand() -> None:
    first = Sample(ids=[10, 11, 12, 13], per_token={"advantages": [9.0, 0.1, 0.2, 0.3]}, per_segment={"sign": 1.0})
    second = Sample(ids=[20, 21, 22], weights=[5.0, 0.0, 0.5], per_segment={"sign": -1.0})
    third = Sample(ids=[30, 31])
    batch = lay_out([[first, second], [third]], 6)
    assert batch.ids.tolist() == [[10, 11, 12, 20, 21, 0], [30, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[11, 12, 13, -100, 22, -100], [31, -100, -100, -100, -100, -100]]
    assert batch.mask.tolist() == [[1, 1, 1, 0, 0.5, 0], [1, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, -1], [0, -1, -1, -1, -1, -1]]
    assert set(batch.extra) == {"advantages", "sign"}
    expected = torch.tensor([[0.1, 0.2, 0.3, 0, 0, 0], [0] * 6])
    assert torch.equal(batch.extra["advantages"], expected)
    assert batch.extra["sign"].tolist() == [[1, -1], [0, 0]]
    kinds = {x.dtype for x in (batch.ids, batch.labels, batch.positions, batch.segments)}
    assert kinds == {torch.int64}
    assert {batch.mask.dtype, batch.extra["sign"].dtype} == {torch.float32}


def test_the_width_of_segments_can_be_given() -> None:
    sample = Sample(ids=[1, 2], per_segment={"sign": 1.0})
    assert lay_out([[sample]], 2, 3).extra["sign"].tolist() == [[1, 0, 0]]
    assert lay_out([[sample, sample]], 2).extra["sign"].tolist() == [[1, 1]]


@pytest.mark.parametrize(("tokens", "segments"), [(3, None), (4, 1)])
def test_what_does_not_fit_is_refused(tokens: int, segments: int | None) -> None:
    with pytest.raises(ValueError, match="row 1 needs more"):
        lay_out([[Sample(ids=[1, 2])], [Sample(ids=[1, 2, 3]), Sample(ids=[1, 2, 3])]], tokens, segments)


def test_more_fields_and_another_device() -> None:
    batch = lay_out([[Sample(ids=[1, 2])]], 2)
    wider = batch.with_extra(old=torch.ones(1, 2)).with_extra(new=torch.zeros(1, 2))
    assert set(wider.extra) == {"old", "new"}
    assert set(batch.extra) == set()
    moved = wider.to(torch.device("meta"))
    fields = (moved.ids, moved.labels, moved.mask, moved.positions, moved.segments, *moved.extra.values())
    assert {x.device.type for x in fields} == {"meta"}
    assert set(moved.extra) == {"old", "new"}
