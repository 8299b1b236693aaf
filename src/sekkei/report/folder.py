"""A run's folder, read for people: recipe.yaml, metrics.jsonl, results.json and each stage's done.json.

Nothing here needs the models, a GPU or the network, and nothing is computed anew: the report shows what the
run measured. Everything may be missing (a run that was cut off, a recipe without some stage), so accessors
return None or nothing rather than fail, and numbers that are not finite count as missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sekkei.core import config, runlog
from sekkei.core.errors import UserError

CHECKPOINTS = ("base", "sft", "dpo", "grpo")
"""Labels of evaluated checkpoints, in the order of a model's life."""

_FIRST = ("data", "tokenizer", "tokens")
_LAST = ("eval.base", "sft", "eval.sft", "preferences", "dpo", "eval.dpo", "grpo", "eval.grpo")


@dataclass(frozen=True)
class Series:
    """One figure over a stage's steps: `steps`, `tokens` read so far, `values`, all of one length."""

    steps: list[int]
    tokens: list[float]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.values)


@dataclass(frozen=True)
class SampleSet:
    """What the model wrote to fixed prompts after `step` steps of `stage`."""

    stage: str
    step: int
    samples: list[Mapping[str, Any]]


@dataclass(frozen=True)
class RunFolder:
    """Everything that the report shows, as it was written.

    Args:
        path: the folder. recipe: resolved, as plain values. results: results.json, {} where it is absent.
        done: stage -> its done.json, finished stages only. records: the lines of metrics.jsonl.
    """

    path: Path
    recipe: Mapping[str, Any]
    results: Mapping[str, Any]
    done: Mapping[str, Mapping[str, Any]]
    records: list[runlog.Record]

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", self.path.name))

    @cached_property
    def figures(self) -> dict[str, float]:
        """All finite figures."""
        found = self.results.get("figures") or {}
        return {name: number for name, value in found.items() if (number := finite(value)) is not None}

    def under(self, prefix: str) -> dict[str, float]:
        """Figures whose names begin with `prefix` and a dot, without both."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.figures.items() if name.startswith(start)}

    @property
    def pretrain_keys(self) -> list[str]:
        return list(self.recipe.get("pretrain") or {})

    @property
    def planned(self) -> list[str]:
        """Stages that train a model, in order, as the recipe asks for them."""
        later = [key for key in ("sft", "dpo", "grpo") if self.recipe.get(key) is not None]
        return [*(f"pretrain.{key}" for key in self.pretrain_keys), *later]

    @property
    def finished(self) -> list[str]:
        """Finished stages in the order of a life; stages that this file does not know come last."""
        middle = [name for key in self.pretrain_keys for name in (f"pretrain.{key}", f"eval.pretrain.{key}")]
        known = [*_FIRST, *middle, *_LAST]
        return [*(name for name in known if name in self.done), *sorted(set(self.done) - set(known))]

    @property
    def labels(self) -> list[str]:
        """Evaluated checkpoints in order."""
        return [label for label in CHECKPOINTS if any(self.under(f"{kind}.{label}") for kind in ("reasoning", "chat"))]

    def series(self, stage: str, name: str, machine: bool = False) -> Series:
        """A stage's logged figure, steps without a finite value left out."""
        steps, tokens, values = [], [], []
        for record in self.records:
            if record.get("stage") != stage:
                continue
            source = (record.get("machine") or {}) if machine else record
            value = finite(source.get(name))
            if value is not None:
                steps.append(int(record["step"]))
                tokens.append(finite(record.get("tokens")) or 0.0)
                values.append(value)
        return Series(steps, tokens, values)

    def samples(self, stage: str) -> list[SampleSet]:
        """Text samples of a stage by step; of two sets of one step, the later."""
        found = {
            int(record["step"]): SampleSet(stage, int(record["step"]), record["samples"])
            for record in self.records
            if record.get("stage") == stage and record.get("samples")
        }
        return [found[step] for step in sorted(found)]

    @cached_property
    def parameters(self) -> int | None:
        """Parameters of the newest finished model, counted from the header of its tensors."""
        for stage in reversed([name for name in self.finished if name in self.planned]):
            for path in sorted((self.path / stage / "model").glob("*.safetensors")):
                return _count(path)
        return None


def read_run(folder: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        UserError: it is no run, or one of its files is damaged.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: holds no run (recipe.yaml is missing); give the folder that sekkei run wrote")
    done = {file.parent.name: _read_json(file) for file in sorted(folder.glob("*/done.json"))}
    results = folder / "results.json"
    return RunFolder(
        path=folder,
        recipe=config.read_yaml(path),
        results=_read_json(results) if results.exists() else {},
        done=done,
        records=runlog.read(folder / "metrics.jsonl"),
    )


def finite(value: Any) -> float | None:
    """`value` as a number, None where it is missing, no number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def total(values: Iterable[float | None]) -> float:
    """Sum of what is there."""
    return sum(value for value in values if value is not None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is damaged; run the recipe again, it goes on from the last whole stage")
    return value


def _count(path: Path) -> int:
    import safetensors

    with safetensors.safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (not a dict)
