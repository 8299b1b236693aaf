"""Documents as text, with the way back from the text to the file.

    file --read--> Document(text, anchors, sections)          text[start:end]  <->  place and characters in the file

| kind              | text is                          | an anchor leads back to                          |
|-------------------|----------------------------------|--------------------------------------------------|
| txt, md, py       | the decoded file, unchanged      | the same characters of the file                  |
| html              | the page's visible text          | characters of the decoded HTML, line by line     |
| pdf               | its pages' text                  | a page, and characters of that page's text       |
| ipynb             | its cells' sources               | a cell, and characters of that cell's source     |

A file that cannot be read is a `Failure` with its name and the reason, and never stops the others.
Not handled: scanned pages (no OCR), text that JavaScript draws, outputs of notebook cells, the layout of PDF tables.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sekkei.core.errors import UserError
from sekkei.rag.align import Anchor, align_html
from sekkei.text.extract import MAX_CONTROL_SHARE, control_share, decode, extract_html, tidy

# The extractor drops a ruby element with the word that it annotates: the tags go, and the readings with them
_RUBY = re.compile(r"</?(?:ruby|rb)\b[^>]*>|<(rt|rp|rtc)\b[^>]*>.*?</\1>", re.DOTALL | re.IGNORECASE)
JOINT = "\n\n"  # between the pages of a PDF and the cells of a notebook
EMPTY = "is empty"
NO_TEXT = "holds no text (scanned pages need OCR first)"


@dataclass(frozen=True)
class Section:
    """text[start:end] is one piece of structure that the file itself names: a page, a cell, or the whole file."""

    start: int
    end: int
    syntax: str  # "text", "markdown" or "python": how chunks look for structure inside


@dataclass(frozen=True)
class Document:
    """One file that was read.

    Args:
        path: relative to the folder that is indexed, with `/`.
        digest: SHA-256 of the file's bytes.
        text: what chunks are slices of.
    """

    path: str
    digest: str
    text: str
    sections: tuple[Section, ...]
    anchors: tuple[Anchor, ...] = field(repr=False)

    def locate(self, start: int, end: int) -> tuple[str, int, int]:
        """Where text[start:end] stands in the file: (place, first character, character behind the last).

        The place is "" (the file as a whole), "page 3" or "cell 2"; characters count inside the place. A span over
        several places is cut at the end of its first. In HTML the span reaches to the ends of the aligned lines where
        a character inside a line has no exact counterpart.
        """
        starts = [anchor.start for anchor in self.anchors]
        first = self.anchors[max(0, bisect_right(starts, start) - 1)]
        last = self.anchors[max(0, bisect_right(starts, max(start, end - 1)) - 1)]
        if last.place != first.place:
            last, end = first, first.end
        return first.place, first.source(start)[0], last.source(max(start, end - 1))[1]


@dataclass(frozen=True)
class Failure:
    """A file that could not be read, and why."""

    path: str
    reason: str


class _UnreadableError(Exception):
    """Its message is a `Failure`'s reason."""


def files_of(folder: Path) -> list[str]:
    """Relative names of the files that can be read, sorted; hidden files and folders and links out are left out.

    Raises:
        UserError: `folder` is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the folder that holds the documents")
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[str]:
    for here, folders, names in os.walk(folder):  # links to folders are not followed: they may lead in circles
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        for name in names:
            path = Path(here, name)
            if not name.startswith(".") and path.suffix.lower() in READERS and path.is_file():
                yield path.relative_to(folder).as_posix()


def read(folder: Path, path: str) -> Document | Failure:
    """Read one file; `path` is relative to `folder`."""
    try:
        data = (folder / path).read_bytes()
    except OSError as error:
        return Failure(path, error.strerror or str(error))
    return read_bytes(path, data)


def read_bytes(path: str, data: bytes) -> Document | Failure:
    """Read the bytes of a file; its kind is the suffix of `path`."""
    reader = READERS.get(Path(path).suffix.lower())
    if reader is None:
        return Failure(path, f"unknown kind of file; known: {', '.join(sorted(READERS))}")
    try:
        text, sections, anchors = reader(data)
    except _UnreadableError as error:
        return Failure(path, str(error))
    if not text.strip():
        return Failure(path, NO_TEXT if reader is _pdf else EMPTY)
    return Document(path, digest(data), text, sections, anchors)


def digest(data: bytes) -> str:
    """What tells two versions of a file apart: the SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()


_Read = tuple[str, tuple[Section, ...], tuple[Anchor, ...]]


def _decoded(data: bytes) -> str:
    text = decode(data)
    if control_share(text) > MAX_CONTROL_SHARE:
        raise _UnreadableError("is not text (too many control characters)")
    return text


def _plain(syntax: str) -> Callable[[bytes], _Read]:
    def reader(data: bytes) -> _Read:
        text = _decoded(data)
        return text, (Section(0, len(text), syntax),), (Anchor(0, len(text), 0, len(text)),)

    return reader


def _html(data: bytes) -> _Read:
    html = _decoded(data)
    plain = _RUBY.sub("", html)
    text = extract_html(plain)
    if not text.strip():  # main-content extraction found nothing that looks like an article
        from resiliparse.extract.html2text import extract_plain_text

        text = tidy(
            extract_plain_text(plain, preserve_formatting=True, main_content=False, alt_texts=False, links=False)
        )
    return text, (Section(0, len(text), "text"),), align_html(text, html)


def _pdf(data: bytes) -> _Read:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise _UnreadableError("reading PDF needs: pip install 'sekkei[rag]'") from None
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise _UnreadableError("is encrypted")
        pages = [page.extract_text().strip() for page in reader.pages]
    except _UnreadableError:
        raise
    except (PyPdfError, ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RecursionError) as error:
        # broken files raise whatever the broken object happens to cause
        raise _UnreadableError(f"is not a readable PDF ({' '.join(str(error).split())[:80]})") from None
    return _joined([(f"page {number}", page, "text") for number, page in enumerate(pages, 1)])


def _notebook(data: bytes) -> _Read:
    try:
        notebook = json.loads(_decoded(data))
        if "cells" in notebook:
            cells = notebook["cells"]
        else:  # format 3 keeps cells inside worksheets, and code under "input"
            cells = [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]
        parts = []
        for number, cell in enumerate(cells, 1):
            source = cell.get("source", cell.get("input", ""))
            text = source if isinstance(source, str) else "".join(source)
            syntax = {"code": "python", "markdown": "markdown"}.get(cell["cell_type"], "text")
            parts.append((f"cell {number}", text, syntax))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _UnreadableError(f"is not a notebook ({type(error).__name__}: {error})"[:120]) from None
    return _joined(parts)


def _joined(parts: list[tuple[str, str, str]]) -> _Read:
    """(place, text, syntax) of each part -> one text; parts without text are left out, and keep their number."""
    pieces, sections, anchors, at = [], [], [], 0
    for place, text, syntax in parts:
        if not text.strip():
            continue
        pieces.append(text)
        sections.append(Section(at, at + len(text), syntax))
        anchors.append(Anchor(at, at + len(text), 0, len(text), place))
        at += len(text) + len(JOINT)
    return JOINT.join(pieces), tuple(sections), tuple(anchors)


READERS: dict[str, Callable[[bytes], _Read]] = {
    ".txt": _plain("text"),
    ".md": _plain("markdown"),
    ".markdown": _plain("markdown"),
    ".py": _plain("python"),
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".ipynb": _notebook,
}
