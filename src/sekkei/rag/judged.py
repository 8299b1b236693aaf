"""Judged queries from files, and the measurement of an index against them.

One JSON object per line:

    {"query": "how tall is it?", "relevant": [{"path": "tower.md", "start": 10, "end": 80, "grade": 2}]}

`start` and `end` (characters of the text that is read from the file) make it a judgement of a passage: a chunk that
overlaps the span counts, once. Without them the file counts, at the rank of its best chunk. `grade` is 1 if missing.
TREC's files work too: queries as `id<TAB>text`, judgements as `id 0 path grade`.

Judgements name files that must be in the index: a name that is not there is an error, since it would silently count as
never found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.rag.index import Index
from sekkei.rag.metrics import scores
from sekkei.rag.retrieve import Arm, Hit, Rerank, search


@dataclass(frozen=True)
class Target:
    """Something relevant: a file, or (end > 0) the characters [start, end) of one."""

    path: str
    grade: int = 1
    start: int = 0
    end: int = 0

    @property
    def name(self) -> str:
        return f"{self.path}[{self.start}:{self.end}]" if self.end else self.path

    def holds(self, hit: Hit) -> bool:
        chunk = hit.chunk
        return chunk.path == self.path and (not self.end or (chunk.start < self.end and self.start < chunk.end))


@dataclass(frozen=True)
class Judged:
    """A query and what is relevant to it."""

    query: str
    targets: tuple[Target, ...]


def read_judged(queries: Path, judgements: Path | None = None) -> list[Judged]:
    """Read judged queries: one JSON-lines file, or TREC's two.

    Raises:
        UserError: a file is missing, or a line of it cannot be read; the message names the line.
    """
    if judgements is None:
        return [_from_json(queries, number, line) for number, line in _lines(queries)]
    texts: dict[str, str] = {}
    for number, line in _lines(queries):
        name, tab, text = line.partition("\t")
        if not tab or name in texts:
            raise UserError(
                f"{queries}:{number}: each line is id<TAB>text, and every id stands once; got {line[:60]!r}"
            )
        texts[name] = text
    found: dict[str, list[Target]] = {name: [] for name in texts}
    for number, line in _lines(judgements):
        try:
            name, _, path, grade = line.split()
            found[name].append(Target(path, int(grade)))
        except KeyError:
            raise UserError(f"{judgements}:{number}: the query {name!r} is not in {queries}") from None
        except ValueError:
            raise UserError(f"{judgements}:{number}: a line is `query 0 path grade`, got {line[:60]!r}") from None
    return [Judged(texts[name], tuple(targets)) for name, targets in found.items() if targets]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _from_json(path: Path, number: int, line: str) -> Judged:
    try:
        row: Any = json.loads(line)
        targets = tuple(Target(**target) for target in row["relevant"])
        if not isinstance(row["query"], str) or not all(isinstance(target.path, str) for target in targets):
            raise TypeError("query and path are texts")
    except (ValueError, KeyError, TypeError) as error:
        shape = '{"query": "…", "relevant": [{"path": "…", "start": 0, "end": 9, "grade": 1}]}'
        raise UserError(f"{path}:{number}: a line is {shape} ({type(error).__name__}: {error})") from None
    return Judged(row["query"], targets)


def measure(
    index: Index,
    judged: Sequence[Judged],
    arms: Sequence[Arm],
    progress: Callable[[int], None] = lambda done: None,
    rerank: Rerank | None = None,
    recall_at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Search every query and score the rankings (metrics.py).

    Raises:
        UserError: a judgement names a file that is not in the index.
    """
    known = index.store.files()
    for row in judged:
        for target in row.targets:
            if target.path not in known:
                raise UserError(
                    f"judged file {target.path!r} is not in the index of {index.root}; names are relative to it"
                )
    rankings, grades = {}, {}
    for number, row in enumerate(judged):
        progress(number)
        hits = search(index, row.query, k=100, arms=arms, rerank=rerank)
        rankings[str(number)] = ranking(hits, row.targets)
        grades[str(number)] = {target.name: target.grade for target in row.targets}
    return scores(rankings, grades, recall_at)


def ranking(hits: Sequence[Hit], targets: Sequence[Target]) -> list[str]:
    """Names in the order of their first hit: a target's where a hit holds one, else the hit's file.

    A chunk that overlaps two spans finds both; further chunks of a file that is named already are no new names.
    """
    names: list[str] = []
    for hit in hits:
        held = sorted((target for target in targets if target.holds(hit)), key=lambda target: -target.grade)
        names += [target.name for target in held] or [f"{hit.chunk.path} (not judged)"]
    return list(dict.fromkeys(names))
