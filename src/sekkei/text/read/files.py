"""The block that everything begins with: a folder of real files becomes pages, file by file, in a fixed order.

    .warc[.gz|.zst]   records of a crawl            .parquet                 rows
    .html .htm        one page per file             .jsonl .ndjson [.gz|.zst] lines
    .txt .md [.gz|.zst]  one text per file, or several parted by a line (`separator`)

Any of them may be packed by gzip or zstd; `hub:OWNER/NAME` instead of a folder is a data set (`hub.py`). What cannot
be read is a ledger row, never the end of the run; a file of another kind is one, too (read.unknown_format), so that
nothing is left out silently. Files whose name begins with a dot are not looked at.

Not handled: folders inside archives (tar, zip); remote addresses other than the hub's (mount them).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sekkei.core.errors import ConfigError, UserError
from sekkei.text.document import Dropped
from sekkei.text.page import Page
from sekkei.text.read.hub import is_hub, read_hub
from sekkei.text.read.stream import Unpacked, bare_name
from sekkei.text.read.tables import lines_of, read_jsonl, read_parquet
from sekkei.text.read.warc import fault_row, read_warc

FORMATS = {
    ".warc": "warc", ".wet": "warc", ".html": "html", ".htm": "html", ".xhtml": "html", ".parquet": "parquet",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".md": "text",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Read:
    """How input files become pages.

    Args:
        text: column (key) of Parquet and JSONL that holds the text. html: it holds HTML.
        meta: columns that are kept in a document's `meta`.
        source: the name by which mixtures weigh the documents; "": the first folder below PATH, else PATH's own name.
        separator: a line that parts documents of a text file; "": a file is one document.
        max_bytes: a larger page, row or document is left out.
    """

    name: ClassVar[str] = "read"
    version: ClassVar[int] = 1

    text: str = "text"
    html: bool = False
    meta: tuple[str, ...] = ("url", "date")
    source: str = ""
    separator: str = ""
    max_bytes: int = 8_000_000

    def __post_init__(self) -> None:
        if not self.text:
            raise ConfigError("text", "must name a column")
        if self.max_bytes < 1:
            raise ConfigError("max_bytes", f"{self.max_bytes} must be at least 1")
        if "\n" in self.separator:
            raise ConfigError("separator", "is one line")


def files_in(path: Path) -> list[tuple[str, Path]]:
    """(name, file) of everything below `path`, or of `path` itself, sorted by name.

    Raises:
        UserError: there is nothing.
    """
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found = []
    for file in path.rglob("*"):
        relative = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            found.append((relative.as_posix(), file))
    if not found:
        raise UserError(f"{path}: holds no files; give a folder with {', '.join(FORMATS)} (also .gz, .zst)")
    return sorted(found)


def format_of(name: str) -> str:
    """ "warc", "html", "parquet", "jsonl", "text", or "" by a file's name."""
    return FORMATS.get(Path(bare_name(name)).suffix.lower(), "")


def read_file(path: Path, name: str, source: str, options: Read) -> Iterator[Page | Dropped]:
    """Pages of one file, and ledger rows of what could not be read.

    Args:
        name: of the file below the corpus's folder; ids begin with it.
    """
    count = 0
    try:
        for item in _items(path, name, source, options):
            yield item
            count += 1
        if not count:
            yield Dropped(name, "read.empty", 0.0, 1.0, "")
    except OSError as error:  # no permission, a broken disk, a file that went away
        yield Dropped(f"{name}#{count}", "read.unreadable", 0.0, 0.0, error.strerror or str(error))


def _items(path: Path, name: str, source: str, options: Read) -> Iterator[Page | Dropped]:
    kind = format_of(name)
    if is_hub(str(path)):
        yield from read_hub(str(path), name, source, options)
    elif kind == "warc":
        yield from read_warc(path, name, source, options.max_bytes)
    elif kind == "parquet":
        yield from read_parquet(path, name, source, options)
    elif kind == "jsonl":
        yield from read_jsonl(path, name, source, options)
    elif kind == "text" and options.separator:
        yield from _parted(path, name, source, options)
    elif kind:
        yield _whole(path, name, source, kind == "html", options)
    else:
        yield Dropped(name, "read.unknown_format", 0.0, 0.0, f"none of {', '.join(FORMATS)} (.gz, .zst)")


def _whole(path: Path, name: str, source: str, html: bool, options: Read) -> Page | Dropped:
    with Unpacked(path) as stream, io.BufferedReader(stream, 1 << 16) as buffered:
        content = buffered.read(options.max_bytes + 1)
    if stream.fault:
        row = fault_row(name, 0, stream.fault)
        return Dropped(name, row.rule, row.value, row.threshold, row.excerpt)
    if len(content) > options.max_bytes:
        return Dropped(name, "read.too_large", float(max(path.stat().st_size, len(content))), options.max_bytes, "")
    return Page(name, content, html, source)


def _parted(path: Path, name: str, source: str, options: Read) -> Iterator[Page | Dropped]:
    mark, held, size, ordinal = options.separator.encode(), [], 0, 0
    with Unpacked(path) as stream, io.BufferedReader(stream, 1 << 20) as buffered:

        def item() -> Iterator[Page | Dropped]:
            if size > options.max_bytes:
                yield Dropped(f"{name}#{ordinal}", "read.too_large", float(size), float(options.max_bytes), "")
            elif size:
                yield Page(f"{name}#{ordinal}", b"".join(held), False, source)

        for line, length in lines_of(buffered, options.max_bytes):
            if line is not None and line.strip() == mark:
                yield from item()
                held, size, ordinal = [], 0, ordinal + 1
                continue
            size += length
            if line is not None and size <= options.max_bytes:
                held.append(line)
        yield from item()
    if stream.fault:
        yield fault_row(name, ordinal + 1, stream.fault)
