"""Token shards: documents as memory-mapped files of ids, written as they come, found again by an index.

    tokens/docs.train.bin          uint16 (or uint32 for vocabularies above 65,536), documents end to end
    tokens/docs.train.00001.bin    the next file of the same shard, where one is full
    tokens/index.parquet           one row per document: shard (its file), offset, length (in tokens)
    tokens/manifest.json           dtype, documents, tokens and SHA-256 of every file

A domain is a kind of text (docs, code, math …), a split is `train` or `heldout`. Documents are taken one by one and
never held: memory is the index (20 bytes a document).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sekkei.core import atomic
from sekkei.core.errors import UserError

FILE_TOKENS = 1 << 30  # then the next file begins: 2 or 4 GB


class Writer:
    """Writes shards into an existing folder, document by document; `close` writes index and manifest.

    The caller builds the folder aside and renames it (`atomic.new_folder`).

    Args:
        vocab_size: decides the width of an id. file_tokens: a file that holds so many is full.
    """

    def __init__(self, folder: Path, vocab_size: int, file_tokens: int = FILE_TOKENS) -> None:
        self.folder, self.file_tokens = folder, file_tokens
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32).newbyteorder("<")
        self.tokens: dict[str, int] = {}
        """Tokens of every shard so far."""
        self._files: list[str] = []
        self._rows: tuple[list[int], list[int], list[int]] = ([], [], [])  # file, offset, length
        self._manifest: dict[str, dict[str, object]] = {}

    def write(self, name: str, documents: Iterable[Sequence[int]]) -> None:
        """Write all documents of shard `name` ("domain.split")."""
        source = iter(documents)
        count, more = 0, True
        self.tokens[name] = 0
        while more:
            stem = f"{name}.{count:05d}" if count else name
            more = self._file(stem, source)
            self.tokens[name] += int(self._manifest[f"{stem}.bin"]["tokens"])  # type: ignore[call-overload]
            count += 1

    def _file(self, stem: str, source: Any) -> bool:
        """Write one file; True where it is full."""
        path = self.folder / f"{stem}.bin"
        offset = documents = 0
        with atomic.disk_errors(path), path.open("wb") as file:
            for document in source:
                file.write(np.asarray(document, self.dtype).tobytes())
                for column, value in zip(self._rows, (len(self._files), offset, len(document)), strict=True):
                    column.append(value)
                offset += len(document)
                documents += 1
                if offset >= self.file_tokens:
                    break
        self._files.append(stem)
        self._manifest[path.name] = {
            "dtype": self.dtype.str,
            "documents": documents,
            "tokens": offset,
            "sha256": atomic.sha256(path),
        }
        return offset >= self.file_tokens

    def close(self) -> None:
        """Write the index and, last, the manifest."""
        import pyarrow as pa
        from pyarrow import parquet

        shard = pa.DictionaryArray.from_arrays(pa.array(self._rows[0], pa.int32()), pa.array(self._files, pa.string()))
        offset, length = (pa.array(column, pa.int64()) for column in self._rows[1:])
        table = pa.table({"shard": shard.cast(pa.string()), "offset": offset, "length": length})
        parquet.write_table(table, self.folder / "index.parquet")
        self._manifest["index.parquet"] = {"sha256": atomic.sha256(self.folder / "index.parquet")}
        text = json.dumps(self._manifest, indent=1, sort_keys=True) + "\n"
        (self.folder / "manifest.json").write_text(text, encoding="utf-8")


def write_shards(folder: Path, documents: Mapping[str, Iterable[Sequence[int]]], vocab_size: int) -> dict[str, int]:
    """Write shards named `domain.split` into an existing folder; returns tokens per shard."""
    writer = Writer(folder, vocab_size)
    for name, docs in documents.items():
        writer.write(name, docs)
    writer.close()
    return writer.tokens


class Shard:
    """The documents of one domain and split: `shard[i]` is document i as an array of ids.

    Args:
        ids: the tokens of one file, or of several, memory-mapped. offsets, lengths: [D] of each document in its file.
        files: names of the files. file_of: [D] the file of each document, ascending; None: the first.
        content: digest of the tokens, where it is known.
    """

    def __init__(
        self,
        ids: np.ndarray | Sequence[np.ndarray],
        offsets: np.ndarray,
        lengths: np.ndarray,
        files: Sequence[str] = ("",),
        file_of: np.ndarray | None = None,
        content: str = "",
    ) -> None:
        self.ids = [ids] if isinstance(ids, np.ndarray) else list(ids)
        self.offsets, self.lengths, self.files, self.content = offsets, lengths, files, content
        self.file_of = np.zeros(len(offsets), np.int64) if file_of is None else file_of

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, document: int) -> np.ndarray:
        start = self.offsets[document]
        return self.ids[self.file_of[document]][start : start + self.lengths[document]]

    def place(self, document: int) -> tuple[str, int]:
        """(file, number in it) of a document."""
        file = int(self.file_of[document])
        return self.files[file], document - int(np.searchsorted(self.file_of, file))

    def digest(self) -> str:
        """What names its content: the digest of its files, or of its cuts where there is none."""
        return self.content or atomic.sha256_json([self.offsets.tolist(), self.lengths.tolist()])


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
    table = parquet.read_table(folder / "index.parquet")
    stems = np.asarray(table["shard"].combine_chunks().dictionary_encode().indices)
    order = [str(name) for name in table["shard"].combine_chunks().dictionary_encode().dictionary.to_pylist()]
    offsets, lengths = (np.asarray(table[name]).astype(np.int64) for name in ("offset", "length"))
    groups: dict[str, list[str]] = {}
    for file, entry in sorted(manifest.items()):
        if "dtype" in entry:
            groups.setdefault(".".join(file.split(".")[:2]), []).append(file)
    return {name: _shard(folder, files, manifest, (stems, order, offsets, lengths)) for name, files in groups.items()}


def _shard(folder: Path, files: list[str], manifest: Mapping[str, Any], index: tuple[Any, ...]) -> Shard:
    """One shard of the files that hold it, in their order."""
    stems, order, offsets, lengths = index
    files.sort(key=lambda file: file.removesuffix(".bin"))
    names = [file.removesuffix(".bin") for file in files]
    mapped = [
        np.memmap(folder / file, entry["dtype"], "r") if entry["tokens"] else np.zeros(0, entry["dtype"])
        for file in files
        for entry in (manifest[file],)
    ]
    where = [np.flatnonzero(stems == order.index(name)) if name in order else np.zeros(0, np.int64) for name in names]
    here = np.concatenate(where)
    file_of = np.repeat(np.arange(len(files)), list(map(len, where)))
    content = atomic.sha256_json([manifest[file]["sha256"] for file in files])
    return Shard(mapped, offsets[here], lengths[here], names, file_of, content)
