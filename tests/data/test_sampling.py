"""Caps on passes hold to the row, long documents come as often as asked, and what is switched off changes nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sekkei.core.errors import ConfigError
from sekkei.data.loader import DomainRows, MixtureLoader
from sekkei.data.sampling import SamplingConfig
from sekkei.data.shards import Shard

CONTEXT = 32


def shard(lengths: list[int], first: int = 0) -> Shard:
    sizes = np.array(lengths, np.int64)
    return Shard(np.arange(first, first + sizes.sum(), dtype=np.uint32), np.cumsum(sizes) - sizes, sizes)


SMALL, MIDDLE, LARGE = shard([33] * 20), shard([33] * 60, 1000), shard([33] * 900, 5000)  # 20, 60, 900 rows a pass
SHARDS = {"small": SMALL, "middle": MIDDLE, "large": LARGE}


def loader(rows: int, mixture: dict[str, float], caps: dict[str, float], **more: object) -> MixtureLoader:
    sampling = SamplingConfig(max_epochs=caps)
    return MixtureLoader(SHARDS, mixture, CONTEXT, rows, 1, [1] * 40_000, sampling=sampling, **more)  # type: ignore[arg-type]


def counts(mixed: MixtureLoader, rows: slice = slice(None)) -> dict[str, int]:
    found = Counter(mixed.choice[rows].tolist())
    return {domain.name: found[i] for i, domain in enumerate(mixed.domains)}


def test_no_source_is_read_more_often_than_its_cap() -> None:
    mixed = loader(1000, {"small": 0.3, "middle": 0.3, "large": 0.4}, {"small": 2, "middle": 2.5})
    assert counts(mixed) == {"small": 40, "middle": 150, "large": 810}
    reads = Counter(int(s.ids[0]) for row in mixed.rows(0, 1000) for s in row)
    assert {reads[i * 33] for i in range(20)} == {2}
    assert {reads[1000 + i * 33] for i in range(60)} == {2, 3}
    for start in range(0, 1000, 100):  # spread over the stage, not used up at its beginning
        assert 2 <= counts(mixed, slice(start, start + 100))["small"] <= 6


def test_what_a_source_may_not_give_the_others_give_in_proportion() -> None:
    mixed = loader(1000, {"small": 0.5, "middle": 0.1, "large": 0.4}, {"small": 1})
    found = counts(mixed)
    assert found["small"] == 20
    assert found["middle"] == pytest.approx(196, abs=3)
    assert found["large"] == pytest.approx(784, abs=3)


def test_a_cap_that_is_not_reached_changes_nothing() -> None:
    mixture = {"small": 0.1, "large": 0.9}
    free, far = loader(300, mixture, {}), loader(300, mixture, {"small": 10, "large": 1})
    assert np.array_equal(free.choice, far.choice)


def test_the_opening_counts() -> None:
    mixture = {"small": 0.5, "large": 0.5}
    mixed = loader(400, mixture, {"small": 3}, opening={"small": 1.0}, opening_rows=25)
    assert counts(mixed)["small"] == 60
    assert counts(mixed, slice(0, 25)) == {"small": 25, "large": 0}
    with pytest.raises(ConfigError, match="lets 20 rows be read, the opening alone asks for 25"):
        loader(400, mixture, {"small": 1}, opening={"small": 1.0}, opening_rows=25)


def test_caps_that_leave_too_little_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sampling.max_epochs: lets 80 of 100 rows be read \(small 20, middle 60\)"):
        loader(100, {"small": 0.5, "middle": 0.5}, {"small": 1, "middle": 1})
    with pytest.raises(ConfigError, match="no such text"):
        loader(10, {"small": 1.0}, {"smal": 1})


def test_long_documents_come_more_often() -> None:
    lengths = [20] * 30 + [100] * 5
    plain = DomainRows(shard(lengths), "a", CONTEXT, 3)
    more = DomainRows(shard(lengths), "a", CONTEXT, 3, SamplingConfig(long_tokens=100, long_times=2.5))
    for epoch, times in enumerate((2, 3, 2, 3)):
        more._next_epoch()
        pieces = Counter(np.concatenate(more.epochs[epoch]).tolist())
        assert {pieces[i] for i in range(30)} == {1}
        assert {pieces[i] for i in range(30, len(more.length))} == {times}
    plain._next_epoch()
    same = DomainRows(shard(lengths), "a", CONTEXT, 3, SamplingConfig(long_tokens=1000, long_times=4))
    same._next_epoch()
    assert all(np.array_equal(a, b) for a, b in zip(plain.epochs[0], same.epochs[0], strict=True))


def test_a_pass_is_the_permutation_that_it_always_was() -> None:
    """Rows of a run that asks for nothing are those of the loader before there was sampling (numpy's own shuffle)."""
    rng = np.random.Generator(np.random.PCG64(7))
    assert np.array_equal(
        np.random.Generator(np.random.PCG64(7)).permutation(np.repeat(np.arange(50), np.ones(50, np.int64))),
        rng.permutation(50),
    )


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"max_epochs": {"docs": 0}}, "max_epochs.docs"),
        ({"long_tokens": -1}, "long_tokens"),
        ({"long_tokens": 10, "long_times": 0.5}, "long_times"),
        ({"long_tokens": 10}, "long_tokens"),
        ({"long_times": 2.0}, "long_tokens"),
    ],
)
def test_bad_values_are_refused(values: dict, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        SamplingConfig(**values)
    assert refused.value.key == key
