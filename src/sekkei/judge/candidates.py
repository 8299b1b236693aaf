"""The answers that are to be judged: one JSON-lines (or JSON list) file per model.

    {"instruction": "…", "output": "…", "generator": "mine", "finish_reason": "stop", "verified": {"accuracy": true}}

`generator` names the model (the file's stem where it is missing), `finish_reason` "length" marks a reply cut off at its
limit. `verified` holds what a program has found out about the answer: by criterion of the rubric a share from 0 to 1,
or true or false; there it stands in place of any judge's opinion. Models are matched by instruction; each instruction
stands once per model.

What it does not handle: several samples per instruction, conversations of several turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.judge.annotations import read_json_rows


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model's answers by instruction, in the order of its file; finish reasons where they are known.

    Attributes:
        verified: by instruction, shares from 0 to 1 by criterion's key; only of what a program has looked at.
    """

    name: str
    answers: dict[str, str]
    reasons: dict[str, str | None]
    verified: dict[str, dict[str, float]] = field(default_factory=dict)


def read_candidates(paths: Sequence[Path]) -> list[Candidate]:
    """All files' answers.

    Raises:
        UserError: a file is no such list, an instruction stands twice, or two files hold one model.
    """
    found = [_read(path) for path in paths]
    names = [candidate.name for candidate in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two files hold answers of {twice[0]}; rename a file, or give its rows another generator")
    return found


def shared_instructions(candidates: Sequence[Candidate]) -> list[str]:
    """Instructions that all of them answered, in the first one's order."""
    return [asked for asked in candidates[0].answers if all(asked in other.answers for other in candidates[1:])]


def _read(path: Path) -> Candidate:
    answers: dict[str, str] = {}
    reasons: dict[str, str | None] = {}
    verified: dict[str, dict[str, float]] = {}
    names = set()
    for number, row in enumerate(read_json_rows(path), start=1):
        where = f"{path} row {number}"
        if not isinstance(row, dict):
            raise UserError(f'{where}: expected a mapping as {{"instruction": …, "output": …}}')
        asked = _text(row, "instruction", where)
        if asked in answers:
            raise UserError(f"{where}: the instruction stands twice ({asked[:40]!r}); keep one answer of it")
        answers[asked] = _text(row, "output", where)
        reason = row.get("finish_reason")
        reasons[asked] = reason if isinstance(reason, str) else None
        if row.get("verified"):
            verified[asked] = _verified(row["verified"], where)
        names.add(row.get("generator") or path.stem)
    if len(names) > 1:
        raise UserError(f"{path}: holds answers of {', '.join(sorted(map(str, names)))[:100]}; one file per model")
    return Candidate(name=str(names.pop()), answers=answers, reasons=reasons, verified=verified)


def _verified(found: Any, where: str) -> dict[str, float]:
    if not isinstance(found, dict):
        raise UserError(f'{where}: verified must be a mapping as {{"accuracy": true}}, got {type(found).__name__}')
    for key, value in found.items():
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            raise UserError(f"{where}: verified.{key} must be true, false or a share from 0 to 1, got {value!r}")
    return {str(key): float(value) for key, value in found.items()}


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise UserError(f"{where}: {key} is missing; keys: {', '.join(map(str, row))[:80]}")
    if not isinstance(row[key], str):
        raise UserError(f"{where}: {key} must be text, got {type(row[key]).__name__}")
    return row[key]
