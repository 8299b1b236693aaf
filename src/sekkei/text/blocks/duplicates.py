"""Corpus blocks that drop duplicates: equal texts by a hash, nearly equal ones by MinHash (text.dedup has the maths).

    exact   mark = 128 bits of SHA-256 of the evened-out text                  equal marks are one group
    near    mark = signature of 14 bands × 8 minima                            texts that share a band are one group

Of a group the text with the smallest digest stays (of equal texts the one whose id has). A digest belongs to the text
and not to its place, so the kept texts are the same however files are named, cut, ordered or shared out; the ledger
names the one that stayed.

While resolving, hashes of one band (`near`) or of all texts (`exact`) and a forest are in memory, for the whole corpus;
signatures (896 bytes a document) stay on the disk and are read band by band.

Not handled: the same paragraph in otherwise different texts (see `lines`), translations, paraphrase.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sekkei.core.errors import ConfigError
from sekkei.text import dedup
from sekkei.text.blocks.block import Decision, Marks, Result, Rewrites
from sekkei.text.document import Document, Dropped


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates:
    """Texts that are equal but for case, spacing and Unicode form."""

    name: ClassVar[str] = "exact_duplicates"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = ""

    def mark(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        digests = b"".join(
            hashlib.sha256(dedup.normalized(document.text).encode("utf-8", "replace")).digest()[:16]
            for document in documents
        )
        return {"digest": np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)}

    def resolve(self, marks: Sequence[Marks]) -> list[Decision]:
        digests = [unit.arrays["digest"] for unit in marks]
        parent = np.arange(sum(map(len, digests)))
        if len(parent):
            dedup.join_equal(parent, np.concatenate(digests))
        return _decide(marks, parent, lambda dropped, _: np.ones(len(dropped)))

    def apply(self, document: Document, place: int, decision: Decision) -> Result:
        return _apply(document, place, decision, "exact_duplicate", 1.0)


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Texts that share a band of their MinHash signatures.

    Args:
        ngram: words per shingle. bands, rows: a pair of Jaccard J is found with probability 1 - (1 - J^rows)^bands.
    """

    name: ClassVar[str] = "near_duplicates"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = ""

    ngram: int = 5
    bands: int = 14
    rows: int = 8

    def __post_init__(self) -> None:
        for key in ("ngram", "bands", "rows"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"{getattr(self, key)} must be at least 1")

    @property
    def threshold(self) -> float:
        """The Jaccard similarity at which the S-curve is steepest."""
        return (1 / self.bands) ** (1 / self.rows)

    def mark(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        found = dedup.signatures([document.text for document in documents], self.ngram, self.bands * self.rows)
        bands = found.reshape(len(documents), self.bands, self.rows)
        return {f"band{i:02d}": np.ascontiguousarray(bands[:, i]) for i in range(self.bands)}

    def resolve(self, marks: Sequence[Marks]) -> list[Decision]:
        parent = np.arange(sum(len(unit.order) for unit in marks))
        for band in range(self.bands if len(parent) else 0):
            name = f"band{band:02d}"
            dedup.join_equal(parent, np.concatenate([dedup.band_hashes(unit.arrays[name]) for unit in marks])[:, None])
        edges = np.cumsum([0, *(len(unit.order) for unit in marks)])

        def rows(index: np.ndarray, name: str) -> np.ndarray:
            found = np.empty((len(index), self.rows), dtype=np.uint64)
            owner = np.searchsorted(edges, index, side="right") - 1
            for number in np.unique(owner):
                mine = owner == number
                found[mine] = marks[number].arrays[name][index[mine] - edges[number]]
            return found

        def similarity(dropped: np.ndarray, kept: np.ndarray) -> np.ndarray:
            equal = np.zeros(len(dropped))
            for band in range(self.bands):
                name = f"band{band:02d}"
                equal += (rows(dropped, name) == rows(kept, name)).mean(axis=1)
            return equal / self.bands

        return _decide(marks, parent, similarity)

    def apply(self, document: Document, place: int, decision: Decision) -> Result:
        return _apply(document, place, decision, "near_duplicate", self.threshold)


def _decide(
    marks: Sequence[Marks], parent: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[Decision]:
    """Of every group all but the text with the smallest digest, unit by unit."""
    order = np.concatenate([unit.order for unit in marks]) if marks else np.zeros((0, 2), dtype=np.uint64)
    rank = np.empty(len(order), dtype=np.int64)
    rank[np.lexsort((order[:, 1], order[:, 0]))] = np.arange(len(order))
    roots = dedup.roots(parent)
    best = np.full(len(order), len(order), dtype=np.int64)
    np.minimum.at(best, roots, rank)
    place_of = np.argsort(rank)
    dropped = np.flatnonzero(rank != best[roots])
    kept = place_of[best[roots[dropped]]]
    values = measure(dropped, kept)
    edges = np.cumsum([0, *(len(unit.order) for unit in marks)])

    def name(index: int) -> str:
        unit = int(np.searchsorted(edges, index, side="right")) - 1
        return marks[unit].id_of(int(index - edges[unit]))

    decisions = []
    for low, high in itertools.pairwise(edges):
        mine = slice(*np.searchsorted(dropped, [low, high]))
        decisions.append(Decision(dropped[mine] - low, [name(int(i)) for i in kept[mine]], values[mine]))
    return decisions


def _apply(document: Document, place: int, decision: Decision, rule: str, limit: float) -> Result:
    rows = decision.rows_of(place)
    if rows.start == rows.stop:
        return document, []
    return None, [Dropped(document.id, rule, float(decision.values[rows.start]), limit, decision.others[rows.start])]
