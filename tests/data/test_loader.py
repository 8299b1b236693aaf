"""The mixture: which tokens stand in row r depends on r alone, no token is lost, no document comes early again."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Sample
from sekkei.data.loader import MIN_PIECE, DomainRows, MixtureLoader
from sekkei.data.shards import Shard

CONTEXT = 32
TOTAL = 400
MIXTURE = {"a": 0.5, "b": 0.3, "c": 0.2}


def shard(lengths: list[int], first: int = 0) -> Shard:
    """Documents whose ids are all different: a token tells where it came from."""
    sizes = np.array(lengths, np.int64)
    ids = np.arange(first, first + sizes.sum(), dtype=np.uint32)
    return Shard(ids, np.cumsum(sizes) - sizes, sizes)


def shards() -> dict[str, Shard]:
    rng = random.Random(derive_seed("loader of the test"))
    found, first = {}, 0
    for name in MIXTURE:
        lengths = [rng.choice([2, 5, 9, 20, 33, 34, 60, 97, 200]) for _ in range(40)]
        found[name] = shard(lengths, first)
        first += sum(lengths)
    return found


SHARDS = shards()
VOCABULARY = sum(int(s.lengths.sum()) for s in SHARDS.values())
TOKEN_BYTES = [token % 5 for token in range(VOCABULARY)]


def loader(seed: int = 1, total: int = TOTAL, mixture: dict[str, float] | None = None) -> MixtureLoader:
    return MixtureLoader(SHARDS, mixture or MIXTURE, CONTEXT, total, seed, TOKEN_BYTES)


def plain(rows: list[list[Sample]]) -> list[list[list[int]]]:
    return [[list(map(int, sample.ids)) for sample in row] for row in rows]


def domain_of(row: list[list[int]]) -> str:
    bounds = np.cumsum([int(s.lengths.sum()) for s in SHARDS.values()])
    (found,) = {list(SHARDS)[int(np.searchsorted(bounds, ids[0], side="right"))] for ids in row}
    return found


def test_a_row_is_a_function_of_its_number() -> None:
    whole = plain(loader().rows(0, TOTAL))
    order = list(range(TOTAL))
    random.Random(0).shuffle(order)
    other = loader()
    assert {r: plain(other.rows(r, 1))[0] for r in order} == dict(enumerate(whole))
    late = loader()  # a resume that starts near the end
    assert plain(late.rows(380, 20)) == whole[380:]
    assert plain(loader(seed=2).rows(0, TOTAL)) != whole
    longer = plain(loader(total=2 * TOTAL).rows(0, TOTAL))
    assert longer == whole  # the length of the stage does not matter


def test_ranks_read_disjoint_rows_of_a_step() -> None:
    whole = loader().batch(40, 8)
    parts = [loader().batch(40 + 2 * rank, 2) for rank in range(4)]
    for name in ("ids", "labels", "mask", "positions", "segments"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert torch.equal(torch.cat([part.extra["bytes"] for part in parts]), whole.extra["bytes"])


def test_every_stretch_holds_the_mixture() -> None:
    domains = [domain_of(row) for row in plain(loader().rows(0, TOTAL))]
    for start in range(0, TOTAL, 40):
        counts = Counter(domains[start : start + 40])
        for name, share in MIXTURE.items():
            assert abs(counts[name] / 40 - share) < 0.08  # 3 rows of 40
    counts = Counter(domains)
    assert all(abs(counts[name] / TOTAL - share) < 0.01 for name, share in MIXTURE.items())


def test_a_share_of_zero_is_never_read() -> None:
    rows = plain(loader(mixture={"a": 0.0, "b": 1.0}).rows(0, 50))
    assert {domain_of(row) for row in rows} == {"b"}


@pytest.mark.parametrize("name", list(MIXTURE))
def test_an_epoch_scores_every_token_once(name: str) -> None:
    """All tokens but each document's first are labels exactly once; only tails of cut documents may be missing."""
    domain = DomainRows(SHARDS[name], name, CONTEXT, seed=3)
    domain.row(0)
    rows = domain.first_row[1]
    labels: Counter[int] = Counter()
    for index in range(rows):
        for sample in domain.row(index):
            ids = [int(token) for token in sample.ids]
            assert ids == list(range(ids[0], ids[0] + len(ids)))  # a stretch of one document
            assert 2 <= len(ids) <= CONTEXT + 1
            labels.update(ids[1:])
    assert set(labels.values()) == {1}
    expected = set()
    for document in range(len(SHARDS[name])):
        ids = [int(token) for token in SHARDS[name][document]]
        tail = (len(ids) - 1) % CONTEXT
        lost = tail if len(ids) - 1 > CONTEXT and tail < MIN_PIECE else 0
        expected.update(ids[1 : len(ids) - lost])
    assert set(labels) == expected
    full = sum(sum(sample.length for sample in domain.row(i)) for i in range(rows)) / (rows * CONTEXT)
    assert full > 0.9


