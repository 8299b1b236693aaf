"""One run: its folder, what stands in it, and the runner that brings it to the end of its recipe.

    runs/laptop/
        recipe.yaml            the resolved recipe
        metrics.jsonl          one line per step, of every stage
        results.json           every figure that the report shows
        report.html
        <stage>/               one folder per stage: its artifact, and
            started.json       the key it was begun with
            done.json          key, digest of the artifact, figures: written last, so it means "whole"

A stage's key is a hash of what its result depends on: the stage's version, its part of the recipe, the
seed, the digests of what it reads, torch's version and the dtype that is fast here. The layout and the number of
threads change the last bits only, so they are left out: a run that was cut off goes on with more ranks, or fewer. A
finished stage with the same key is reused; one that was cut off with the same key, or lost a part of its artifact,
goes on from its checkpoint; any other is redone.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.util
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from safetensors import SafetensorError

from sekkei.core import atomic, hardware
from sekkei.core import config as loader
from sekkei.core.dist import Ranks, gather_json
from sekkei.core.errors import UserError
from sekkei.core.progress import Console
from sekkei.core.runlog import RunLog
from sekkei.parallel.mesh import Mesh
from sekkei.recipes.recipe import Recipe
from sekkei.report import words
from sekkei.report.key_figures import key_figures

STARTED, DONE = "started.json", "done.json"
WORKING = ("checkpoints", STARTED, DONE)  # parts of a stage's folder that are not its artifact
RECORD = frozenset({"key", "digest", "parts", "figures", "seconds", "peak_gib"})  # what done.json holds
NAME_WIDTH = 24  # of a stage on the console: eval.pretrain.reasoning
Figures = dict[str, float]


class Stage(Protocol):
    """One step of a model's life."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int:
        """Raised whenever the code's result changes for the same config."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Stages whose artifacts it reads."""
        ...

    @property
    def config(self) -> Any:
        """The parts of the recipe that its result depends on, as plain values."""
        ...

    @property
    def together(self) -> bool:
        """Whether all ranks of a layout run it; else the first does, and the others wait."""
        ...

    def run(self, run: Run, out: Path) -> Figures:
        """Write the artifact into `out` (which holds what an earlier, killed try left) and return its figures."""
        ...


