"""What a task found: figures with 95% intervals, and everything that one must know to read them.

    scores per item ──mean──> figure      Wilson's interval where every score is 0 or 1, else a bootstrap over items

Several samples of one item are not independent, so what is resampled is always the item. An `Outcome` says how many
items and tokens there were, the seed, the template of the prompt and the settings of sampling, and turns into plain
JSON values (`as_json`) and back (`from_json`), so that a finished task survives a cut.
"""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sekkei.core.config import from_mapping, to_mapping
from sekkei.core.seed import derive_seed
from sekkei.llm.protocol import Usage
from sekkei.tools.statistics import bootstrap, wilson

RESAMPLES = 1000
MIN_ITEMS = 5  # of fewer no bootstrap says anything: no interval


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number, and its 95% interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one task on one model.

    Args:
        task: its name. items: how many were asked. prompt: the template, "" where there is none.
        figures: by name. scores: one value per item under the names of those figures that are their means.
        settings: of sampling and scoring. usage: tokens read and written.
        texts: of the items, one or several each, for the search in training data (not kept in files).
        rows: an item's own details. notes: what a reader must know.
    """

    task: str
    items: int
    figures: Mapping[str, Figure]
    prompt: str = ""
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    texts: Sequence[Sequence[str]] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    overlap: Mapping[str, Any] = field(default_factory=dict)

    def ordered(self) -> list[tuple[str, Figure]]:
        """Figures by name, numbers in names by value ("budget.8" before "budget.16")."""
        return sorted(self.figures.items(), key=lambda pair: [_natural(part) for part in re.split(r"(\d+)", pair[0])])

    def as_json(self) -> dict[str, Any]:
        """Plain values; the items' texts are left out."""
        data = to_mapping(self)
        del data["texts"]
        data["tokens"] = {"prompt": self.usage.prompt_tokens, "completion": self.usage.completion_tokens}
        if data.pop("usage")["estimated"]:
            data["tokens"]["estimated"] = True
        return data


def from_json(data: Mapping[str, Any]) -> Outcome:
    """The inverse of `as_json`, but for the items' texts.

    Raises:
        KeyError, TypeError, UserError: it is none.
    """
    kept = {key: value for key, value in data.items() if key not in ("tokens", "figures")}
    tokens = data["tokens"]
    usage = Usage(tokens["prompt"], tokens["completion"], tokens.get("estimated", False))
    figures = {name: from_mapping(Figure, figure) for name, figure in data["figures"].items()}
    return Outcome(**kept, figures=figures, usage=usage)


def _natural(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (0, part)


def mean(scores: Sequence[float], seed: int = 0) -> Figure:
    """The mean of one score per item with its interval (see the header)."""
    value = statistics.fmean(scores)
    if all(score in (0, 1) for score in scores):
        low, high = wilson(round(sum(scores)), len(scores))
    elif len(scores) < MIN_ITEMS:
        return Figure(value=value)
    else:
        low, high = bootstrap(scores, random.Random(derive_seed("evals mean", seed)), resamples=RESAMPLES)
    return Figure(value=value, low=low, high=high)


def ratio(parts: Sequence[float], wholes: Sequence[float], seed: int = 0) -> Figure:
    """sum(parts) / sum(wholes) with a bootstrap over items, for items of different weight (bytes, instructions)."""
    value, places = sum(parts) / sum(wholes), range(len(parts))
    if len(parts) < MIN_ITEMS:
        return Figure(value=value)
    rng = random.Random(derive_seed("evals ratio", seed))

    def drawn(sample: Sequence[float]) -> float:
        return sum(parts[int(i)] for i in sample) / sum(wholes[int(i)] for i in sample)

    low, high = bootstrap(places, rng, resamples=RESAMPLES, statistic=drawn)
    return Figure(value=value, low=low, high=high)


def figures(outcomes: Sequence[Outcome], prefix: str = "eval") -> dict[str, float]:
    """All figures as one flat mapping, as stages keep them: "eval.maths.pass@1", "eval.maths.pass@1.low" …"""
    flat: dict[str, float] = {}
    for outcome in outcomes:
        for name, figure in outcome.figures.items():
            key = f"{prefix}.{outcome.task}.{name}"
            flat[key] = figure.value
            if figure.low is not None and figure.high is not None:
                flat |= {f"{key}.low": figure.low, f"{key}.high": figure.high}
    return flat
