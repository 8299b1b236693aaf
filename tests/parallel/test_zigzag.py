"""How rows are cut over context-parallel ranks, and put together again."""

from __future__ import annotations

import pytest
import torch

from sekkei.core.errors import ConfigError
from sekkei.data.batch import IGNORED, Batch, Sample, lay_out
from sekkei.parallel.layout import check_length
from sekkei.parallel.zigzag import Order, chunks_of, join, join_batches, shard_batch, take


def batch(tokens: int = 16) -> Batch:
    rows = [[Sample(ids=range(10)), Sample(ids=range(20, 26))], [Sample(ids=range(15), weights=[0, 1, 0] * 5)]]
    laid = lay_out(rows, tokens)
    return laid.with_extra(advantages=torch.rand(2, tokens), rewards=torch.rand(2, 2))


def test_each_rank_holds_one_early_and_one_late_chunk() -> None:
    assert [chunks_of(r, 4) for r in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]
    assert take(torch.arange(16)[None], 1, 4).tolist() == [[2, 3, 12, 13]]
    assert take(torch.arange(8), 1, 2, dim=0, order="contiguous").tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("order", ["zigzag", "contiguous"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_join_is_the_inverse(size: int, order: Order) -> None:
    whole = batch()
    parts = [shard_batch(whole, rank, size, order=order) for rank in range(size)]
    again = join_batches(parts, order=order)
    for name in ("ids", "labels", "mask", "positions", "segments"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
        assert getattr(parts[0], name).shape == (2, 16 // size)
    assert torch.equal(again.extra["advantages"], whole.extra["advantages"])
    assert torch.equal(again.extra["rewards"], whole.extra["rewards"])
    x = torch.rand(3, 2, 16, 5)
    assert torch.equal(join([take(x, r, size, 2, order) for r in range(size)], 2, order), x)


def test_per_segment_extras_stay_whole_and_positions_stay_the_rows_own() -> None:
    part = shard_batch(batch(), 0, 2)
    assert part.extra["rewards"].shape == (2, 2)
    assert part.extra["advantages"].shape == (2, 8)
    assert part.positions[1].tolist() == [0, 1, 2, 3, 12, 13, 0, 0]
    assert part.segments[0].tolist() == [0, 0, 0, 0, 1, 1, -1, -1]


def test_an_extra_that_could_be_either_is_named() -> None:
    odd = batch().with_extra(rewards=torch.rand(2, 16))
    assert shard_batch(odd, 0, 2).extra["rewards"].shape == (2, 8)
    kept = shard_batch(odd, 0, 2, per_segment=["rewards"])
    assert kept.extra["rewards"].shape == (2, 16)
    parts = [shard_batch(odd, rank, 2, per_segment=["rewards"]) for rank in range(2)]
    assert torch.equal(join_batches(parts, per_segment=["rewards"]).extra["rewards"], odd.extra["rewards"])


def test_every_scored_token_is_on_one_rank() -> None:
    whole = batch()
    parts = [shard_batch(whole, rank, 4) for rank in range(4)]
    assert sum(part.mask.sum() for part in parts) == whole.mask.sum()
    assert sum((part.labels != IGNORED).sum() for part in parts) == (whole.labels != IGNORED).sum()


def test_lengths_that_cannot_be_cut() -> None:
    check_length(16, 4)
    check_length(15, 1)
    with pytest.raises(ConfigError) as caught:
        check_length(20, 4)
    assert str(caught.value) == ("layout.cp: 2·cp = 2·4 = 8 must divide the row length: 20 = 2·8 + 4; 16 or 24 would")
    with pytest.raises(ConfigError, match="8 would"):
        check_length(6, 4, "data.tokens")
    with pytest.raises(ConfigError, match="must divide"):
        shard_batch(batch(18), 0, 4)
    with pytest.raises(ConfigError, match="must divide"):
        take(torch.zeros(1, 18), 0, 2)
