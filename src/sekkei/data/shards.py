"""Token shards: documents as one memory-mapped file of ids per domain and split.

    tokens/docs.train.bin     uint16 (or uint32 for vocabularies above 65,536), documents end to end
    tokens/index.parquet      one row per document: shard, offset, length (in tokens)
    tokens/manifest.json      dtype, documents, tokens and SHA-256 of every file

A domain is a kind of text (docs, code, math …), a split is `train` or `heldout`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sekkei.core import atomic
from sekkei.core.errors import UserError


def write_shards(folder: Path, documents: Mapping[str, Sequence[Sequence[int]]], vocab_size: int) -> dict[str, int]:
    """Write shards named `domain.split` into an existing folder; returns tokens per shard.

    The caller builds the folder aside and renames it (`atomic.new_folder`).
    """
    import pyarrow as pa
    from pyarrow import parquet

    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32).newbyteorder("<")
    names, offsets, lengths = [], [], []
    manifest: dict[str, dict[str, object]] = {}
    for name, docs in documents.items():
        path = folder / f"{name}.bin"
        with atomic.disk_errors(path), path.open("wb") as file:
            offset = 0
            for doc in docs:
                file.write(np.asarray(doc, dtype).tobytes())
                names.append(name)
                offsets.append(offset)
                lengths.append(len(doc))
                offset += len(doc)
        manifest[path.name] = {
            "dtype": dtype.str,
            "documents": len(docs),
            "tokens": offset,
            "sha256": atomic.sha256(path),
        }
    table = pa.table({"shard": names, "offset": pa.array(offsets, pa.int64()), "length": pa.array(lengths, pa.int64())})
    parquet.write_table(table, folder / "index.parquet")
    manifest["index.parquet"] = {"sha256": atomic.sha256(folder / "index.parquet")}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {name: sum(map(len, docs)) for name, docs in documents.items()}


class Shard:
    """One memory-mapped shard: `shard[i]` is document i as an array of ids."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        self.ids, self.offsets, self.lengths = ids, offsets, lengths

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, document: int) -> np.ndarray:
        start = self.offsets[document]
        return self.ids[start : start + self.lengths[document]]


def open_shards(folder: Path) -> dict[str, Shard]:
    """Open all shards of a folder after checking every digest.

    Raises:
        UserError: a file is missing or differs from the manifest.
    """
    from pyarrow import parquet

    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if "index.parquet" not in manifest:
            raise ValueError("manifest.json does not list index.parquet")
        for name, entry in manifest.items():
            if atomic.sha256(folder / name) != entry["sha256"]:
                raise UserError(
                    f"{folder / name}: its checksum differs from manifest.json; run again with --from tokens"
                )
    except (OSError, ValueError, KeyError, TypeError) as error:  # ValueError: no UTF-8, or no JSON
        raise UserError(f"{folder}: no readable token shards ({error}); run again with --from tokens") from None
    table = parquet.read_table(folder / "index.parquet").to_pydict()
    names = np.array(table["shard"])
    offsets, lengths = np.array(table["offset"], np.int64), np.array(table["length"], np.int64)
    shards = {}
    for file, entry in manifest.items():
        if "dtype" not in entry:
            continue
        name = file.removesuffix(".bin")
        here = names == name
        ids = np.memmap(folder / file, entry["dtype"], "r") if entry["tokens"] else np.zeros(0, entry["dtype"])
        shards[name] = Shard(ids, offsets[here], lengths[here])
    return shards
