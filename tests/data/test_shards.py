"""Token shards: what was written comes back, and a damaged file is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sekkei.core.errors import UserError
from sekkei.data.shards import open_shards, write_shards

DOCUMENTS: dict[str, list[list[int]]] = {
    "docs.train": [[1, 2, 3], [4], [], [65_535, 0]],
    "docs.heldout": [[9, 8]],
    "code.train": [],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path, DOCUMENTS, 1 << 16)
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_shards(folder)
    assert "\n" not in str(caught.value)
    assert "--from tokens" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("vocabulary", "kind"), [(1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_a_round_trip(tmp_path: Path, vocabulary: int, kind: str) -> None:
    documents = {**DOCUMENTS, "big.train": [[vocabulary - 1]]}
    assert write_shards(tmp_path, documents, vocabulary) == {
        "docs.train": 6,
        "docs.heldout": 2,
        "code.train": 0,
        "big.train": 1,
    }
    shards = open_shards(tmp_path)
    assert set(shards) == set(documents)
    for name, shard in shards.items():
        assert [shard[i].tolist() for i in range(len(shard))] == documents[name]
        assert shard.ids[0].dtype == np.dtype(kind)
    assert (tmp_path / "docs.train.bin").stat().st_size == 6 * np.dtype(kind).itemsize


def test_the_same_documents_give_the_same_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    write_shards(again, DOCUMENTS, 1 << 16)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize("name", ["docs.train.bin", "docs.heldout.bin", "index.parquet"])
def test_a_flipped_bit_or_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert f"{folder / name}: its checksum differs" in refused(folder)
    (folder / name).write_bytes(whole + b"\0")
    assert f"{folder / name}: its checksum differs" in refused(folder)
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"7", b"{}", b'{"index.parquet": {}}', b'{"index.parquet": 3}']
)
def test_a_broken_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert str(folder) in refused(folder)


def test_nothing_there(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refused(tmp_path / "none")
