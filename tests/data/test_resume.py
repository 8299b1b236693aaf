"""The loader's state says where each source stands; a resume goes on to the row, and refuses other data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sekkei.core.errors import UserError
from sekkei.data.loader import MixtureLoader
from sekkei.data.sampling import SamplingConfig
from sekkei.data.shards import Shard, Writer, open_shards
from sekkei.parallel.layout import Layout
from sekkei.train.deal import deal

CONTEXT, ROWS = 24, 200
MIXTURE = {"a": 0.6, "b": 0.4}


def write(folder: Path, seed: int = 1, file_tokens: int = 400) -> dict[str, Shard]:
    """Two sources in files of some 400 tokens."""
    rng = np.random.Generator(np.random.PCG64(seed))
    folder.mkdir()
    writer = Writer(folder, 5000, file_tokens)
    for name in MIXTURE:
        sizes = rng.integers(2, 90, size=40)
        writer.write(f"{name}.train", (rng.integers(0, 5000, size=n).tolist() for n in sizes))
    writer.close()
    return {name.removesuffix(".train"): shard for name, shard in open_shards(folder).items()}


def loader(shards: dict[str, Shard], **more: object) -> MixtureLoader:
    values = {"mixture": MIXTURE, "context": CONTEXT, "total_rows": ROWS, "seed": 5, "token_bytes": [1] * 5000}
    return MixtureLoader(shards, **{**values, **more})  # type: ignore[arg-type]


def test_a_resumed_loader_yields_what_the_uninterrupted_one_would(tmp_path: Path) -> None:
    whole = loader(write(tmp_path / "one"))
    batches = [whole.batch(row, 10) for row in range(0, ROWS, 10)]
    state = json.loads(json.dumps(whole.state(130)))
    resumed = loader(write(tmp_path / "two"))
    first = resumed.resume(state)
    assert first == 130
    for before, row in zip(batches[13:], range(first, ROWS, 10), strict=True):
        again = resumed.batch(row, 10)
        assert all(torch.equal(getattr(before, name), getattr(again, name)) for name in ("ids", "labels", "positions"))


def test_the_state_names_the_place_of_the_next_token(tmp_path: Path) -> None:
    shards = write(tmp_path / "tokens")
    mixed = loader(shards)
    files = set()
    for row in range(0, ROWS - 1):
        place = mixed.state(row)["sources"][mixed.domains[mixed.choice[row]].name]
        ids = np.fromfile(tmp_path / "tokens" / f"{place['shard']}.bin", "<u2")
        table = [(o, n) for s, o, n in index(tmp_path / "tokens") if s == place["shard"]]
        offset, length = table[place["document"]]
        expected = ids[offset + place["offset"] : offset + length][: CONTEXT + 1]
        (sample, *_) = mixed.rows(row, 1)[0]
        assert sample.ids.tolist() == expected[: len(sample.ids)].tolist()
        files.add(place["shard"])
    assert len(files) > 4  # several files of both sources


def index(folder: Path) -> list[tuple[str, int, int]]:
    from pyarrow import parquet

    return [tuple(row.values()) for row in parquet.read_table(folder / "index.parquet").to_pylist()]


def test_other_data_are_refused_and_named(tmp_path: Path) -> None:
    shards = write(tmp_path / "one")
    state = loader(shards).state(50)
    other = {"a": shards["a"], "b": write(tmp_path / "two", seed=2)["b"]}
    cases = {
        "source b": loader(other),
        "seed": loader(shards, seed=6),
        "mixture": loader(shards, mixture={"a": 0.5, "b": 0.5}),
        "context": loader(shards, context=16),
        "sampling": loader(shards, sampling=SamplingConfig(long_tokens=50, long_times=2)),
    }
    for named, changed in cases.items():
        with pytest.raises(UserError, match=rf"long.mixture: .*row 50 of other data \({named} changed\)"):
            changed.resume(state, "long.mixture")
    assert loader(shards, total_rows=2 * ROWS).resume(state) == 50  # a longer stage goes on with the same rows
    state["sources"]["a"]["offset"] += 1
    with pytest.raises(UserError, match="not where the checkpoint says"):
        loader(shards).resume(state)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_the_union_of_data_ranks_is_the_same_at_every_world_size(tmp_path: Path, world: int) -> None:
    """Rows as ranks get them from the same update: together, without the padding rows, each row once."""
    mixed = loader(write(tmp_path / "tokens"))
    layout = Layout(dp=world)
    for row in range(0, 30, 10):
        update = [mixed.batch(row, 4), mixed.batch(row + 4, 4), mixed.batch(row + 8, 2)]
        whole = sorted(ids for batch in update for ids in rows_of(batch))
        parts = [rows_of(batch) for rank in range(world) for batch in deal(update, layout, rank)]
        assert sorted(ids for part in parts for ids in part) == whole


def rows_of(batch: object) -> list[list[int]]:
    ids, segments = batch.ids, batch.segments  # type: ignore[attr-defined]
    return [row[here >= 0].tolist() for row, here in zip(ids, segments) if (here >= 0).any()]
