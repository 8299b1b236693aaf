"""Damaged and hostile input: the run goes on, and the ledger says what was lost and why."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sekkei.core.progress import Console
from sekkei.text.blocks.extract import Extract
from sekkei.text.document import Dropped, read_documents, read_ledger
from sekkei.text.page import Page
from sekkei.text.pipeline import local
from sekkei.text.pipeline.plan import Plan
from sekkei.text.read.files import Read, read_file

zstandard = pytest.importorskip("zstandard", reason="the extra `data` is not installed")
pytest.importorskip("fastwarc", reason="the extra `data` is not installed")

PROSE = "The harbour was quiet when the last boat came in, and nobody asked why it was late. "


def record(number: int, body: bytes | None = None, status: int = 200, kind: str = "text/html") -> bytes:
    """One response record of a web archive."""
    body = body if body is not None else f"<html><body><p>Page {number}. {PROSE * 5}</p></body></html>".encode()
    http = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012}>\r\n"
        f"WARC-Target-URI: https://example.org/{number}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        f"Content-Type: application/http;msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def items(path: Path, **options: object) -> list[Page | Dropped]:
    return list(read_file(path, path.name, "test", Read(**options)))  # type: ignore[arg-type]


def told(found: list[Page | Dropped]) -> list[str]:
    return [item.rule if isinstance(item, Dropped) else "page" for item in found]


def packed(records: list[bytes], kind: str) -> list[bytes]:
    return [gzip.compress(r) if kind == "gz" else zstandard.ZstdCompressor().compress(r) for r in records]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_archive_cut_in_the_middle_of_a_member(tmp_path: Path, kind: str) -> None:
    members = packed([record(i) for i in range(5)], kind)
    path = tmp_path / f"a.warc.{kind}"
    path.write_bytes(b"".join(members[:4]) + members[4][: len(members[4]) // 2])
    found = items(path)
    assert told(found)[:4] == ["page"] * 4
    assert "read.truncated" in told(found)[4:]
    path.write_bytes(b"".join(members))
    assert told(items(path)) == ["page"] * 5


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_damaged_member_costs_only_itself(tmp_path: Path, kind: str) -> None:
    members = packed([record(i) for i in range(6)], kind)
    bad = bytearray(members[2])
    bad[12:60] = bytes(48)
    path = tmp_path / f"a.warc.{kind}"
    path.write_bytes(b"".join([*members[:2], bytes(bad), *members[3:]]))
    found = items(path)
    urls = [item.meta["url"][-1] for item in found if isinstance(item, Page)]
    assert urls == ["0", "1", "3", "4", "5"]
    assert told(found).count("read.damaged") == 1
    assert len({item.id if isinstance(item, Page) else item.doc_id for item in found}) == len(found)


def test_uncompressed_archive_cut_inside_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes((record(0) + record(1))[:-120])
    assert told(items(path)) == ["page", "read.truncated"]


def test_status_type_and_size_of_records(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    big = record(4, b"x" * 5000)
    path.write_bytes(record(0) + record(1, status=404) + record(2, b"\x89PNG", kind="image/png") + big)
    assert told(items(path, max_bytes=4000)) == ["page", "read.http_status", "read.content_type", "read.too_large"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        json.dumps({"text": PROSE}).encode(),
        b'{"text": "\xff\xfe"}',
        b"{not json",
        b'["a"]',
        b'{"other": 1}',
        b'{"text": 5}',
        b'{"text": "' + b"a" * 50_000_000 + b'"}',
        json.dumps({"text": "\ud800 lone " + PROSE * 4}).encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    found = items(path)
    assert told(found) == [
        "page", "read.invalid_utf8", "read.not_json", "read.not_json", "read.missing_column", "read.not_text",
        "read.too_large", "page",
    ]  # fmt: skip
    assert isinstance(found[6], Dropped)
    assert found[6].value > 50_000_000
    document, _ = Extract().build()(found[7])  # type: ignore[arg-type]
    assert document is not None
    assert document.text.encode().startswith("\ufffd lone".encode())


def test_parquet_without_the_column_and_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"]}), path)
    (row,) = items(path)
    assert isinstance(row, Dropped)
    assert row.rule == "read.missing_column"
    assert "body" in row.excerpt
    assert told(items(path, text="body")) == ["page"]
    path.write_bytes(b"PAR1 no")
    assert told(items(path)) == ["read.damaged"]


def test_empty_unknown_and_texts_with_a_separator(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.warc.gz", "c.bin"):
        (tmp_path / name).write_bytes(b"")
    found = {name: told(items(tmp_path / name)) for name in ("a.jsonl", "b.warc.gz", "c.bin")}
    assert found == {"a.jsonl": ["read.empty"], "b.warc.gz": ["read.empty"], "c.bin": ["read.unknown_format"]}
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"one\n<end>\ntwo\nlines\n<end>\n" + b"x" * 100))
    pages = items(tmp_path / "d.txt.gz", separator="<end>", max_bytes=50)
    assert told(pages) == ["page", "page", "read.too_large"]
    assert [item.content for item in pages if isinstance(item, Page)] == [b"one\n", b"two\nlines\n"]


def test_html_bombs_and_bytes_that_are_no_text() -> None:
    apply = Extract().build()
    bomb = "<div>" * 200_000 + "deep"
    _, (row,) = apply(Page("bomb", bomb, True))
    assert row.rule == "nesting"
    _, (row,) = apply(Page("noise", bytes(range(256)) * 200, False))
    assert row.rule == "not_text"
    _, (row,) = apply(Page("huge", b"a" * 8_000_001, False))
    assert row.rule == "too_large"
    document, _ = apply(Page("latin", "Ünïcode caf\xe9 ".encode("latin-1") * 20, False, charset="latin-1"))
    assert document is not None
    assert "café" in document.text


def test_a_run_over_all_of_them_goes_on_and_counts_them(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    members = packed([record(i) for i in range(3)], "gz")
    (folder / "cut.warc.gz").write_bytes(b"".join(members)[:-30])
    (folder / "bomb.html").write_text("<div>" * 100_000)
    (folder / "line.txt").write_bytes(b"a" * 50_000_000)
    (folder / "empty.html").write_bytes(b"")
    (folder / "bytes.txt").write_bytes(bytes(range(256)) * 20)
    table = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), table)
    (folder / "x.parquet").write_bytes(table.getvalue())
    out = tmp_path / "out"
    plan = Plan(path=str(folder), work=str(out / "work"), items=("extract",))
    summary, _ = local.run(plan, out, 1, Console(silent=True))
    rules = {row.doc_id: row.rule for row in read_ledger(out / "ledger.parquet")}
    assert rules["bomb.html"] == "nesting"
    assert rules["line.txt"] == "read.too_large"
    assert rules["empty.html"] == "empty"
    assert rules["x.parquet"] == "read.missing_column"
    assert rules["cut.warc.gz#2"] == "read.truncated" or rules["cut.warc.gz#3"] == "read.truncated"
    assert rules["bytes.txt"] == "not_text"
    assert len(read_documents(out / "documents-00000.parquet")) == summary["documents"] >= 2
    assert sum(summary["blocks"][0]["rules"].values()) == len(rules)
