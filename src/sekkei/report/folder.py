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
from sekkei.core.stage_names import MAIN_LINE, PAIRED, kind_of, tuning_stages

_FIRST = ("data", "tokenizer", "tokens", "imported")


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
        return [*(f"pretrain.{key}" for key in self.pretrain_keys), *tuning_stages(self.recipe)]

    @property
    def finished(self) -> list[str]:
        """Finished stages in the order of a life; stages that this file does not know come last."""
        middle = [name for key in self.pretrain_keys for name in (f"pretrain.{key}", f"eval.pretrain.{key}")]
        later, paired = ["eval.base", "eval.base-document"], False
        for name in tuning_stages(self.recipe):
            if kind_of(self.recipe, name) in PAIRED and not paired:
                later.append("preferences")
                paired = True
            later += [name, f"eval.{name}"]
        known = [*_FIRST, *middle, *later]
        return [*(name for name in known if name in self.done), *sorted(set(self.done) - set(known))]

    @property
    def labels(self) -> list[str]:
        """Evaluated checkpoints in order."""
        labels = ("base", "base-document", *tuning_stages(self.recipe))
        return [label for label in labels if any(self.under(f"{kind}.{label}") for kind in ("reasoning", "chat"))]

    @property
    def line(self) -> list[str]:
        """Evaluated checkpoints of the main line, or all where there is none: what the run's own model went through."""
        main = [label for label in self.labels if label == "base" or label in MAIN_LINE]
        return main if len(main) > 1 else self.labels

    def tuned_by(self, *kinds: str) -> list[str]:
        """Tuning stages of these kinds that have logged a step, in order."""
        logged = {record.get("stage") for record in self.records}
        return [name for name in tuning_stages(self.recipe) if kind_of(self.recipe, name) in kinds and name in logged]

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

    def rollouts(self, stage: str) -> list[SampleSet]:
        """Answers of a stage's rollouts with their rewards, by step."""
        found = {
            int(record["step"]): SampleSet(stage, int(record["step"]), record["rollout"])
            for record in self.records
            if record.get("stage") == stage and record.get("rollout")
        }
        return [found[step] for step in sorted(found)]

    @property
    def studies(self) -> list[tuple[str, str]]:
        """(stage asked, picture) of every finished study of strategies at inference time."""
        return [(name, file.read_text(encoding="utf-8")) for name, file in self._of_studies("study.svg")]

    def study_rows(self, file: str) -> list[tuple[str, list[dict[str, Any]]]]:
        """(stage asked, rows of `file`) of every finished study."""
        return [(name, json.loads(path.read_text(encoding="utf-8"))) for name, path in self._of_studies(file)]

    def _of_studies(self, file: str) -> list[tuple[str, Path]]:
        asked = [name.removeprefix("inference.") for name in self.done if name.startswith("inference.")]
        paths = [(name, self.path / f"inference.{name}" / file) for name in asked]
        return [(name, path) for name, path in paths if path.is_file()]

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