@dataclass
class Run:
    """What a stage may use of the run it belongs to."""

    recipe: Recipe
    folder: Path
    console: Console
    log: RunLog
    ranks: Ranks = field(default_factory=lambda: Ranks(hardware.best_device()))
    mesh: Mesh | None = None
    _peaks: dict[torch.dtype, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    def artifact(self, stage: str) -> Path:
        return self.folder / stage

    def done(self, stage: str) -> dict[str, Any] | None:
        """The record of a finished stage, or None."""
        path = self.folder / stage / DONE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:  # no UTF-8, or no JSON
            record = None
        if not isinstance(record, dict) or not record.keys() >= RECORD:
            raise UserError(f"{path}: is damaged; remove that file and run again")
        return record

    def peak_flops(self, dtype: torch.dtype) -> float:
        """Of this machine, for the model FLOP utilisation shown on the console; measured once per dtype."""
        if dtype not in self._peaks:
            self._peaks[dtype] = hardware.peak_flops(self.device, dtype).flops
        return self._peaks[dtype]


class Runner:
    """Runs the stages of a recipe in order.

    Args:
        stages: in order; a stage reads only earlier ones.
    """

    def __init__(self, run: Run, stages: Sequence[Stage]) -> None:
        self.run, self.stages = run, list(stages)

    def go(
        self, until: str | None = None, begin: str | None = None, only: str | None = None, force: bool = False
    ) -> None:
        """Bring the run to its end.

        Args:
            until: stop after this stage. begin: redo this stage and those after it. only: this one alone.
            force: redo every selected stage, finished or not.
        Raises:
            UserError: an unknown stage's name, a selection without stages, or a stage whose inputs are missing.
        """
        names = [stage.name for stage in self.stages]
        check_selection(names, until, begin, only)
        last = names.index(until) if until else len(names) - 1
        for stage in self.stages[: last + 1]:
            if only in (None, stage.name):
                check_packages(stage)
        if self.run.ranks.first:
            atomic.sweep(self.run.folder)
            text = yaml.safe_dump(loader.to_mapping(self.run.recipe), sort_keys=False)
            atomic.write_text(self.run.folder / "recipe.yaml", text)
        first_redone = names.index(begin) if begin else len(names)
        for index, stage in enumerate(self.stages[: last + 1]):
            if only is None or stage.name == only:
                self._stage(stage, redo=force or index >= first_redone)
            self.run.ranks.first_does(self.write_results)

    def _stage(self, stage: Stage, redo: bool) -> None:
        """Run a stage where it is not finished: the first rank decides and keeps the books."""
        run, out = self.run, self.run.folder / stage.name
        if not run.ranks.first_does(partial(self._begin, stage, redo)):
            return
        hardware.trim_memory()
        began = time.monotonic()
        with atomic.disk_errors(out), _tensor_disk_errors():
            work = partial(stage.run, run, out)
            figures = work() if stage.together else run.ranks.first_does(work)
        seconds = time.monotonic() - began
        peak = sum(gather_json(hardware.peak_rss_gib()))  # of all ranks; what they share is counted for each
        run.ranks.first_does(partial(self._finish, stage, figures, seconds, peak))

    def _begin(self, stage: Stage, redo: bool) -> bool:
        """Make the stage's folder ready; False where the stage is finished and reused."""
        run, out = self.run, self.run.folder / stage.name
        key, current = self._key(stage), self._current()
        for name in stage.reads:
            if name not in current:
                raise UserError(f"{stage.name} reads the stage {name}, made by another recipe; run that first")
        done = run.done(stage.name)
        gone = [] if done is None else [part for part in done["parts"] if not (out / part).exists()]
        if done is not None and done["key"] == key and not redo and not gone:
            run.console.say(f"{stage.name:<{NAME_WIDTH}} {'reused':>12}")
            return False
        for name in stage.reads:
            self._check_whole(name, current[name])
        if gone and not redo:
            run.console.say(f"{stage.name:<{NAME_WIDTH}} {gone[0]} was removed: made again")
        elif done is not None and not redo:
            run.console.say(f"{stage.name:<{NAME_WIDTH}} what it depends on has changed: made anew")
        if redo or not _begun(out, key):
            for record in (DONE, STARTED):  # first of all: what a kill leaves of the rest must not look whole
                (out / record).unlink(missing_ok=True)
            shutil.rmtree(out, ignore_errors=True)
            run.log.drop(stage.name)
            with atomic.disk_errors(out):
                out.mkdir(parents=True)
            atomic.write_json(out / STARTED, {"key": key})
        (out / DONE).unlink(missing_ok=True)
        return True

    def _finish(self, stage: Stage, figures: Figures, seconds: float, peak_gib: float) -> None:
        """Seal the stage's artifact."""
        run, out = self.run, self.run.folder / stage.name
        parts = artifact_parts(out)
        record = {
            "key": json.loads((out / STARTED).read_text(encoding="utf-8"))["key"],
            "digest": atomic.sha256_json(parts),
            "parts": parts,
            "figures": figures,
            "seconds": seconds,
            "peak_gib": peak_gib,
        }
        atomic.write_json(out / DONE, record)
        run.console.say(
            f"{stage.name:<{NAME_WIDTH}} {words.duration(seconds):>12}   {key_figures(stage.name, figures)}"
        )

    def _check_whole(self, name: str, done: Mapping[str, Any]) -> None:
        """An artifact that is about to be read is byte for byte what its stage wrote.

        Raises:
            UserError
        """
        if artifact_parts(self.run.artifact(name)) != done["parts"]:
            raise UserError(
                f"{self.run.artifact(name)} differs from its own record {DONE}: a file is damaged or was changed; "
                f"run again with --from {name}"
            )

    def _current(self) -> dict[str, dict[str, Any]]:
        """Records of the finished stages that this recipe would reuse, with all that they were made from."""
        current: dict[str, dict[str, Any]] = {}
        for stage in self.stages:
            done = self.run.done(stage.name)
            if done is not None and all(name in current for name in stage.reads) and done["key"] == self._key(stage):
                current[stage.name] = done
        return current

    def _key(self, stage: Stage) -> str:
        inputs = {}
        for name in stage.reads:
            done = self.run.done(name)
            if done is None:
                raise UserError(f"{stage.name} reads the stage {name}, which is not finished; run it first")
            inputs[name] = done["digest"]
        return atomic.sha256_json(
            {
                "stage": stage.name,
                "version": stage.version,
                "config": loader.to_mapping(stage.config),
                "seed": self.run.recipe.seed,
                "inputs": inputs,
                "torch": torch.__version__,
                "device": self.run.device.type,
                "fast_dtype": str(hardware.fast_dtype(self.run.device)),
            }
        )

    def write_results(self) -> None:
        """Gather the figures of the finished stages into results.json; what another recipe made is left out."""
        figures: Figures = {}
        digests = {"recipe": recipe_digest(self.run.recipe)}
        seconds: dict[str, float] = {}
        peak = 0.0
        for name, done in self._current().items():
            figures |= done["figures"]
            digests[name] = done["digest"]
            digests |= {f"{name}/{part}": digest for part, digest in done["parts"].items()}
            seconds[name] = round(done["seconds"], 1)
            peak = max(peak, done["peak_gib"])
        figures |= {"run.seconds": sum(seconds.values()), "run.peak_gib": peak}
        results = {
            "recipe": self.run.recipe.name,
            "seed": self.run.recipe.seed,
            "versions": versions(),
            "machine": {
                "device": self.run.device.type,
                "cpu": hardware.cpu_name(),
                "cores": hardware.cores(),
                "fast_dtype": str(hardware.fast_dtype(self.run.device)).removeprefix("torch."),
            },
            "digests": digests,
            "seconds": seconds,
            "figures": figures,
        }
        atomic.write_json(self.run.folder / "results.json", results)


def check_packages(stage: Stage) -> None:
    """Before the first stage begins: what a later one imports can be found.

    Raises:
        UserError: an optional package that the stage names (`packages`, module -> extra) is not installed.
    """
    packages: Mapping[str, str] = getattr(stage, "packages", {})
    for module, extra in packages.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"{stage.name} needs {module}, which is not installed; pip install 'sekkei[{extra}]', or leave the "
                f"stage out ({stage.name}=null, or --until the one before)"
            )


def check_selection(names: Sequence[str], until: str | None, begin: str | None, only: str | None) -> None:
    """Refuse names that the recipe lacks, and selections that contradict each other (see `Runner.go`).

    Raises:
        UserError
    """
    for option, name in (("--until", until), ("--from", begin), ("--only", only)):
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"{option}={name}: this recipe has no such stage; {hint}it has {', '.join(names)}")
    if only is not None and (until is not None or begin is not None):
        raise UserError(f"--only={only} names the one stage to run; leave out --until and --from")
    if until is not None and begin is not None and names.index(until) < names.index(begin):
        raise UserError(f"--until={until} comes before --from={begin}: nothing is left to run")


def open_folder(folder: Path, recipe: Recipe) -> None:
    """Make the run's folder, or check that it belongs to this recipe.

    Raises:
        UserError: it holds a run of another recipe.
    """
    path = folder / "recipe.yaml"
    if path.exists():
        other = loader.read_yaml(path).get("name")
        if other != recipe.name:
            raise UserError(
                f"{folder}: holds a run of the recipe {other!r}, this one is {recipe.name!r}; choose another --run-dir"
            )
    with atomic.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def recipe_digest(recipe: Recipe) -> str:
    """Of the resolved recipe: two runs of the same digest and versions are the same run."""
    return atomic.sha256_json(loader.to_mapping(recipe))


def artifact_parts(out: Path) -> dict[str, str]:
    """SHA-256 of each file or folder of the artifact, without checkpoints and records."""
    return {
        p.name: atomic.sha256(p) for p in sorted(out.iterdir()) if p.name not in WORKING and not p.name.startswith(".")
    }


def versions() -> dict[str, str]:
    """What the figures were made with."""
    from importlib.metadata import version

    names = ("sekkei", "torch", "tokenizers", "numpy", "resiliparse", "py3langid")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@contextlib.contextmanager
def _tensor_disk_errors() -> Iterator[None]:
    """The writer of tensors tells of a full disk in words only: raise the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        if f"(os error {errno.ENOSPC})" not in str(error):
            raise
        raise OSError(errno.ENOSPC, str(error)) from None


def _begun(out: Path, key: str) -> bool:
    try:
        return json.loads((out / STARTED).read_text(encoding="utf-8")).get("key") == key
    except (FileNotFoundError, ValueError):  # ValueError: no UTF-8, or no JSON
        return False
