"""Published quality rules for scripts that part words, each set with the limits of its paper.

    gopher_quality      Rae et al. 2021, "Scaling Language Models", appendix A1.1
    gopher_repetition   the same, table A1
    fineweb             Penedo et al. 2024, "The FineWeb Datasets", section 3.4
    reference           our limits for reference pages, where signatures and tables are no fault (text.quality)

The measures are the named functions of `text.quality`; a key of a block is the limit of one of them. Texts in
unspaced scripts (Japanese, Chinese, Thai …) pass the first three: counting words says nothing there, see `unspaced`.
C4's rules, which remove lines, are in `c4`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sekkei.core.errors import ConfigError
from sekkei.text import quality
from sekkei.text.blocks.block import Apply, Result, Rewrites
from sekkei.text.document import Document, drop
from sekkei.text.quality import QualityConfig, Rule, View


def new_lines(view: View) -> float:
    """Line ends per word (FineWeb): lists have many."""
    return view.text.count("\n") / max(1, len(view.words))


_ALL = (*quality.RULES, Rule("new_lines", new_lines, high="max_new_lines"))


@dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """Gopher's document rules (A1.1). `min_stop_words` asks English texts only."""

    name: ClassVar[str] = "gopher_quality"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = ""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbol_to_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2

    def __post_init__(self) -> None:
        _check(self)

    def build(self) -> Apply:
        return _spaced(self)


@dataclass(frozen=True, kw_only=True)
class GopherRepetition:
    """Gopher's repetition rules (table A1): shares of lines, paragraphs and characters in repeated n-grams."""

    name: ClassVar[str] = "gopher_repetition"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = ""

    max_duplicate_lines: float = 0.30
    max_duplicate_line_chars: float = 0.20
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_paragraph_chars: float = 0.20
    max_top_2gram: float = 0.20
    max_top_3gram: float = 0.18
    max_top_4gram: float = 0.16
    max_duplicate_5gram: float = 0.15
    max_duplicate_6gram: float = 0.14
    max_duplicate_7gram: float = 0.13
    max_duplicate_8gram: float = 0.12
    max_duplicate_9gram: float = 0.11
    max_duplicate_10gram: float = 0.10

    def __post_init__(self) -> None:
        _check(self)

    def build(self) -> Apply:
        return _spaced(self)


@dataclass(frozen=True, kw_only=True)
class FineWeb:
    """FineWeb's own filters (section 3.4): ends of lines, short lines, repeated lines, lists."""

    name: ClassVar[str] = "fineweb"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = ""

    min_terminal_lines: float = 0.12
    max_short_lines: float = 0.67
    max_duplicate_line_chars: float = 0.01
    max_new_lines: float = 0.3

    def __post_init__(self) -> None:
        _check(self)

    def build(self) -> Apply:
        return _spaced(self)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The limits of `text.quality.QualityConfig`, for every script."""

    name: ClassVar[str] = "reference"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = ""

    limits: QualityConfig = field(default_factory=QualityConfig)

    def build(self) -> Apply:
        def apply(document: Document) -> Result:
            failed = quality.check(document.text, self.limits, document.lang)
            if failed is None:
                return document, []
            rule, _, value, limit = failed
            return None, [drop(document, rule, value, limit)]

        return apply


def rules_of(config: Any) -> tuple[Rule, ...]:
    """The measures that a block's keys limit."""
    keys = {f.name for f in dataclasses.fields(config)}
    return tuple(rule for rule in _ALL if {rule.low, rule.high} - {""} <= keys)


def _spaced(config: Any) -> Apply:
    rules: Sequence[Rule] = rules_of(config)

    def apply(document: Document) -> Result:
        if not quality.view_of(document.text).spaced:
            return document, []
        failed = quality.first_missed(document.text, rules, config, document.lang)
        if failed is None:
            return document, []
        rule, _, value, limit = failed
        return None, [drop(document, f"{config.name}.{rule}", value, limit)]

    return apply


def _check(config: Any) -> None:
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value < 0:
            raise ConfigError(f.name, f"{value} must not be negative")
        other = f.name.replace("min_", "max_", 1)
        if f.name.startswith("min_") and value > getattr(config, other, value):
            raise ConfigError(f.name, f"{value} must not exceed {other}={getattr(config, other)}")
