"""C4's rules (Raffel et al. 2020, section 2.2): lines that are no sentences go, then pages that keep too little.

    each line:  a word of over 1,000 characters? too few words? "javascript"? a notice about cookies? -> removed
    each page:  "lorem ipsum"? a curly bracket? fewer than `min_sentences` in what is left?           -> dropped

The paper also removes every line without a full stop at its end; FineWeb found that this costs 30% of the text
and left it out (section 3.4), and so do we unless `terminal_lines` is set. Page-long block lists of words are not
part of this: the list is not in the package, and it removes health and minority pages (Dodge et al. 2021).

Unspaced scripts have no words to count: of these rules only "lorem ipsum" and "javascript" touch them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from sekkei.core.errors import ConfigError
from sekkei.text.blocks.block import Apply, Result, Rewrites
from sekkei.text.document import Document, Dropped, drop
from sekkei.text.quality import view_of

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?:\s+|$)")
_WORD = re.compile(r"\w")
_END = (".", "?", "!", '"', "'", "”", "’")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_POLICY = re.compile("|".join(POLICIES))


@dataclass(frozen=True, kw_only=True)
class C4:
    """Which lines and pages go.

    Args:
        terminal_lines: remove lines that do not end in . ! ? or a quotation mark (the paper: yes).
        min_line_words: remove lines with fewer words (the code published with the paper: 3).
        max_word_length: remove lines with a longer word.
        javascript, policies: remove lines that mention these.
        curly_brackets: drop pages with "{".
        min_sentences: of what is left (the paper: 5).
    """

    name: ClassVar[str] = "c4"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = "text"

    terminal_lines: bool = False
    min_line_words: int = 3
    max_word_length: int = 1000
    javascript: bool = True
    policies: bool = True
    lorem_ipsum: bool = True
    curly_brackets: bool = True
    min_sentences: int = 5

    def __post_init__(self) -> None:
        for key in ("min_line_words", "max_word_length", "min_sentences"):
            if getattr(self, key) < 0:
                raise ConfigError(key, f"{getattr(self, key)} must not be negative")

    def build(self) -> Apply:
        return self._apply

    def _apply(self, document: Document) -> Result:
        text, lower = document.text, document.text.lower()
        if self.lorem_ipsum and (at := lower.find("lorem ipsum")) >= 0:
            return None, [drop(document, "c4.lorem_ipsum", 1, 0, at)]
        spaced = view_of(text).spaced
        script = self.javascript and "javascript" in lower
        notice = self.policies and _POLICY.search(lower) is not None  # most pages have neither: no line needs a look
        if self.curly_brackets and spaced and (at := text.find("{")) >= 0:
            return None, [drop(document, "c4.curly_bracket", 1, 0, at)]
        kept: list[str] = []
        removed: list[Dropped] = []
        sentences = start = 0
        for line in text.split("\n"):
            failed = self._line(line, spaced, script, notice) if line.strip() else None
            if failed:
                rule, value, limit = failed
                removed.append(drop(document, f"c4.line_{rule}", value, limit, start, start + len(line)))
            else:
                kept.append(line)
                if sentences < self.min_sentences:
                    sentences += count_sentences(line)
            start += len(line) + 1
        if spaced and sentences < self.min_sentences:
            return None, [drop(document, "c4.sentences", sentences, self.min_sentences)]
        if not removed:
            return document, []
        left = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
        if not left.strip():
            return None, [drop(document, "c4.sentences", 0, max(1, self.min_sentences))]
        return replace(document, text=left), removed

    def _line(self, line: str, spaced: bool, script: bool, notice: bool) -> tuple[str, float, float] | None:
        """(rule, value, limit) of the first rule that a line breaks; `script`, `notice`: the page has such a line."""
        if script and "javascript" in line.lower():
            return "javascript", 1, 0
        if notice and _POLICY.search(line.lower()):
            return "policy", 1, 0
        if not spaced:
            return None
        words = line.split()
        if len(words) < self.min_line_words:
            return "words", len(words), self.min_line_words
        if self.terminal_lines and (not line.rstrip().endswith(_END) or line.rstrip().endswith("...")):
            return "terminal", 0, 1
        if len(line) > self.max_word_length:
            longest = max(map(len, words))
            if longest > self.max_word_length:
                return "word_length", longest, self.max_word_length
        return None


def count_sentences(line: str) -> int:
    """Sentences of one line: stretches with a word in them up to a full stop, or to the end of the line."""
    return sum(1 for piece in _SENTENCE_END.split(line) if _WORD.search(piece))
