"""Rows of Parquet and JSON-lines files as pages, one batch in memory at a time.

    Parquet   column `text` (and `id`, `meta` columns) by row groups           ids: FILE#ROW
    JSONL     one object per line, key `text`                                  ids: FILE#LINE

A file without the column, and a line that is no object, become ledger rows (read.missing_column, read.not_json …)
and the rest goes on. A line longer than the limit is skipped without being held in memory.

Not handled: nested keys, CSV.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sekkei.text.document import EXCERPT_CHARS, Dropped
from sekkei.text.page import Page
from sekkei.text.read.stream import Unpacked
from sekkei.text.read.warc import fault_row

if TYPE_CHECKING:
    from sekkei.text.read.files import Read

_BATCH = 256  # rows; a batch of the largest allowed texts is what bounds memory


def read_parquet(path: Path, name: str, source: str, options: Read) -> Iterator[Page | Dropped]:
    """Pages of one Parquet file."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        yield Dropped(name, "read.damaged", 0.0, 0.0, _first_line(error))
        return
    with file:
        columns = file.schema_arrow.names
        if options.text not in columns:
            yield missing(name, options.text, columns)
            return
        wanted = [options.text, *(c for c in options.meta if c in columns)]
        ordinal = 0
        try:
            for batch in file.iter_batches(_BATCH, columns=wanted):
                for row in batch.to_pylist():
                    yield row_page(f"{name}#{ordinal}", row, source, options)
                    ordinal += 1
        except (pa.ArrowInvalid, OSError) as error:
            yield Dropped(f"{name}#{ordinal}", "read.damaged", float(ordinal), 0.0, _first_line(error))


def read_jsonl(path: Path, name: str, source: str, options: Read) -> Iterator[Page | Dropped]:
    """Pages of one JSON-lines file."""
    stream = Unpacked(path)
    ordinal = -1
    with stream, io.BufferedReader(stream, 1 << 20) as buffered:
        for ordinal, (line, size) in enumerate(lines_of(buffered, options.max_bytes)):
            if line is None:
                yield Dropped(f"{name}#{ordinal}", "read.too_large", float(size), float(options.max_bytes), "")
            elif line.strip():
                yield _object(f"{name}#{ordinal}", line, source, options)
    if stream.fault:
        yield fault_row(name, ordinal + 1, stream.fault)


def lines_of(stream: io.BufferedIOBase, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """(line, bytes); the line is None where it is longer than `limit`, and was not kept."""
    while line := stream.readline(limit + 1):
        size, long = len(line), len(line) > limit and not line.endswith(b"\n")
        while long and not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
            size += len(line)
        yield (None if long else line), size


def row_page(name: str, row: Mapping[str, Any], source: str, options: Read) -> Page | Dropped:
    """The page of one row, or why it is none."""
    content = row.get(options.text)
    if not isinstance(content, str | bytes):
        return Dropped(name, "read.not_text", 0.0, 0.0, f"{options.text} is {type(content).__name__}")
    meta = {key: str(row[key]) for key in options.meta if row.get(key) is not None}
    return Page(name, content, options.html, source, "", meta)


def missing(name: str, column: str, known: list[str]) -> Dropped:
    """The ledger row of a file or line that lacks the text."""
    return Dropped(name, "read.missing_column", 0.0, 0.0, f"no {column!r} among {', '.join(known[:20]) or 'nothing'}")


def _object(name: str, line: bytes, source: str, options: Read) -> Page | Dropped:
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return Dropped(name, "read.invalid_utf8", 0.0, 0.0, line[:EXCERPT_CHARS].decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        return Dropped(name, "read.not_json", 0.0, 0.0, f"{error}"[:EXCERPT_CHARS])
    if not isinstance(row, dict):
        return Dropped(name, "read.not_json", 0.0, 0.0, f"{type(row).__name__} instead of an object")
    if options.text not in row:
        return missing(name, options.text, list(map(str, row)))
    return row_page(name, row, source, options)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:EXCERPT_CHARS]
