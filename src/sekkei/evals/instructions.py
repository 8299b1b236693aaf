"""Checkable instructions in IFEval's format: did the reply do what it was told, as far as a program can tell?

    {"prompt": "…", "instruction_id_list": ["punctuation:no_comma", …], "kwargs": [{}, …]}     Zhou et al. 2023

    prompt_strict        all instructions of a prompt are followed
    instruction_strict   share of all instructions that are followed
    …_loose              the same, if any of eight readings follows: the reply as it is, without its first line, its
                         last line, or both, and each of these without asterisks ("Sure, here it is:" costs nothing)

An empty reply follows nothing. How each kind is checked: instruction_kinds.py. Intervals resample prompts.

What it does not handle: whether the reply is any good; judge/ asks that.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.evals.ask import Progress, no_progress, sample_all
from sekkei.evals.instruction_kinds import KINDS, require
from sekkei.evals.items import read_items
from sekkei.evals.maths import sampling
from sekkei.evals.outcome import Outcome, mean, ratio
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings, counted, user


@dataclass(frozen=True, kw_only=True)
class Instructed:
    """A prompt and the instructions in it as (kind, keyword arguments)."""

    prompt: str
    instructions: tuple[tuple[str, Mapping[str, Any]], ...]


def read_instructed(path: Path) -> list[Instructed]:
    """Prompts of a JSON-lines file in IFEval's format.

    Raises:
        UserError: the file cannot be read, an unknown kind, or arguments that are not the kind's.
    """
    return read_items(path, _instructed)


def _instructed(data: Mapping[str, Any]) -> Instructed:
    kinds, arguments = data["instruction_id_list"], data.get("kwargs") or [{}] * len(data["instruction_id_list"])
    if len(kinds) != len(arguments) or not kinds:
        raise ValueError(f"{len(kinds)} instructions and {len(arguments)} kwargs; both must be as many, one or more")
    instructions = []
    for kind, given in zip(kinds, arguments):
        if kind not in KINDS:
            raise ValueError(f"instruction {kind!r} is unknown; known: {', '.join(KINDS)}")
        # published copies of the file write null for arguments of other kinds
        kept = {name: value for name, value in (given or {}).items() if value is not None}
        wanted = set(list(inspect.signature(KINDS[kind]).parameters)[1:])
        if set(kept) != wanted:
            raise ValueError(f"{kind} takes {sorted(wanted) or 'no arguments'}, got {sorted(kept)}")
        instructions.append((kind, kept))
    return Instructed(prompt=str(data["prompt"]), instructions=tuple(instructions))


def follows(reply: str, kind: str, arguments: Mapping[str, Any], strict: bool = True) -> bool:
    """Whether a reply follows one instruction; `strict` False tries the eight readings of the header."""
    readings = [reply] if strict else loose_readings(reply)
    return any(KINDS[kind](text, **arguments) for text in readings if text.strip())


def loose_readings(reply: str) -> list[str]:
    """The reply, without first line, last line, both; and each without asterisks."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]


def evaluate_instructions(
    llm: LLM, items: Sequence[Instructed], settings: Settings, progress: Progress = no_progress
) -> Outcome:
    """Strict and loose accuracy per prompt and per instruction, from one reply each.

    Raises:
        UserError: no items, several samples are asked for, or `nltk` is missing.
    """
    if not items:
        raise UserError("ifeval: there are no prompts")
    if settings.n != 1:
        raise UserError(f"ifeval: takes one reply a prompt, got samples={settings.n}")
    require()
    found = sample_all(llm, [[user(item.prompt)] for item in items], settings, progress)
    replies = [given[0] for given in found]
    scores: dict[str, list[float]] = {}
    parts: dict[str, list[list[bool]]] = {}
    for name in ("strict", "loose"):
        parts[name] = [
            [follows(reply.text, kind, arguments, name == "strict") for kind, arguments in item.instructions]
            for item, reply in zip(items, replies)
        ]
        scores[f"prompt_{name}"] = [float(all(row)) for row in parts[name]]
    figures = {name: mean(values, settings.seed) for name, values in scores.items()}
    for name, rows in parts.items():
        figures[f"instruction_{name}"] = ratio([sum(row) for row in rows], [len(row) for row in rows], settings.seed)
    return Outcome(
        task="ifeval",
        items=len(items),
        prompt="{prompt}",
        scores=scores,
        figures=figures | _by_kind(items, parts["strict"]),
        settings=sampling(settings),
        usage=counted(replies),
        texts=[(item.prompt,) for item in items],
        rows=[
            {"prompt": item.prompt, "reply": reply.text, "kinds": [kind for kind, _ in item.instructions]}
            | {name: parts[name][place] for name in parts}
            for place, (item, reply) in enumerate(zip(items, replies))
        ],
    )


def _by_kind(items: Sequence[Instructed], strict: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Strict accuracy of each kind, sorted by name."""
    found: dict[str, list[float]] = {}
    for item, row in zip(items, strict):
        for (kind, _), good in zip(item.instructions, row):
            found.setdefault(kind, []).append(float(good))
    return {f"kind.{kind}": mean(values) for kind, values in sorted(found.items())}
