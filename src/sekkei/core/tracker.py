"""Mirrors `metrics.jsonl` to a tracker: TensorBoard, Weights & Biases or Trackio, or none.

    {"stage": "sft", "step": 20, "loss": 1.2, "machine": {"mfu": 0.3}}
        -> sft/loss = 1.2, sft/machine/mfu = 0.3      at step 20 of the stage

Every stage counts its steps from 1, so each tracker gets the step per stage: TensorBoard has one event
folder per stage, Weights & Biases a step metric per stage, Trackio a run per stage. The run's own log stays
the truth; a resumed run sends the steps since its checkpoint again. TensorBoard is told to forget the older
ones (`purge_step`), the other two keep both and draw them over each other.

A library is imported only when its tracker is asked for. Whether Weights & Biases is online, offline or
switched off is its own environment's choice (`WANDB_MODE`). It does not handle text samples, pictures or
model files: those are in the report and in the run's folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sekkei.core.errors import ConfigError

Record = Mapping[str, Any]


class Tracker(Protocol):
    """Something that draws live charts."""

    def log(self, record: Record) -> None:
        """Send one record of `metrics.jsonl`; one without figures, as a text sample, sends nothing."""
        ...

    def close(self) -> None:
        """Flush and end; nothing may be logged afterwards."""
        ...


def open_tracker(kind: str, folder: Path, run_name: str, config: Mapping[str, Any]) -> Tracker:
    """The tracker that a recipe asks for.

    Args:
        kind: none, tensorboard, wandb or trackio. folder: of the run; local files go below it where the
            library lets one say so. run_name: as shown by the tracker. config: the resolved recipe.
    Raises:
        ConfigError: an unknown kind, or its library is not installed.
    """
    openers: dict[str, Callable[[], Tracker]] = {
        "none": _Nothing,
        "tensorboard": lambda: _TensorBoard(folder / "tensorboard", config),
        "wandb": lambda: _Wandb(folder, run_name, config),
        "trackio": lambda: _Trackio(run_name, config),
    }
    if kind not in openers:
        raise ConfigError("tracker", f"got {kind!r}, must be one of {', '.join(openers)}")
    return openers[kind]()


def check_installed(kind: str) -> None:
    """Before anything runs: the tracker's library can be found.

    Raises:
        ConfigError: it is not installed.
    """
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise ConfigError("tracker", f"{kind} is not installed; pip install 'sekkei[{kind}]', or set tracker=none")


def figures_of(record: Record) -> dict[str, float]:
    """The finite numbers of a record, flattened: `<stage>/<name>`, and `<stage>/machine/<name>`."""
    found: dict[str, float] = {}
    nested = {f"machine/{name}": value for name, value in (record.get("machine") or {}).items()}
    for name, value in {**record, **nested}.items():
        if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value):
            found[f"{record['stage']}/{name}"] = float(value)
    return found


class _Nothing:
    def log(self, record: Record) -> None:
        """`tracker: none`: the run's own log is enough."""

    def close(self) -> None:
        """Nothing was opened."""


class _TensorBoard:
    """One event folder per stage; `config` is shown under Text."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        _load("tensorboard", "tensorboard")
        self.writer_class = _load("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.folder = folder
        self.writers: dict[str, Any] = {}
        with self.writer_class(str(folder)) as writer:
            writer.add_text("recipe", "\n".join(f"    {line}" for line in _lines(config)))

    def log(self, record: Record) -> None:
        figures = figures_of(record)
        if not figures:
            return
        stage, step = record["stage"], record["step"]
        if stage not in self.writers:
            self.writers[stage] = self.writer_class(str(self.folder / stage), purge_step=step)
        for name, value in figures.items():
            self.writers[stage].add_scalar(name, value, global_step=step)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class _Wandb:
    """One run; `<stage>/*` is drawn over `<stage>/step`."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        library = _load("wandb", "wandb")
        self.run = library.init(project="sekkei", name=run_name, dir=str(folder), config=dict(config))
        self.stages: set[str] = set()

    def log(self, record: Record) -> None:
        figures = figures_of(record)
        if not figures:
            return
        stage = record["stage"]
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/step")
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({**figures, f"{stage}/step": record["step"]})

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    """One Trackio run per stage, named `<run>.<stage>`, so that each has its own steps."""

    def __init__(self, run_name: str, config: Mapping[str, Any]) -> None:
        self.library = _load("trackio", "trackio")
        self.run_name, self.config = run_name, dict(config)
        self.stage: str | None = None

    def log(self, record: Record) -> None:
        figures = figures_of(record)
        if not figures:
            return
        if record["stage"] != self.stage:
            self.close()
            self.stage = record["stage"]
            name = f"{self.run_name}.{self.stage}"
            self.library.init(project="sekkei", name=name, config=self.config, resume="allow")
        self.library.log(figures, step=record["step"])

    def close(self) -> None:
        if self.stage is not None:
            self.library.finish()
            self.stage = None


def _load(module: str, kind: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            "tracker", f"{kind} cannot be imported ({error}); pip install 'sekkei[{kind}]', or set tracker=none"
        ) from None


def _lines(config: Mapping[str, Any], indent: str = "") -> list[str]:
    """The recipe as indented lines, which TensorBoard shows as a block of code."""
    lines = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines
