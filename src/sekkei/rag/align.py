"""The way back from the visible text of an HTML page to the characters of its source.

    <p>Fish &amp; <b>chips</b></p>   ->   F i s h & c h i p s     one entry per visible character: (character, from, to)

Extraction drops parts of a page and changes its white space, but keeps the order of the rest. So each line of the
extracted text, without white space, is looked for in the page's visible characters, from where the last line ended. A
line that is not found whole (a cell was moved, a dash normalised) is looked for word by word; words only then, because
one such as "the" also stands in the navigation that extraction drops. What is still missing is looked for character by
character between its neighbours, and else enclosed by them.

Not handled: text moved against the order of the source; its anchor is then the gap between its neighbours.
"""

from __future__ import annotations

import html as html_module
import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from html.parser import HTMLParser

_INVISIBLE = frozenset(("script", "style", "template", "noscript", "title", "rt", "rp", "rtc"))
_IGNORED = frozenset("\u00ad\u200b")  # what `text.extract.tidy` removes
_LINE = re.compile(r"[^\n]*\S[^\n]*")
MAX_MATCHED = 1_000_000  # characters of a gap times those of its source: a second of work
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Anchor:
    """text[start:end] comes from characters [source_start, source_end) of `place`.

    Args:
        exact: per character of the text its (first, behind last) source character; empty where the two run in step.
    """

    start: int
    end: int
    source_start: int
    source_end: int
    place: str = ""
    exact: tuple[tuple[int, int], ...] = ()

    def source(self, position: int) -> tuple[int, int]:
        """First source character of text[position], and the one behind its last."""
        inside = min(max(0, position - self.start), max(0, self.end - self.start - 1))
        if self.exact:
            return self.exact[inside]
        if self.end - self.start == self.source_end - self.source_start:
            return self.source_start + inside, self.source_start + inside + 1
        return self.source_start, self.source_end


class _Visible(HTMLParser):
    """Collects the visible characters of a page that are no white space, with where each stands."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=False)
        self.html = html
        self.characters: list[str] = []
        self.spans: list[tuple[int, int]] = []
        self._hidden = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", html))]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in _INVISIBLE

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _INVISIBLE and self._hidden > 0

    def handle_data(self, data: str) -> None:
        at = self._at()
        for offset, character in enumerate(data):
            self._add(character, at + offset, at + offset + 1)

    def handle_entityref(self, name: str) -> None:
        self._reference(f"&{name}")

    def handle_charref(self, name: str) -> None:
        self._reference(f"&#{name}")

    def _reference(self, written: str) -> None:
        at = self._at()
        end = at + len(written)
        end += self.html[end : end + 1] == ";"
        for character in html_module.unescape(self.html[at:end]):
            self._add(character, at, end)

    def _add(self, character: str, start: int, end: int) -> None:
        if not self._hidden and not character.isspace() and character not in _IGNORED:
            self.characters.append(character)
            self.spans.append((start, end))

    def _at(self) -> int:
        line, column = self.getpos()
        return self._line_starts[line - 1] + column


def align_html(text: str, html: str) -> tuple[Anchor, ...]:
    """One anchor per line (or word) of `text`, in order; at least one."""
    page = _Visible(html)
    stream = "".join(page.characters)
    found: list[Anchor] = []
    at = 0
    for line in _LINE.finditer(text):
        spans = [line.span()]
        if _find(stream, line.group(), at) < 0:
            spans = [(line.start() + word.start(), line.start() + word.end()) for word in _WORD.finditer(line.group())]
        for start, end in spans:
            index = _find(stream, text[start:end], at)
            if index < 0:
                continue
            squeezed = sum(not character.isspace() for character in text[start:end])
            found.append(_anchor(text, start, end, page.spans[index : index + squeezed]))
            at = index + squeezed
    return tuple(_filled(found, text, page, len(html)))


def _find(stream: str, piece: str, at: int) -> int:
    return stream.find("".join(piece.split()), at)


def _anchor(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> Anchor:
    exact, following = [], iter(spans)
    now = spans[0]
    for character in text[start:end]:
        # white space belongs to the gap behind the character before it
        now = (now[1], now[1]) if character.isspace() else next(following)
        exact.append(now)
    return Anchor(start, end, spans[0][0], spans[-1][1], exact=tuple(exact))


def _filled(found: list[Anchor], text: str, page: _Visible, html_length: int) -> list[Anchor]:
    """Anchors for what was not found: the gap between the neighbours, or where its characters stand in the gap."""
    filled: list[Anchor] = []
    starts = [span[0] for span in page.spans]
    text_at = html_at = 0
    for anchor in [*found, Anchor(len(text), len(text), html_length, html_length)]:
        if anchor.start > text_at:
            gap = Anchor(text_at, anchor.start, html_at, max(html_at, anchor.source_start))
            first, last = bisect_left(starts, gap.source_start), bisect_left(starts, gap.source_end)
            filled.append(replace(gap, exact=_by_character(text, gap, page, first, last)))
        if anchor.end > anchor.start:
            filled.append(anchor)
        text_at, html_at = anchor.end, anchor.source_end
    return filled or [Anchor(0, len(text), 0, html_length)]


def _by_character(text: str, gap: Anchor, page: _Visible, first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Source of each character of a gap, where the longest common runs say so; else the whole gap."""
    piece = text[gap.start : gap.end]
    whole = (gap.source_start, gap.source_end)
    if not piece.strip() or first == last or len(piece) * (last - first) > MAX_MATCHED:
        return ()
    exact = [whole] * len(piece)
    blocks = SequenceMatcher(None, piece, "".join(page.characters[first:last]), autojunk=False).get_matching_blocks()
    for block in blocks:
        for step in range(block.size):
            exact[block.a + step] = page.spans[first + block.b + step]
    return tuple(exact)
