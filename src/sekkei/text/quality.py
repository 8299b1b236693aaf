"""Is a text prose or reference that is worth learning from? Published heuristics, each one measured.

Every rule is a function `View -> float`; `RULES` says which key of `QualityConfig` limits it and from
which side. `check` returns the first rule that a text misses. Sources:

    Gopher  Rae et al. 2021, "Scaling Language Models", appendix A1.1: quality, and repetition (table A1)
    C4      Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.2
    FineWeb Penedo et al. 2024, section 3.4 (custom filters)

The limits are the papers', except those where reference pages (signatures, tables, doctests) differ
from web prose by nature; each such limit names both numbers below.

Words are what whitespace parts. Chinese, Japanese, Thai, Lao, Khmer and Burmese do not part words: there every
character counts as one word, and the rules that only make sense for whitespace words are left out.

Not handled: a classifier of educational value (FineWeb-Edu), bad-word lists, personal data.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sekkei.core.errors import ConfigError

# Thai, Lao, Burmese, Khmer, kana and Han: scripts that do not part words
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED_CHAR = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n+")
_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "-", "*", "‣", "●", "▪", "·")
_TERMINAL = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "」", "…")  # FineWeb's set, with quotes and CJK stops


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Limits of the quality rules. `max_` keeps value ≤ limit, `min_` keeps value ≥ limit; shares are in [0, 1].

    One rule is switched off by a limit that every text meets.
    """

    min_words: int = 50  # Gopher
    max_words: int = 100_000  # Gopher
    min_mean_word_length: float = 3.0  # Gopher
    max_mean_word_length: float = 10.0  # Gopher
    max_symbol_to_word: float = 0.1  # Gopher
    max_bullet_lines: float = 0.9  # Gopher
    max_ellipsis_lines: float = 0.3  # Gopher
    min_alphabetic_words: float = 0.5  # Gopher 0.8; doctests and tables of numbers are reference, too
    min_stop_words: int = 2  # Gopher
    max_lorem_ipsum: int = 0  # C4
    max_curly_brackets: float = 0.04  # C4 drops any page with "{"; reference pages show dictionaries and TeX
    min_terminal_lines: float = 0.05  # FineWeb 0.12; signatures do not end in a full stop
    max_short_lines: float = 0.9  # FineWeb 0.67 (lines under 30 characters)
    max_duplicate_lines: float = 0.55  # Gopher 0.30; sister classes have methods of the same names
    max_duplicate_line_chars: float = 0.5  # Gopher 0.20; and the same one-line descriptions
    max_duplicate_paragraphs: float = 0.45  # Gopher 0.30; for the same reason
    max_duplicate_paragraph_chars: float = 0.35  # Gopher 0.20
    max_top_2gram: float = 0.20  # Gopher
    max_top_3gram: float = 0.18  # Gopher
    max_top_4gram: float = 0.16  # Gopher
    max_duplicate_5gram: float = 0.50  # Gopher 0.15 … 0.10 for n = 5 … 10: families of functions
    max_duplicate_6gram: float = 0.48  # are described in the same words
    max_duplicate_7gram: float = 0.46
    max_duplicate_8gram: float = 0.44
    max_duplicate_9gram: float = 0.42
    max_duplicate_10gram: float = 0.40

    def __post_init__(self) -> None:
        for low, high in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(low, f"{getattr(self, low)} must not exceed {high}={getattr(self, high)}")
        for name, value in vars(self).items():
            if value < 0:
                raise ConfigError(name, f"{value} must not be negative")


