"""What the text stages hand to each other: documents that were kept, and a ledger of what was not.

    pages --clean--> documents.parquet   {id, text, source, lang, meta}
                     ledger.parquet      {doc_id, rule, value, threshold, start, end, excerpt}

Every page that goes in comes out in exactly one of the two files, and a ledger row says which rule
dropped it, what was measured and what the limit was. So a threshold is tuned by reading a table and
not by running again. `meta` is stored as one JSON string, since its keys differ between sources.
Rows keep the order in which they are given; the same rows give the same bytes (for one pyarrow version).

Not handled here: corpora that do not fit in memory; `output.py` writes those as shards, and token shards
are written by the data floor.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sekkei.core import atomic
from sekkei.core.errors import UserError


@dataclass(frozen=True)
class Document:
    """One text that may be trained on.

    Args:
        id: unique within its file; a page's path, a source file's path.
        text: Unicode text with `\\n` line ends.
        source: where it came from ("pages", "code", …): the name by which mixtures weigh it.
        lang: ISO 639-1 code, "python" for source code, "" where nobody looked.
        meta: anything else worth keeping, as text.
    """

    id: str
    text: str
    source: str
    lang: str = ""
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """One ledger row: a page that was refused, and why.

    Args:
        doc_id: the page's id.
        rule: name of the rule that refused it; the first that did, in the order of `clean`.
        value: what was measured. threshold: the limit that it missed.
        excerpt: `text[start:end]` of the page; for duplicates the id of the page kept instead (start = end = 0).
        start, end: characters into the extracted text.
        url: of a page that never became a document; no column of the ledger (`pipeline.origins` keeps it).
    """

    doc_id: str
    rule: str
    value: float
    threshold: float
    excerpt: str
    start: int = 0
    end: int = 0
    url: str = ""


EXCERPT_CHARS = 200


def drop(
    document: Document, rule: str, value: float, threshold: float, start: int = 0, end: int | None = None
) -> Dropped:
    """A ledger row about `document`; its excerpt is the beginning of `text[start:end]`."""
    end = len(document.text) if end is None else end
    excerpt = document.text[start : min(end, start + EXCERPT_CHARS)]
    return Dropped(document.id, rule, float(value), float(threshold), excerpt, start, start + len(excerpt))


_STRING = pa.string()
DOCUMENT_SCHEMA = pa.schema([(name, _STRING) for name in ("id", "text", "source", "lang", "meta")])
LEDGER_SCHEMA = pa.schema(
    [
        ("doc_id", _STRING),
        ("rule", _STRING),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("excerpt", _STRING),
    ]
)


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write `documents` as one parquet file, atomically."""
    rows = [
        {
            "id": d.id,
            "text": d.text,
            "source": d.source,
            "lang": d.lang,
            "meta": json.dumps(d.meta, sort_keys=True, ensure_ascii=False),
        }
        for d in documents
    ]
    _write(path, rows, DOCUMENT_SCHEMA)


def read_documents(path: Path) -> list[Document]:
    """The inverse of `write_documents`.

    Raises:
        UserError: the file is missing, is not parquet, or lacks one of the columns.
    """
    return [Document(**{**row, "meta": json.loads(row["meta"])}) for row in _read(path, DOCUMENT_SCHEMA)]


def write_ledger(path: Path, rows: Iterable[Dropped]) -> None:
    """Write ledger `rows` as one parquet file, atomically."""
    names = LEDGER_SCHEMA.names
    _write(path, [{name: getattr(row, name) for name in names} for row in rows], LEDGER_SCHEMA)


def read_ledger(path: Path) -> list[Dropped]:
    """The inverse of `write_ledger`.

    Raises:
        UserError: the file is missing, is not parquet, or lacks one of the columns.
    """
    return [Dropped(**row) for row in _read(path, LEDGER_SCHEMA)]


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    atomic.write_bytes(path, buffer.getvalue())


def _read(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the stage that writes it first")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: is not a parquet file ({str(error).splitlines()[0]})") from None
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; it needs {', '.join(schema.names)}")
    return table.select(schema.names).cast(schema).to_pylist()
