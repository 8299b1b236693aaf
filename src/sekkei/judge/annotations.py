"""Pairwise judgements in AlpacaEval's format, as one table of models × instructions against a baseline.

A file is a JSON list (or JSON lines) of rows; further keys are ignored:

    {"instruction": "…", "output_1": "…", "output_2": "…", "generator_1": "gpt4", "generator_2": "phi-2",
     "preference": 1.23, "annotator": "the judge"}

`generator_1` and `annotator` may be missing. `preference` is in [1, 2]: 1 = output_1 is better, 2 = output_2 is better,
1.5 (or 0, AlpacaEval's old way) = a tie, null or NaN = the judge's reply could not be read: such a row is counted and
never scored. Either side may be the baseline; where `generator_1` is missing, output_1 is the baseline's.
Source: Dubois et al. 2024 (arXiv:2404.04475) and the annotations published with it.

Rows are matched by instruction, never by their place, so that a model with missing rows cannot be compared with
other instructions' difficulties. Where one model has one instruction with several baseline answers, these are
several items. Judgements of the same item (both orders, repeats) are averaged; exact copies count once.

What it does not handle: rankings of more than two answers, ratings of single answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sekkei.core.errors import UserError

FIELDS = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference", "annotator")
ROUNDING = 1e-6  # a preference this far outside [1, 2] is rounding of a weighted judge


@dataclass(frozen=True, slots=True)
class Row:
    """One judgement as it was read; texts that only need comparing are kept as hashes."""

    where: str
    instruction: str
    names: tuple[str | None, str | None]
    lengths: tuple[int, int]
    hashes: tuple[int, int]
    preference: float  # [1, 2], NaN = unparsed
    judge: str | None = None  # AlpacaEval's "annotator"


@dataclass(kw_only=True)
class Counts:
    """What was found for one model."""

    rows: int = 0
    unparsed: int = 0  # rows whose preference is null: not scored
    copies: int = 0  # rows that repeat an earlier one exactly: counted once
    repeats: int = 0  # further judgements of an item (the other order, another draw): averaged with the first
    as_first: int = 0  # judged rows in which the model stood first


@dataclass(frozen=True, kw_only=True)
class Table:
    """Judgements of M models against one baseline on X items.

    Attributes:
        baseline: its name. models: [M] names, sorted. instructions: [X] texts.
        win: [M, X] share of preference for the model in [0, 1], mean of its judgements; NaN = none.
        length: [M, X] characters of the model's answer, NaN = no row.
        baseline_length: [M, X] characters of the baseline's answer in the same rows.
        counts: per model. without_baseline: rows that compare two other models. notes: lines for the reader.
    """

    baseline: str
    models: list[str]
    instructions: list[str]
    win: np.ndarray
    length: np.ndarray
    baseline_length: np.ndarray
    counts: dict[str, Counts]
    without_baseline: int = 0
    notes: list[str] = field(default_factory=list)


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Rows of all files.

    Raises:
        UserError: a file is missing or is not such a list, or a row lacks a key or has one that cannot be right.
    """
    rows: list[Row] = []
    for path in paths:
        found = read_json_rows(path, _wanted)
        rows += [to_row(data, f"{path} row {number}") for number, data in enumerate(found, start=1)]
    return rows


def to_row(data: Any, where: str = "row") -> Row:
    """Check one row."""
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a judgement (a mapping with {', '.join(FIELDS)})")
    for key in ("instruction", "output_1", "output_2", "preference"):
        if key not in data:
            raise UserError(f"{where}: {key} is missing")
    texts = [_text(data[key], key, where) for key in ("instruction", "output_1", "output_2")]
    names = (_name(data.get("generator_1"), "generator_1", where), _name(data.get("generator_2"), "generator_2", where))
    return Row(
        where=where,
        instruction=texts[0],
        names=names,
        lengths=(len(texts[1]), len(texts[2])),
        hashes=(hash(texts[1]), hash(texts[2])),
        preference=_preference(data["preference"], where),
        judge=_name(data.get("annotator"), "annotator", where),
    )


def build_table(rows: Iterable[Row], baseline: str) -> Table:
    """Arrange rows by model and item.

    Raises:
        UserError: no row has the baseline, or a row does not say which model it judges.
    """
    rows = list(rows)
    sided, unclear = _sides(rows, baseline)
    if not sided:
        known = sorted({name for row in rows for name in row.names if name})
        why = f"; {_unclear(unclear, baseline)}" if unclear else ""
        raise UserError(f"--baseline {baseline}: no row has it; names in the file: {', '.join(known[:20])}{why}")
    items = _items([(row, side) for row, _, side in sided])
    models = sorted({model for _, model, _ in sided})
    counts = {model: Counts() for model in models}
    place = {model: number for number, model in enumerate(models)}
    shape = (len(models), len(items))
    total, judged, own, other, seen_rows = (np.zeros(shape) for _ in range(5))
    seen: set[tuple[Any, ...]] = set()
    for row, model, side in sided:
        count = counts[model]
        count.rows += 1
        cell = (place[model], items[_key(row, side, items)])
        identity = (*cell, side, row.hashes, row.judge, str(row.preference))
        if identity in seen:
            count.copies += 1
            continue
        seen.add(identity)
        own[cell] += row.lengths[side]
        other[cell] += row.lengths[1 - side]
        seen_rows[cell] += 1
        if math.isnan(row.preference):
            count.unparsed += 1
            continue
        count.repeats += int(judged[cell] > 0)
        count.as_first += int(side == 0)
        judged[cell] += 1
        total[cell] += row.preference - 1 if side == 1 else 2 - row.preference
    with np.errstate(invalid="ignore"):
        win, length, baseline_length = total / judged, own / seen_rows, other / seen_rows
    return Table(
        baseline=baseline,
        models=models,
        instructions=[key[0] for key in items],
        win=win,
        length=length,
        baseline_length=baseline_length,
        counts=counts,
        without_baseline=len(rows) - len(sided) - unclear,
        notes=[*_notes(rows, baseline), *([_unclear(unclear, baseline)] if unclear else [])],
    )