class View:
    """A text cut once into what the rules measure."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._repeated: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @functools.cached_property
    def words(self) -> list[str]:
        return _WORD.findall(self.text) if self.unspaced_chars else self.text.split()

    @functools.cached_property
    def unspaced_chars(self) -> int:
        """Characters of scripts that do not part words."""
        return 0 if self.text.isascii() else len(_UNSPACED_CHAR.findall(self.text))

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, stripped."""
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in _PARAGRAPH.split(self.text) if part.strip()]

    @functools.cached_property
    def spaced(self) -> bool:
        """Whether whitespace parts words here: under half of the letters are of scripts that do not."""
        return not self.unspaced_chars or 2 * self.unspaced_chars < sum(map(str.isalpha, self.text))

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every different word, numbered as it comes: a text has several times as many words as different ones."""
        return {word: number for number, word in enumerate(dict.fromkeys(self.words))}

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """[W] the number of each word in the vocabulary."""
        return np.fromiter(map(self.vocabulary.__getitem__, self.words), dtype=np.int64, count=len(self.words))

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[W] characters of each word."""
        return np.fromiter(map(len, self.vocabulary), dtype=np.int64, count=len(self.vocabulary))[self.numbers]

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """[W + 1] characters in the words before each word, and in all of them."""
        return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(self.lengths)))

    @functools.cached_property
    def line_repeats(self) -> tuple[float, float]:
        """Shares (by count, by characters) of lines that stood earlier."""
        return _repeats(self.lines)

    @functools.cached_property
    def paragraph_repeats(self) -> tuple[float, float]:
        """Shares (by count, by characters) of paragraphs that stood earlier."""
        return _repeats(self.paragraphs)

    def repeated(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The n-grams that occur more than once: (starts [R], ascending; group [R], equal for equal n-grams).

        An n-gram occurs twice only if the (n-1)-grams at its start and one word later do: each n sorts only what
        is left over of the n before it, which is little in prose.
        """
        if n == 0:
            return np.arange(len(self.words)), self.numbers
        if n not in self._repeated:
            starts, group = self.repeated(n - 1)
            if n > 1:
                both = np.flatnonzero(starts[1:] == starts[:-1] + 1)
                group = group[both] * (int(group.max(initial=0)) + 1) + group[both + 1]
                starts = starts[both]
            _, group, counts = np.unique(group, return_inverse=True, return_counts=True)
            twice = counts[group] > 1
            self._repeated[n] = starts[twice], group[twice]
        return self._repeated[n]


@functools.lru_cache(maxsize=1)
def view_of(text: str) -> View:
    """`View(text)`; blocks that follow each other on one text share it."""
    return View(text)


def words(view: View) -> float:
    """Number of words (Gopher)."""
    return len(view.words)


def mean_word_length(view: View) -> float:
    """Mean characters per word (Gopher)."""
    return float(view.lengths.mean()) if len(view.words) else 0.0


def symbol_to_word(view: View) -> float:
    """Hash signs or ellipses per word, whichever are more (Gopher)."""
    ellipses = view.text.count("...") + view.text.count("…")
    # `>>> ` blocks continue with a line of `... `: a prompt, not an ellipsis
    ellipses -= sum(line.startswith("...") for line in view.lines)
    return max(view.text.count("#"), ellipses) / max(1, len(view.words))


def bullet_lines(view: View) -> float:
    """Share of lines that start with a bullet (Gopher)."""
    return _share(view.lines, lambda line: line.startswith(_BULLETS))


def ellipsis_lines(view: View) -> float:
    """Share of lines that end with an ellipsis (Gopher)."""
    return _share(view.lines, lambda line: line.endswith(("...", "…")))


def alphabetic_words(view: View) -> float:
    """Share of words that hold a letter (Gopher)."""
    kinds = (word.isalpha() or any(map(str.isalpha, word)) for word in view.vocabulary)
    with_letter = np.fromiter(kinds, dtype=bool, count=len(view.vocabulary))
    return int(with_letter[view.numbers].sum()) / max(1, len(view.words))


def stop_words(view: View) -> float:
    """How many of Gopher's eight English stop words occur."""
    return len(_STOP_WORDS & {word.lower() for word in view.vocabulary})


def lorem_ipsum(view: View) -> float:
    """Occurrences of placeholder text (C4)."""
    return view.text.lower().count("lorem ipsum")


def curly_brackets(view: View) -> float:
    """Curly brackets per character (after C4, which drops every page that has one)."""
    return (view.text.count("{") + view.text.count("}")) / max(1, len(view.text))


def terminal_lines(view: View) -> float:
    """Share of lines that end in terminal punctuation (FineWeb)."""
    return _share(view.lines, lambda line: line.endswith(_TERMINAL))


def short_lines(view: View) -> float:
    """Share of lines under 30 characters (FineWeb)."""
    return _share(view.lines, lambda line: len(line) < 30)


def duplicate_lines(view: View) -> float:
    """Share of lines that stood earlier in the text (Gopher)."""
    return view.line_repeats[0]


def duplicate_line_chars(view: View) -> float:
    """Share of characters inside such lines (Gopher)."""
    return view.line_repeats[1]


def duplicate_paragraphs(view: View) -> float:
    """Share of paragraphs that stood earlier in the text (Gopher)."""
    return view.paragraph_repeats[0]


def duplicate_paragraph_chars(view: View) -> float:
    """Share of characters inside such paragraphs (Gopher)."""
    return view.paragraph_repeats[1]


def top_ngram(view: View, n: int) -> float:
    """Share of characters inside the most frequent n-gram (Gopher); 0 if none occurs twice."""
    starts, group = view.repeated(n)
    if not len(starts):
        return 0.0
    _, first, counts = np.unique(group, return_index=True, return_counts=True)
    length = view.ends[starts[first] + n] - view.ends[starts[first]]
    return float((length * counts).max() / view.ends[-1])


def duplicate_ngram(view: View, n: int) -> float:
    """Share of characters covered by n-grams that occurred earlier, overlaps counted once (Gopher).

    The first occurrence is no duplicate, as it is none for lines; the paper leaves this open.
    """
    starts, group = view.repeated(n)
    if not len(starts):
        return 0.0
    again = np.ones(len(starts), dtype=bool)
    again[np.unique(group, return_index=True)[1]] = False
    starts = starts[again]
    opened = np.zeros(len(view.words) + 1, dtype=np.int64)  # +1 where a repeated n-gram opens, -1 behind it
    opened[starts] = 1
    opened[starts + n] -= 1  # starts differ, so no place is counted twice
    covered = np.cumsum(opened[:-1]) > 0
    return float(view.lengths[covered].sum() / view.ends[-1])


@dataclass(frozen=True)
class Rule:
    """A measure and the config keys that bound it."""

    name: str
    measure: Callable[[View], float]
    low: str = ""
    high: str = ""
    spaced_only: bool = False
    english_only: bool = False


def _ngram_rules() -> tuple[Rule, ...]:
    top = (Rule(f"top_{n}gram", functools.partial(top_ngram, n=n), high=f"max_top_{n}gram") for n in (2, 3, 4))
    duplicate = (
        Rule(f"duplicate_{n}gram", functools.partial(duplicate_ngram, n=n), high=f"max_duplicate_{n}gram")
        for n in range(5, 11)
    )
    return (*top, *duplicate)


RULES: tuple[Rule, ...] = (
    Rule("words", words, low="min_words", high="max_words"),
    Rule("mean_word_length", mean_word_length, "min_mean_word_length", "max_mean_word_length", spaced_only=True),
    Rule("symbol_to_word", symbol_to_word, high="max_symbol_to_word"),
    Rule("bullet_lines", bullet_lines, high="max_bullet_lines"),
    Rule("ellipsis_lines", ellipsis_lines, high="max_ellipsis_lines"),
    Rule("alphabetic_words", alphabetic_words, low="min_alphabetic_words", spaced_only=True),
    Rule("stop_words", stop_words, low="min_stop_words", english_only=True),
    Rule("lorem_ipsum", lorem_ipsum, high="max_lorem_ipsum"),
    Rule("curly_brackets", curly_brackets, high="max_curly_brackets"),
    Rule("terminal_lines", terminal_lines, low="min_terminal_lines"),
    Rule("short_lines", short_lines, high="max_short_lines"),
    Rule("duplicate_lines", duplicate_lines, high="max_duplicate_lines"),
    Rule("duplicate_line_chars", duplicate_line_chars, high="max_duplicate_line_chars"),
    Rule("duplicate_paragraphs", duplicate_paragraphs, high="max_duplicate_paragraphs"),
    Rule("duplicate_paragraph_chars", duplicate_paragraph_chars, high="max_duplicate_paragraph_chars"),
    *_ngram_rules(),
)


def measures(text: str) -> dict[str, float]:
    """Every rule's value for `text`, for looking at distributions before setting a limit."""
    view = View(text)
    return {rule.name: float(rule.measure(view)) for rule in RULES}


def check(text: str, config: QualityConfig, lang: str = "en") -> tuple[str, str, float, float] | None:
    """The first rule that `text` misses, or None.

    Args:
        lang: the text's language; Gopher's stop words are asked of English ("en") only.
    Returns:
        (rule, key of the limit in `QualityConfig`, value, limit).
    """
    return first_missed(text, RULES, config, lang)


def first_missed(text: str, rules: Sequence[Rule], limits: object, lang: str) -> tuple[str, str, float, float] | None:
    """The first of `rules` whose value lies outside of the limits that `limits` has attributes for; see `check`."""
    view = view_of(text)
    for rule in rules:
        if (rule.spaced_only and not view.spaced) or (rule.english_only and lang != "en"):
            continue
        value = float(rule.measure(view))
        if rule.low and value < getattr(limits, rule.low):
            return rule.name, rule.low, value, float(getattr(limits, rule.low))
        if rule.high and value > getattr(limits, rule.high):
            return rule.name, rule.high, value, float(getattr(limits, rule.high))
    return None


def _share(items: list[str], test: Callable[[str], bool]) -> float:
    return sum(map(test, items)) / max(1, len(items))


def _repeats(items: list[str]) -> tuple[float, float]:
    """Shares (by count, by characters) of items that equal an earlier one."""
    seen: set[str] = set()
    count = chars = 0
    for item in items:
        if item in seen:
            count += 1
            chars += len(item)
        seen.add(item)
    return count / max(1, len(items)), chars / max(1, sum(map(len, items)))