def test_epochs_repeat_the_set_in_another_order() -> None:
    domain = DomainRows(SHARDS["a"], "a", CONTEXT, seed=3)
    domain.row(0)
    rows = domain.first_row[1]
    firsts = [[int(s.ids[0]) for i in range(rows) for s in domain.row(i)]]
    domain.row(rows)
    again = domain.first_row[2] - rows
    firsts.append([int(s.ids[0]) for i in range(rows, rows + again) for s in domain.row(i)])
    assert sorted(firsts[0]) == sorted(firsts[1])
    assert len(set(firsts[0])) == len(firsts[0])
    assert firsts[0] != firsts[1]
    assert domain.passes(0) == 0.0
    assert domain.passes(3 * rows) == 3.0


def test_epochs_of_the_mixture_are_counted() -> None:
    mixed = loader()
    one_pass = {domain.name: (domain.row(0), domain.first_row[1])[1] for domain in mixed.domains}
    assert mixed.epochs(0) == {"a": 0.0, "b": 0.0, "c": 0.0}
    domains = [domain_of(row) for row in plain(mixed.rows(0, TOTAL))]
    for rows in (10, 60, TOTAL):
        read = Counter(domains[:rows])
        assert mixed.epochs(rows) == pytest.approx({name: read[name] / length for name, length in one_pass.items()})
    assert max(mixed.epochs(TOTAL).values()) > 1


def test_no_row_comes_again_before_its_domain_was_read_through() -> None:
    mixed = loader()
    one_pass = {domain.name: (domain.row(0), domain.first_row[1])[1] for domain in mixed.domains}
    rows = plain(mixed.rows(0, TOTAL))
    for name, length in one_pass.items():
        own = [row for row in rows if domain_of(row) == name][:length]
        assert len(own) > 40
        pieces = [tuple(ids) for row in own for ids in row]
        assert len(set(pieces)) == len(pieces)


def test_bytes_are_those_of_the_labels() -> None:
    batch = loader().batch(0, 60)
    inside = batch.labels >= 0
    assert torch.equal(batch.extra["bytes"][inside], (batch.labels[inside] % 5).float())
    assert float(batch.extra["bytes"][~inside].abs().sum()) == 0
    assert bool((~inside).any())


@pytest.mark.parametrize(
    ("key", "mixture"),
    [
        ("stage.mixture.d", {"a": 0.5, "d": 0.5}),
        ("stage.mixture.empty", {"empty": 1.0}),
        ("stage.mixture.single", {"single": 1.0}),
        ("stage.mixture", {"a": 0.5, "b": 0.4}),
        ("stage.mixture", {"a": 1.2, "b": -0.2}),
    ],
)
def test_bad_mixtures(key: str, mixture: dict[str, float]) -> None:
    known = {**SHARDS, "empty": shard([]), "single": shard([1, 1, 0])}
    with pytest.raises(ConfigError, match=f"^{key}: "):
        MixtureLoader(known, mixture, CONTEXT, 10, 1, TOKEN_BYTES, key="stage.mixture")


def test_the_opening_has_a_mixture_of_its_own() -> None:
    opened = MixtureLoader(
        SHARDS, {"a": 0.5, "b": 0.5}, CONTEXT, TOTAL, 1, TOKEN_BYTES, opening={"c": 0.75, "a": 0.25}, opening_rows=100
    )
    names = [opened.domains[i].name for i in opened.choice]
    assert Counter(names[:100]).keys() == {"c", "a"}
    assert abs(names[:100].count("c") - 75) <= 2
    assert Counter(names[100:]).keys() == {"a", "b"}
    assert abs(names[100:].count("a") - 150) <= 2
    # rows of a domain go on where the opening left them
    first_after = names.index("a", 100)
    assert opened.within[first_after] == names[:100].count("a")
    # without one, nothing changes
    assert plain(MixtureLoader(SHARDS, MIXTURE, CONTEXT, 50, 1, TOKEN_BYTES, opening={}).rows(0, 50)) == plain(
        loader(total=50).rows(0, 50)
    )