def with_texts(rows: Iterable[dict[str, Any]], paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows that name instruction and models, with the answers' texts as `paths` hold them."""
    texts: dict[tuple[str, str], str] = {}
    for path in paths:
        for data in read_json_rows(path, _wanted):
            for side in ("1", "2"):
                texts[data["instruction"], data.get(f"generator_{side}") or ""] = data[f"output_{side}"] or ""
    return [
        row | {f"output_{side}": texts[row["instruction"], row[f"generator_{side}"]] for side in ("1", "2")}
        for row in rows
    ]


def _sides(rows: list[Row], baseline: str) -> tuple[list[tuple[Row, str, int]], int]:
    """([(row, model, side on which the model stands: 0 or 1)] of every row that has the baseline on the other side,
    rows whose first answer may be anybody's: the baseline stands second, nobody is named first, and the texts differ).
    """
    sided: list[tuple[Row, str, int]] = []
    unclear = 0
    for row in rows:
        first, second = row.names
        if second is None:
            raise UserError(f"{row.where}: generator_2 is missing; name the model of output_2 in every row")
        if first is None and second == baseline and row.hashes[0] != row.hashes[1]:
            unclear += 1
        elif first is None or first == baseline:
            sided.append((row, second, 1))
        elif second == baseline:
            sided.append((row, first, 0))
    return sided, unclear


def _unclear(count: int, baseline: str) -> str:
    return (
        f"{count} rows name {baseline} as generator_2 and nobody as generator_1: whose output_1 is cannot be known, "
        "they are left out; add generator_1 to use them"
    )


Key = tuple[str, int | None]


def _items(sided: list[tuple[Row, int]]) -> dict[Key, int]:
    """Items in the order in which they first stand: the instruction, and the baseline's answer where it has several."""
    answers: dict[tuple[str, str | None], set[int]] = {}
    for row, side in sided:
        answers.setdefault((row.instruction, row.names[side]), set()).add(row.hashes[1 - side])
    several = {instruction for (instruction, _), found in answers.items() if len(found) > 1}
    items: dict[Key, int] = {}
    for row, side in sided:
        key = (row.instruction, row.hashes[1 - side] if row.instruction in several else None)
        items.setdefault(key, len(items))
    return items


def _key(row: Row, side: int, items: dict[Key, int]) -> Key:
    plain: Key = (row.instruction, None)
    return plain if plain in items else (row.instruction, row.hashes[1 - side])


def _notes(rows: list[Row], baseline: str) -> list[str]:
    unnamed = sum(row.names[0] is None for row in rows)
    judges = sorted({row.judge or "unnamed" for row in rows})
    notes = [f"judgements of {len(judges)} judges are averaged: {', '.join(judges[:8])}"] if len(judges) > 1 else []
    if not unnamed:
        return notes
    return [*notes, f"generator_1 is missing in {unnamed} rows: their output_1 is taken to be {baseline}'s"]


def read_json_rows(path: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> list[Any]:
    """A JSON list, or one JSON value per line; `hook` sees every mapping while it is parsed.

    Raises:
        UserError: the file cannot be read, is neither of the two, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text, object_hook=hook)
        else:
            rows = [json.loads(line, object_hook=hook) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: neither a JSON list nor JSON lines ({error})") from None
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows


def _wanted(data: dict[str, Any]) -> dict[str, Any] | None:
    """Drop what is not needed while parsing: published files hold the judge's raw replies, most of their bytes."""
    kept = {key: data[key] for key in FIELDS if key in data}
    return kept or None


def _text(value: Any, key: str, where: str) -> str:
    if value is None:
        return ""  # the model gave no answer
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} must be text, got {type(value).__name__} {value!r:.40}")
    return value


def _name(value: Any, key: str, where: str) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} must be a name, got {type(value).__name__} {value!r:.40}")
    return value


def _preference(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"{where}: preference must be a number in [1, 2] or null, got {type(value).__name__} {value!r:.40}"
        )
    if math.isnan(value):
        return math.nan
    if value == 0:
        return 1.5
    if not 1 - ROUNDING <= value <= 2 + ROUNDING:
        raise UserError(f"{where}: preference={value} must be in [1, 2] (null where the judge's reply was unreadable)")
    return min(max(float(value), 1.0), 2.0)
