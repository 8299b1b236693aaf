"""Corpus block that removes text which stands in many documents: boilerplate lines and copied paragraphs.

    line       in at least `line_documents` different documents    removed from all of them ("Share this article")
    paragraph  in at least two documents                           kept in one (smallest digest), removed from others

A line is judged by 64 bits of its text with case, spacing and digits evened out ("12 comments" = "7 comments").
Paragraphs count from `paragraph_chars` characters on, so that headings and captions are left to the rule for lines.
Each removal is a ledger row with its offsets; a document with under `min_chars` left goes as a whole.
The counting is over the corpus as a set, so it does not depend on order or shards (CCNet, Wenzek et al. 2020,
counts within a shard only).

Memory while resolving: 24 bytes for each line of the corpus that counts.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from sekkei.core.errors import ConfigError
from sekkei.text.blocks.block import Decision, Marks, Result, Rewrites
from sekkei.text.document import Document, Dropped, drop

_DIGITS = re.compile(r"\d+")
_PARAGRAPH = np.uint64(1)  # lowest bit of a mark: 0 for lines


@dataclass(frozen=True, kw_only=True)
class RepeatedLines:
    """When a repeated line or paragraph goes.

    Args:
        line_documents: a line in so many documents is boilerplate; 0 switches lines off.
        paragraph_chars: shortest paragraph that counts as copied; 0 switches paragraphs off.
        min_chars: a document with fewer left is dropped.
    """

    name: ClassVar[str] = "repeated_lines"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = "text"

    line_documents: int = 10
    paragraph_chars: int = 200
    min_chars: int = 100

    def __post_init__(self) -> None:
        for key in ("line_documents", "paragraph_chars", "min_chars"):
            if getattr(self, key) < 0:
                raise ConfigError(key, f"{getattr(self, key)} must not be negative")
        if self.line_documents == 1:
            raise ConfigError("line_documents", "1 would remove every line; 0 switches the rule off")

    def mark(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        flat: list[int] = []
        ends = np.zeros(len(documents), dtype=np.int64)
        for i, document in enumerate(documents):
            flat += sorted({mark for _, _, mark in self._parts(document.text)})
            ends[i] = len(flat)
        return {"hashes": np.array(flat, dtype=np.uint64), "ends": ends}

    def _parts(self, text: str) -> Iterator[tuple[int, int, int]]:
        """(start, end, mark) of every line that counts."""
        start = 0
        for line in text.split("\n"):
            end = start + len(line)
            if line.strip():
                if self.line_documents:
                    yield start, end, _hash(line, 0)
                if self.paragraph_chars and len(line) >= self.paragraph_chars:
                    yield start, end, _hash(line, 1)
            start = end + 1

    def resolve(self, marks: Sequence[Marks]) -> list[Decision]:
        if not marks:
            return []
        hashes = np.concatenate([unit.arrays["hashes"] for unit in marks])
        sizes = [np.diff(unit.arrays["ends"], prepend=0) for unit in marks]
        owner = np.repeat(np.arange(sum(map(len, sizes))), np.concatenate(sizes)) if len(hashes) else np.zeros(0, int)
        order = np.concatenate([unit.order for unit in marks])
        rank = np.empty(len(order), dtype=np.int64)
        rank[np.lexsort((order[:, 1], order[:, 0]))] = np.arange(len(order))
        _, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        first = np.full(len(counts), len(order), dtype=np.int64)
        np.minimum.at(first, group, rank[owner])
        paragraph = (hashes & np.uint64(1)) == _PARAGRAPH
        times = counts[group]
        go = np.where(
            paragraph,
            (times > 1) & (rank[owner] != first[group]),
            (times >= self.line_documents) if self.line_documents else False,
        )
        places = owner[go]
        edges = np.cumsum([0, *(len(unit.order) for unit in marks)])
        found = []
        for low, high in itertools.pairwise(edges):
            mine = slice(*np.searchsorted(places, [low, high]))
            count = mine.stop - mine.start
            values = times[go][mine].astype(np.float64)
            found.append(Decision(places[mine] - low, [""] * count, values, hashes[go][mine]))
        return found

    def apply(self, document: Document, place: int, decision: Decision) -> Result:
        rows = decision.rows_of(place)
        if rows.start == rows.stop:
            return document, []
        gone = dict(zip(decision.hashes[rows].tolist(), decision.values[rows].tolist(), strict=True))
        spans: dict[tuple[int, int], Dropped] = {}
        for start, end, mark in self._parts(document.text):
            if mark in gone and (start, end) not in spans:
                rule, limit = ("repeated_paragraph", 1) if mark & 1 else ("repeated_line", self.line_documents - 1)
                spans[start, end] = drop(document, rule, gone[mark], limit, start, end)
        pieces, at = [], 0
        for start, end in sorted(spans):
            pieces.append(document.text[at:start])
            at = min(end + 1, len(document.text))
        pieces.append(document.text[at:])
        text = re.sub(r"\n{3,}", "\n\n", "".join(pieces)).strip("\n")
        if len(text) < self.min_chars:
            return None, [*spans.values(), drop(document, "repeated_lines.left", len(text), self.min_chars)]
        return replace(document, text=text), [spans[key] for key in sorted(spans)]


def _hash(line: str, kind: int) -> int:
    evened = _DIGITS.sub("0", " ".join(line.lower().split()))
    whole = int.from_bytes(hashlib.blake2b(evened.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    return (whole & ~1) | kind
