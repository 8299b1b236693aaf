"""Documents that hold a piece of an evaluation set go, so that a later score is not one of memory.

    evaluation items ──n-grams──> a set of 64-bit hashes, each with its item
    document         ──n-grams──> any of them in the set?  -> dropped; a row per item names file, item and the words

n-grams of 13 words (Brown et al. 2020, appendix C), case and punctuation evened out; where a script does not part
words a character counts as one, and 13 of those are an ordinary phrase, so there n is 40. Items shorter than n are
matched as a whole from `min_words` words on. n-grams that several evaluation items share are templates of the
benchmark and do not count ("How many … does she have in total?").

What was found is told per evaluation file (`overlap`): the share of its items that stood in the corpus before it was
cleaned, to be printed beside the score on that file.

Evaluation files: .jsonl (every string of a row), .json (every string in it), .txt (paragraphs), each also .gz.

Not handled: translations and rewordings of an item.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sekkei.core.errors import ConfigError, UserError
from sekkei.text.blocks.block import Apply, Result, Rewrites
from sekkei.text.dedup import word_marks
from sekkei.text.document import Document, Dropped
from sekkei.text.quality import UNSPACED

_TOKEN = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Which evaluation files must not be in the corpus.

    Args:
        files: paths of evaluation files.
        ngram, ngram_unspaced: words (characters) in a row that count as a copy.
        min_words: shorter items are not looked for.
    """

    name: ClassVar[str] = "decontaminate"
    version: ClassVar[int] = 2
    rewrites: ClassVar[Rewrites] = ""

    files: tuple[str, ...]
    ngram: int = 13
    ngram_unspaced: int = 40
    min_words: int = 8

    def __post_init__(self) -> None:
        for key in ("ngram", "ngram_unspaced", "min_words"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"{getattr(self, key)} must be at least 1")
        for file in self.files:
            if not Path(file).is_file():
                raise ConfigError("files", f"{file}: no such file")

    def inputs(self) -> tuple[Path, ...]:
        """Files whose content the outcome depends on."""
        return tuple(map(Path, self.files))

    def build(self) -> Apply:
        index = Index(self)

        def apply(document: Document) -> Result:
            hits, share = index.find(document.text)
            if not hits:
                return document, []
            rules = ["contaminated_item"] * (len(hits) - 1) + ["contaminated"]  # the last row is the document's
            return None, [
                Dropped(document.id, rule, share, 0.0, f"{item}: {document.text[start:end]}", start, end)
                for rule, (item, start, end) in zip(rules, hits, strict=True)
            ]

        return apply

    def evaluation_items(self) -> dict[str, int]:
        """Name of every evaluation file -> its items."""
        return {file.name: len({number for number, _ in read_items(file)}) for file in self.inputs()}


class Index:
    """The n-grams of the evaluation items, by width."""

    def __init__(self, config: Decontaminate) -> None:
        self.config = config
        self.items: list[str] = []
        grams: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for file in config.inputs():
            for number, text in read_items(file):
                self.items.append(f"{file.name}#{number}")
                words, _ = _words(text)
                if len(words) < config.min_words:
                    continue
                width = min(self._width(text), len(words))
                found = np.unique(_ngrams(word_marks(words), width))
                hashes, owners = grams.setdefault(width, ([], []))
                hashes.append(found)
                owners.append(np.full(len(found), len(self.items) - 1))
        self.tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for width, (hashes, owners) in sorted(grams.items()):
            flat, owner = np.concatenate(hashes), np.concatenate(owners)
            unique, first, counts = np.unique(flat, return_index=True, return_counts=True)
            lone = counts == 1
            self.tables[width] = unique[lone], owner[first[lone]]

    def _width(self, text: str) -> int:
        unspaced = 2 * len(_UNSPACED.findall(text)) > len(text)
        return self.config.ngram_unspaced if unspaced else self.config.ngram

    def find(self, text: str) -> tuple[list[tuple[str, int, int]], float]:
        """((item, start, end) of the first place of every item that the text holds, share of its n-grams that hit)."""
        words, spans = _words(text)
        marks = word_marks(words) if words else np.zeros(0, np.uint64)
        first: dict[str, tuple[str, int, int]] = {}
        share = 0.0
        for width, (hashes, owners) in self.tables.items():
            if len(words) < width or not len(hashes):
                continue
            found = _ngrams(marks, width)
            place = np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)
            hits = np.flatnonzero(hashes[place] == found)
            share = max(share, len(hits) / len(found))
            for at in hits.tolist():
                item = self.items[int(owners[place[at]])]
                first.setdefault(item, (item, spans[at][0], spans[at + width - 1][1]))
        return sorted(first.values(), key=lambda hit: hit[1:]), share


def overlap(folder: Path) -> dict[str, float]:
    """Share of each evaluation file's items that stood in the pages which `sekkei data clean` cleaned into `folder`.

    Returns:
        name of the evaluation file -> share in [0, 1]; empty where nothing was looked for.
    Raises:
        UserError: the folder holds no finished run.
    """
    from sekkei.text.document import read_ledger

    try:
        totals = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("evaluations", {})
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: holds no finished run of `sekkei data clean` ({error})") from None
    if not totals:
        return {}
    rows = [row for row in read_ledger(folder / "ledger.parquet") if row.rule in ("contaminated", "contaminated_item")]
    items = {row.excerpt.partition(": ")[0] for row in rows}
    found = Counter(item.rpartition("#")[0] for item in items)
    return {name: found[name] / max(1, total) for name, total in totals.items()}


def read_items(path: Path) -> Iterator[tuple[int, str]]:
    """(number of the item, text) of an evaluation file; several texts may belong to one item.

    Raises:
        UserError: the file cannot be read as what its name says.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    try:
        with opener(path, "rb") as file:
            raw = file.read().decode("utf-8")
        if suffix == ".jsonl":
            for number, line in enumerate(filter(str.strip, raw.split("\n"))):
                yield from ((number, text) for text in _strings(json.loads(line)))
        elif suffix == ".json":
            yield from enumerate(_strings(json.loads(raw)))
        elif suffix == ".txt":
            yield from enumerate(part for part in re.split(r"\n\s*\n", raw) if part.strip())
        else:
            raise UserError(f"decontaminate.files: {path} is none of .jsonl, .json, .txt (.gz)")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"decontaminate.files: {path} cannot be read ({error})") from None


def inputs_digest(paths: tuple[Path, ...]) -> list[str]:
    """SHA-256 of each file: part of the block's key."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)


def _words(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    matches = list(_TOKEN.finditer(text))
    return [unicodedata.normalize("NFKC", m.group()).lower() for m in matches], [m.span() for m in matches]


def _ngrams(marks: np.ndarray, width: int) -> np.ndarray:
    total = np.zeros(len(marks) - width + 1, dtype=np.uint64)
    for shift in range(width):
        total = total * _BASE + marks[shift : shift + len(total)]
    return total
