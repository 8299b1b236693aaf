"""Intermediate results by the digest of what they depend on: found again if nothing changed, never wrong if it did.

    key = SHA-256 of (kind, code version, parameters, input digest)      file = STORE/ab/abcdef…

An entry is a small JSON head, arrays and tables, closed by its own checksum: a file that a power cut tore is
recognised and made anew. Writes go aside and are renamed; two processes that make the same entry write the same bytes.
Entries are immutable, so a reader needs no lock. `prune` removes what a finished run did not use.

    [8 bytes: length of head] [head: JSON] [body: Arrow streams and raw arrays, as the head lists them] [16: BLAKE2b]

Not handled: sharing a store between machines with different clocks or versions (keys hold the versions).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sekkei.core import atomic

_CHECK = 16
_COUNTER = itertools.count()


@dataclass
class Entry:
    """One result: figures, tables and arrays by name."""

    head: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Store:
    """Entries in a folder.

    Args:
        folder: made when the first entry is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def head(self, key: str) -> dict[str, Any] | None:
        """The head of a sound entry, or None. A torn entry is removed."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if len(data) < 8 + _CHECK or hashlib.blake2b(data[:-_CHECK], digest_size=_CHECK).digest() != data[-_CHECK:]:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # another user's store may be read-only
            os.utime(path)  # used: `prune` leaves it
        return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["head"]

    def get(self, key: str) -> Entry:
        """An entry that `head` found; tables are read, arrays are mapped from the disk."""
        path = self.path(key)
        data = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(data[:8].tobytes(), "little")
        described = json.loads(data[8 : 8 + size].tobytes())
        entry, at = Entry(described["head"]), 8 + size
        for name, length in described["tables"]:
            with pa.ipc.open_stream(pa.py_buffer(data[at : at + length])) as reader:
                entry.tables[name] = reader.read_all()
            at += length
        for name, dtype, shape in described["arrays"]:
            length = int(np.prod(shape)) * np.dtype(dtype).itemsize
            entry.arrays[name] = data[at : at + length].view(dtype).reshape(shape) if length else np.zeros(shape, dtype)
            at += length
        return entry

    def array(self, key: str, name: str) -> np.ndarray:
        """One array of an entry, mapped from the disk."""
        return self.get(key).arrays[name]

    def put(self, key: str, entry: Entry) -> None:
        """Write an entry; a full disk is a UserError."""
        body, tables, arrays = io.BytesIO(), [], []
        for name, table in entry.tables.items():
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(table)
            tables.append([name, sink.tell()])
            body.write(sink.getbuffer())
        for name, array in entry.arrays.items():
            arrays.append([name, array.dtype.str, list(array.shape)])
            body.write(np.ascontiguousarray(array).tobytes())
        head = json.dumps({"head": entry.head, "tables": tables, "arrays": arrays}, ensure_ascii=False).encode()
        head += b" " * (-len(head) % 8)  # arrays begin on their alignment where no table stands before them
        path = self.path(key)
        with atomic.disk_errors(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{key[:16]}.{os.getpid()}.{next(_COUNTER)}.tmp")
            digest = hashlib.blake2b(digest_size=_CHECK)
            try:
                with aside.open("wb") as file:
                    for piece in (len(head).to_bytes(8, "little"), head, body.getbuffer()):
                        file.write(piece)
                        digest.update(piece)
                    file.write(digest.digest())
                os.replace(aside, path)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise

    def now(self) -> float:
        """The time by this folder's own clock."""
        with atomic.disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            stamp = self.folder / ".stamp"
            stamp.write_bytes(b"")
            return stamp.stat().st_mtime

    def prune(self, since: float) -> int:
        """Remove entries that nobody used `since`, and what killed writers left aside; returns how many."""
        removed = 0
        for path in self.folder.glob("??/*"):
            if path.name.endswith(".tmp") or path.stat().st_mtime < since:
                path.unlink(missing_ok=True)
                removed += 1
        return removed


class LazyArrays(Mapping[str, np.ndarray]):
    """The arrays of an entry, opened at each access, so that a corpus of many parts holds no mappings open."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key

    def __getitem__(self, name: str) -> np.ndarray:
        return self.store.array(self.key, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.store.get(self.key).arrays)

    def __len__(self) -> int:
        return len(self.store.get(self.key).arrays)
