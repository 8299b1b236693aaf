"""Pages of a web archive (WARC 1.0/1.1, ISO 28500), record by record, through FastWARC.

    response record  HTTP 200 with text/html or text/plain                -> a page, decoded from its transfer coding
    conversion, resource record of such a type (WET files)                -> a page
    another status or type                                                -> ledger: read.http_status, read.content_type
    a record that is cut, a damaged member                                -> ledger: read.truncated, read.damaged

Ordinals count response, conversion and resource records from 0. Behind a damaged member reading goes on at the next
sound one, so one bad sector costs one record. The ordinals behind it follow those before it.

Not handled: records split over several files (segmentation records), revisit records (they have no content).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sekkei.text.blocks.block import need
from sekkei.text.document import Dropped
from sekkei.text.page import Page
from sekkei.text.read.stream import Fault, Unpacked, resume_at

_HTML = ("text/html", "application/xhtml+xml")
_PLAIN = ("text/plain",)


def read_warc(path: Path, name: str, source: str, max_bytes: int) -> Iterator[Page | Dropped]:
    """Pages and refused records of one file."""
    warc = need("fastwarc.warc", "fastwarc", "reading WARC files")
    kinds = warc.WarcRecordType.response | warc.WarcRecordType.conversion | warc.WarcRecordType.resource
    start: int | None = 0
    ordinal = 0
    while start is not None:
        stream = Unpacked(path, start)
        with stream, io.BufferedReader(stream, 1 << 20) as buffered:
            records = warc.ArchiveIterator(
                _Counted(buffered), record_types=kinds, auto_decode="all", stream_detect=False
            )
            try:
                for record in records:
                    yield _item(record, f"{name}#{ordinal}", source, max_bytes)
                    ordinal += 1
            except BaseException as error:  # headers that are no headers, transfer codings that are not
                if not isinstance(error, OSError | ValueError) and type(error).__name__ != "PanicException":
                    raise  # FastWARC is Rust: a panic of its own is no Exception
                stream.fault = stream.fault or Fault("damaged", stream.member, str(error))
        start = None
        if stream.fault:
            yield fault_row(name, ordinal, stream.fault)
            ordinal += 1
            if stream.fault.reason == "damaged":
                start = resume_at(path, stream.fault.offset, b"WARC/")


class _Counted:
    """What FastWARC asks of a stream: to be read, and to say how far (it panics without `tell`)."""

    def __init__(self, inner: io.BufferedIOBase) -> None:
        self.inner, self.place = inner, 0

    def read(self, size: int = -1) -> bytes:
        data = self.inner.read(size)
        self.place += len(data)
        return data

    def tell(self) -> int:
        return self.place


def fault_row(name: str, ordinal: int, fault: Fault) -> Dropped:
    """The ledger row of a stream that ended early; `value` is the byte offset of what is lost."""
    what = f"{fault.detail} (byte {fault.offset:,} of the file)"
    return Dropped(f"{name}#{ordinal}", f"read.{fault.reason}", float(fault.offset), 0.0, what)


def _item(record: Any, name: str, source: str, max_bytes: int) -> Page | Dropped:
    url = str(record.headers.get("WARC-Target-URI", "")).strip("<>")
    meta = {"url": url, "date": str(record.headers.get("WARC-Date", ""))}
    http = record.http_headers
    declared = record.http_content_type if http else record.headers.get("Content-Type", "")
    kind = str(declared or "").split(";")[0].strip().lower()
    if http is not None and http.status_code != 200:
        return Dropped(name, "read.http_status", float(http.status_code or 0), 200.0, url, url=url)
    if kind not in (*_HTML, *_PLAIN):
        return Dropped(name, "read.content_type", 0.0, 0.0, f"{kind or 'no type'}: {url}", url=url)
    # the length that counts for the limit is the decoded one; one byte more tells that it is passed
    content = record.reader.read(max_bytes + 1)
    if len(content) > max_bytes:
        return Dropped(name, "read.too_large", float(record.content_length), float(max_bytes), url, url=url)
    coded = http is not None and (http.get("Transfer-Encoding") or http.get("Content-Encoding"))
    if not coded and len(content) < record.content_length:
        return Dropped(name, "read.truncated", float(len(content)), float(record.content_length), url, url=url)
    return Page(name, content, kind in _HTML, source, str((http and record.http_charset) or ""), meta)
