from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sekkei.core.errors import UserError
from sekkei.text.document import Document, Dropped, read_documents, read_ledger, write_documents, write_ledger

DOCUMENTS = [
    Document("b", "naïve\n日本語 \U0001f600", "pages", "ja", {"k": "v", "ä": ""}),
    Document("a", "", "code"),
]
ROWS = [
    Dropped("p.html", "words", 3.0, 50.0, "three short words", 0, 17),
    Dropped("q", "near_duplicate", 0.9, 0.7, "p"),
]


def test_documents_and_ledger_come_back_as_they_went_in(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.parquet", DOCUMENTS)
    write_ledger(tmp_path / "ledger.parquet", ROWS)
    assert read_documents(tmp_path / "documents.parquet") == DOCUMENTS
    assert read_ledger(tmp_path / "ledger.parquet") == ROWS
    assert pq.read_schema(tmp_path / "documents.parquet").names == ["id", "text", "source", "lang", "meta"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["documents.parquet", "ledger.parquet"]


def test_empty_files_round_trip(tmp_path: Path) -> None:
    write_ledger(tmp_path / "ledger.parquet", [])
    assert read_ledger(tmp_path / "ledger.parquet") == []


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_documents(tmp_path / name, DOCUMENTS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_bad_files_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_documents(tmp_path / "absent.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match="not a parquet file") as caught:
        read_documents(tmp_path / "junk.parquet")
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "short.parquet")
    with pytest.raises(UserError, match="lacks the columns source, lang, meta"):
        read_documents(tmp_path / "short.parquet")
