"""What a block of the cleaning pipeline is: a named, versioned, pure function of one document and its parameters.

    document ──block──> (document, [])                  kept as it is
                        (document', [row, …])           kept, with spans removed; one ledger row for each
                        (None, [row])                   dropped: which rule, what was measured, what the limit was

A block is a frozen dataclass: its fields are its parameters, `build` gives the function. A corpus block judges a
document by all others: `mark` reduces each document to numbers on its own, `resolve` looks at the marks of the
whole corpus and says what is to go, and `apply` does it. Because `resolve` sees a set and not a sequence, neither
workers nor shards nor the order of files can change the outcome.

`version` is raised with every change of what a block does; it is part of the key under which results are kept, as are
`libraries` (packages whose version may change the outcome) and `inputs()` (files that it reads) where a block has them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from sekkei.core.errors import UserError
from sekkei.text.document import Document, Dropped

Result = tuple[Document | None, list[Dropped]]
Apply = Callable[[Document], Result]
Rewrites = Literal["", "labels", "text"]


class Block(Protocol):
    """Parameters of a block that judges each document alone."""

    name: ClassVar[str]
    version: ClassVar[int]
    rewrites: ClassVar[Rewrites]
    """What a kept document may differ in: nothing, `lang` and `meta`, or those and `text`."""

    def build(self) -> Apply:
        """The block's function; what is dear to prepare is prepared here, once per process."""
        ...


@dataclass(frozen=True)
class Marks:
    """What `mark` gave for the documents of one unit of input.

    Args:
        order: [N, 2] uint64, digests of each text and of its id: of a group the document with the smallest stays.
        arrays: one array per name, first axis over documents, or flat with "ends" [N] saying where each stops.
        id_of: the id of the document in place i of the unit.
    """

    order: np.ndarray
    arrays: Mapping[str, np.ndarray]
    id_of: Callable[[int], str]


@dataclass(frozen=True)
class Decision:
    """What is to go from one unit: per row a place in the unit, and why.

    Args:
        places: [R] int64, ascending; index of a document among the unit's marked ones.
        others: [R] ids of the documents that stay instead ("" where there is none).
        values: [R] float64, what was measured.
        hashes: [R] uint64, what of the document is meant (a line); 0 for all of it.
    """

    places: np.ndarray
    others: Sequence[str]
    values: np.ndarray
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    def rows_of(self, place: int) -> slice:
        """The rows about one document."""
        return slice(*np.searchsorted(self.places, [place, place + 1]))


class CorpusBlock(Protocol):
    """Parameters of a block that judges documents by each other."""

    name: ClassVar[str]
    version: ClassVar[int]
    rewrites: ClassVar[Rewrites]

    def mark(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        """Arrays about each document alone."""
        ...

    def resolve(self, marks: Sequence[Marks]) -> list[Decision]:
        """One decision per unit."""
        ...

    def apply(self, document: Document, place: int, decision: Decision) -> Result: ...


def need(module: str, package: str, key: str, extra: str = "data") -> Any:
    """Import an optional library.

    Raises:
        UserError: it is not installed; says what to install, or which key to change.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{key} needs {package} ({error}); pip install 'sekkei[{extra}]', or leave it out") from None
