"""Documents cut into chunks that are exact slices: chunk.text == document.text[chunk.start:chunk.end], always.

    section  |----------------------------------------------|      a heading's text, a function, a page, a cell
    chunks   |-------------------|                                 as long as `size` allows, cut at the strongest
                            |---------------------|                boundary in the second half of the reach,
                                          |-----------------|      the next one `overlap` earlier

A chunk never crosses a section (structure.py), so it belongs to one heading, function, page or cell; sections under an
eighth of `size` are joined with the one behind them, if both stand in the same page or cell. Sizes are in characters,
or in tokens of whoever counts them (an embedder reads only so many). White space at both ends is left out.

Not handled: tables are cut between lines like any text; a single line that is longer than a chunk is cut between words,
and a word that is longer, anywhere.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from sekkei.core.errors import ConfigError
from sekkei.rag.read import Document
from sekkei.rag.structure import Part, boundaries, parts

SMALL = 8  # sections under size / 8 are joined with the next: a bare heading answers nothing


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """How long chunks are.

    Args:
        size: most characters (or tokens) of a chunk. overlap: most that two neighbours in one section share.
        unit: what both are counted in; tokens are the embedder's.
    """

    size: int = 1600  # about 330 tokens of English; of 1200, 1600, 2000 and whole abstracts the best on Cranfield
    overlap: int = 200
    unit: Literal["characters", "tokens"] = "characters"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError("size", f"{self.size} must be positive")
        if not 0 <= self.overlap <= self.size // 2:
            raise ConfigError("overlap", f"{self.overlap} must lie between 0 and size / 2 = {self.size // 2}")


@dataclass(frozen=True)
class Chunk:
    """A slice of a document.

    Args:
        path, digest: the document's.
        start, end: characters of the document's text.
        heading: path of headings, or the function or class; what the slice alone does not say.
        place: "" or the page or cell of the file; source_start, source_end: characters of the file or place.
    """

    path: str
    digest: str
    start: int
    end: int
    text: str
    heading: str
    place: str
    source_start: int
    source_end: int

    @property
    def context(self) -> str:
        """What is searched: the text under its heading, where it does not begin with that itself."""
        headed = self.text.lstrip("# ").startswith(self.heading)  # also where there is none
        return self.text if headed else f"{self.heading}\n{self.text}"

    @property
    def id(self) -> str:
        """The same for the same slice of the same version of the same file, and for nothing else."""
        return hashlib.sha256(f"{self.path}\0{self.digest}\0{self.start}\0{self.end}".encode()).hexdigest()[:32]


def chunks(document: Document, config: ChunkConfig, count: Callable[[str], int] = len) -> Iterator[Chunk]:
    """Cut a document; chunks come in the order of the text.

    Args:
        count: length of a text in `config.unit`. Tokenizers that merge across a cut may make a chunk one token longer.
    """
    text = document.text
    for section in document.sections:
        found = parts(text, section.start, section.end, section.syntax)
        for part in _joined(found, text, config.size // SMALL, count):
            for start, end in spans(text, part, config, count):
                place, source_start, source_end = document.locate(start, end)
                yield Chunk(
                    document.path,
                    document.digest,
                    start,
                    end,
                    text[start:end],
                    part.heading,
                    place,
                    source_start,
                    source_end,
                )


def spans(text: str, part: Part, config: ChunkConfig, count: Callable[[str], int] = len) -> Iterator[tuple[int, int]]:
    """(start, end) of the chunks of one section: no white space at their ends, every other character covered."""
    ranks = boundaries(text, part)
    words = ranks[-1]
    at, covered = part.start, part.start
    while True:
        at = _skip(text, at, part.end)
        if at >= part.end:
            return
        cut = _cut(text, at, part.end, ranks, config.size, count)
        end = at + len(text[at:cut].rstrip())
        if end > covered:
            yield at, end
        covered = max(covered, end)
        if cut >= part.end:
            return
        at = _overlapped(text, at, cut, words, config.overlap, count)


def _joined(found: list[Part], text: str, small: int, count: Callable[[str], int]) -> Iterator[Part]:
    waiting: Part | None = None
    for index, part in enumerate(found):
        if waiting is not None:
            part = Part(waiting.start, part.end, _both(waiting, part), (*waiting.strong, part.start, *part.strong))  # noqa: PLW2901
        waiting = None
        if index + 1 < len(found) and count(text[part.start : part.end].strip()) < small:
            waiting = part
        else:
            yield part


def _both(first: Part, second: Part) -> str:
    """The heading of two sections in one chunk: the deeper path where one lies inside the other."""
    if not first.heading or second.heading.startswith(first.heading):
        return second.heading
    return f"{first.heading}, {second.heading}" if second.heading else first.heading


def _cut(text: str, at: int, end: int, ranks: list[list[int]], size: int, count: Callable[[str], int]) -> int:
    """Where the chunk from `at` ends: at the end, or at the strongest boundary in the second half of its reach."""
    reach = _reach(text, at, end, size, count)
    if reach >= end or not text[reach:end].strip():
        return end
    half = at + (reach - at) // 2
    for places in ranks:
        index = bisect_right(places, reach)
        if index and places[index - 1] > half:
            return places[index - 1]
    return reach


def _reach(text: str, at: int, end: int, size: int, count: Callable[[str], int]) -> int:
    """The largest stop ≤ end with count(text[at:stop]) ≤ size, and at least one character."""
    if count is len:
        return min(end, at + size)
    low, high = at + 1, min(end, at + size * 32)  # 32 characters per token: longer tokens are white space
    if count(text[at:high]) <= size:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(text[at:middle]) <= size else (low, middle)
    return low


def _overlapped(text: str, at: int, cut: int, words: list[int], overlap: int, count: Callable[[str], int]) -> int:
    """Where the next chunk begins: the first word behind which at most `overlap` units stand before the cut."""
    if overlap == 0:
        return cut
    first = bisect_right(words, at)
    for place in words[first : bisect_left(words, cut)]:
        if (cut - place <= overlap) if count is len else (count(text[place:cut]) <= overlap):
            return place
    return cut


def _skip(text: str, at: int, end: int) -> int:
    while at < end and text[at].isspace():
        at += 1
    return at
