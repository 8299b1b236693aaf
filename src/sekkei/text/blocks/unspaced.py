"""Quality rules by characters, for scripts that do not part words: Japanese first, Chinese, Thai and their like.

Word counts, mean word length and stop words say nothing about 「吾輩は猫である。」, and a rule that splits at spaces
drops clean prose. What prose has in these scripts, and boilerplate has not:

    sentences    。！？ … every few dozen characters; a menu or a list of keywords has none
    hiragana     particles and inflections: about half of Japanese prose, a few percent of a list of products
    few symbols  no rows of ★■◆│
    no echo      n-grams of characters that repeat little

Japanese (`lang` "ja") is asked about kana; the other rules hold for all unspaced scripts, except that Thai, Lao, Khmer
and Burmese end sentences with a space, so they are not asked for sentence marks. The limits are set here, by the
paragraphs of Japanese Wikipedia and hand-written bad pages in tests/text/labelled.py; no published table exists.

Documents in spaced scripts pass untouched (see `published`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from sekkei.core.errors import ConfigError
from sekkei.text import quality
from sekkei.text.blocks.block import Apply, Result, Rewrites
from sekkei.text.document import Document, drop
from sekkei.text.quality import View

_SENTENCE_END = re.compile("[。｡！？!?．…]+|\\.(?=\\s|$)")
_LINE_END = tuple("。｡！？!?．…」』）)】〉》.:：")
_HIRAGANA = re.compile("[\u3041-\u309f]")
_KATAKANA = re.compile("[\u30a0-\u30ff\uff66-\uff9f]")
_LETTER = re.compile(r"[^\W\d_]")
_DIGIT = re.compile(r"\d")
_SYMBOL = re.compile(
    "[\u2190-\u27bf\u2b00-\u2bff\u3012\u3013\u3020\uff5e#*|│■□◆◇●○★☆▲△▼▽→←↑↓♪※＊＃〒=＝_＿~～/／>＞<＜]"
)
_SEPARATOR = re.compile("[、，,・|｜/／\\s　]")
_NO_SENTENCE_MARKS = frozenset(("th", "lo", "km", "my"))
_SHORT_LINE = 15  # characters; about the thirty Latin ones of FineWeb


def characters(view: View) -> float:
    """Characters that are not space."""
    return sum(map(len, view.text.split()))


def sentence_length(view: View) -> float:
    """Characters per sentence mark; all of them where there is no mark."""
    return characters(view) / max(1, len(_SENTENCE_END.findall(view.text)))


def terminal_lines(view: View) -> float:
    """Share of characters that a sentence mark of their line closes; a menu has none, a cut-off paragraph has most."""
    total = sum(map(len, view.lines))
    return sum(map(_closed, view.lines)) / max(1, total)


def _closed(line: str) -> int:
    if line.endswith(_LINE_END):
        return len(line)
    return max((match.end() for match in _SENTENCE_END.finditer(line)), default=0)


def short_lines(view: View) -> float:
    """Share of characters in lines under 15 characters."""
    total = sum(map(len, view.lines))
    return sum(len(line) for line in view.lines if len(line) < _SHORT_LINE) / max(1, total)


def hiragana(view: View) -> float:
    """Share of hiragana among letters."""
    return len(_HIRAGANA.findall(view.text)) / max(1, len(_LETTER.findall(view.text)))


def katakana(view: View) -> float:
    """Share of katakana among letters."""
    return len(_KATAKANA.findall(view.text)) / max(1, len(_LETTER.findall(view.text)))


def symbols(view: View) -> float:
    """Share of ornaments and separators among characters."""
    return len(_SYMBOL.findall(view.text)) / max(1, characters(view))


def digits(view: View) -> float:
    """Share of digits among characters."""
    return len(_DIGIT.findall(view.text)) / max(1, characters(view))


def separators(view: View) -> float:
    """Commas, middle dots, bars and spaces inside lines, per character: keyword lists are made of them."""
    return sum(len(_SEPARATOR.findall(line)) for line in view.lines) / max(1, characters(view))


def duplicate_line_chars(view: View) -> float:
    """Share of characters in lines that stood earlier (as Gopher's)."""
    return quality.duplicate_line_chars(view)


def duplicate_10gram(view: View) -> float:
    """Share of characters covered by ten-character sequences that occurred earlier (as Gopher's, on characters)."""
    return quality.duplicate_ngram(view, 10)


def top_4gram(view: View) -> float:
    """Share of characters inside the most frequent four-character sequence."""
    return quality.top_ngram(view, 4)


MEASURES: tuple[tuple[str, Callable[[View], float], str, str], ...] = (
    # rule, measure, key of the limit, who is asked
    ("characters", characters, "min_characters", "all"),
    ("characters", characters, "max_characters", "all"),
    ("symbols", symbols, "max_symbols", "all"),
    ("digits", digits, "max_digits", "all"),
    ("hiragana", hiragana, "min_hiragana", "ja"),
    ("katakana", katakana, "max_katakana", "ja"),
    ("sentence_length", sentence_length, "max_sentence_length", "marked"),
    ("separators", separators, "max_separators", "marked"),
    ("terminal_lines", terminal_lines, "min_terminal_lines", "marked"),
    ("short_lines", short_lines, "max_short_lines", "all"),
    ("duplicate_line_chars", duplicate_line_chars, "max_duplicate_line_chars", "all"),
    ("top_4gram", top_4gram, "max_top_4gram", "all"),
    ("duplicate_10gram", duplicate_10gram, "max_duplicate_10gram", "all"),
)


@dataclass(frozen=True, kw_only=True)
class Unspaced:
    """Limits by characters; shares are in [0, 1]. `hiragana` and `katakana` are asked of Japanese only."""

    name: ClassVar[str] = "unspaced"
    version: ClassVar[int] = 2
    rewrites: ClassVar[Rewrites] = ""

    min_characters: int = 40
    max_characters: int = 500_000
    max_symbols: float = 0.1
    max_digits: float = 0.3
    min_hiragana: float = 0.12
    max_katakana: float = 0.7
    max_sentence_length: float = 250.0
    max_separators: float = 0.2
    min_terminal_lines: float = 0.3
    max_short_lines: float = 0.5
    max_duplicate_line_chars: float = 0.2
    max_top_4gram: float = 0.2
    max_duplicate_10gram: float = 0.25

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if getattr(self, f.name) < 0:
                raise ConfigError(f.name, f"{getattr(self, f.name)} must not be negative")

    def build(self) -> Apply:
        return self._apply

    def _apply(self, document: Document) -> Result:
        view = quality.view_of(document.text)
        if view.spaced:
            return document, []
        for rule, measure, key, asked in MEASURES:
            if (asked == "ja" and document.lang not in ("ja", "")) or (
                asked == "marked" and document.lang in _NO_SENTENCE_MARKS
            ):
                continue
            value, limit = measure(view), getattr(self, key)
            if value < limit if key.startswith("min_") else value > limit:
                return None, [drop(document, f"unspaced.{rule}", value, limit)]
        return document, []
