"""Checkpoints: tensors in safetensors, everything else in JSON, a manifest of SHA-256 digests.

    checkpoints/step-000400/
        tensors.safetensors          every tensor, whole, by name      (no code is ever executed by opening it)
        state.json                   step, loader, controllers
        manifest.json                digests of all files, checked before anything is used

Several processes write one file each, tensors-00000.safetensors and so on: whole tensors, spread evenly over the
ranks that hold parts of them, so a rank never holds more than a tensor and its share. What is on the disk does not
depend on the layout: it is read by any other one, or by one process, a tensor at a time.

A folder is written aside, read back and renamed, so it is whole or absent. The last `keep_last` stay, and the best by
the watched figure. In the background, a save costs training only a copy in the host's memory:

    step ── copy ── step ── step ── step ── copy ──      at most one is being written: the next save waits for it,
               └─ write, hash, read back, rename         and raises what went wrong

torch.distributed.checkpoint is not used: its own format holds a pickle, and its safetensors storage cannot cut a
tensor as ZeRO's flat slices do. It does not handle file systems that ranks do not share.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.distributed
from torch import Tensor

from sekkei.core import atomic, dist
from sekkei.core.errors import UserError

SUFFIX = ".safetensors"
TENSORS, STATE, MANIFEST = f"tensors{SUFFIX}", "state.json", "manifest.json"
NOTHING = bytes(32).hex()  # in place of a digest


Pieces = Iterable[tuple[str, Callable[[], Tensor]]]
"""Names, and how to come by each whole tensor; on several ranks, all that hold it call in the same order."""


def write_sealed(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors, state and manifest into `folder`, atomically, replacing what stood there."""
    with atomic.new_folder(folder) as aside:
        digests = {TENSORS: _write_tensors(aside / TENSORS, tensors)}
        _write_state(aside, state, digests)


def read_sealed(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_sealed` wrote, after checking its digests.

    Raises:
        UserError: a file is missing or differs from the manifest.
    """
    tensors, state = open_sealed(folder)
    with _readable(folder):
        return dict(tensors.items()), state


def open_sealed(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """As `read_sealed`, but each tensor is read when it is asked for. Of several ranks each checks some of the files.

    Raises:
        UserError: a file is missing or differs from the manifest.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = sorted(name for name in manifest if name.endswith(SUFFIX)) if isinstance(manifest, dict) else []
        if not names or set(manifest) != {*names, STATE}:
            raise ValueError("its names are not those of a checkpoint")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no JSON
        raise UserError(
            f"{folder / MANIFEST}: is not readable ({error!r}); remove that folder and run again: "
            "the run goes on from the one before, or starts the stage anew"
        ) from None
    with _readable(folder):
        for name in [STATE, *names][dist.rank() :: dist.world_size()]:
            if atomic.sha256(folder / name) != manifest[name]:
                raise UserError(
                    f"{folder / name}: its checksum differs from {MANIFEST}, the file is damaged; "
                    "remove that folder and run again: the run goes on from the one before, or starts the stage anew"
                )
        return _Lazy([folder / name for name in names]), json.loads((folder / STATE).read_text(encoding="utf-8"))


class _Lazy(Mapping[str, Tensor]):
    """Tensors of several files, read one at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files: dict[str, Any] = {}
        for path in paths:
            opened = safetensors.safe_open(path, framework="pt")
            self.files |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> Tensor:
        return self.files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}: is no readable checkpoint ({error}); remove that folder and run again") from None


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Returns the file's digest."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, path)
    with safetensors.safe_open(path, framework="pt") as readback:
        if set(readback.keys()) != set(plain):
            raise RuntimeError(f"{path} was not read back as written")
    return atomic.sha256(path)


def _write_state(folder: Path, state: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    (folder / STATE).write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    manifest = {**digests, STATE: atomic.sha256(folder / STATE)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


@dataclass
class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: where `step-*` folders live.
        keep_last: how many of the newest stay.
        share: (place, how many) of this rank among those that hold parts of the same tensors.
    """

    folder: Path
    keep_last: int = 2
    best_step: int | None = None
    best_value: float | None = None
    share: tuple[int, int] = (0, 1)
    _writing: Future[None] | None = field(default=None, init=False)
    _group: torch.distributed.ProcessGroup | None = field(default=None, init=False)

    def save(
        self,
        step: int,
        pieces: Pieces,
        state: Mapping[str, Any],
        watched: float | None,
        background: bool = False,
    ) -> None:
        """Save after `step` steps.

        Args:
            watched: a figure that is better when lower (held-out loss), or None.
            background: come back when all is copied, and write meanwhile; whoever saves so calls `wait` at the end.
        Raises:
            UserError: the disk is full or not writable, now or in the save before.
        """
        self.wait()
        if watched is not None and (self.best_value is None or watched < self.best_value):
            self.best_step, self.best_value = step, watched
        record = copy.deepcopy({**state, "step": step, "best": [self.best_step, self.best_value]})
        place, holders = self.share
        own = {}
        for number, (name, whole) in enumerate(pieces):
            tensor = whole().detach()
            if number % holders == place:
                own[name] = tensor.to("cpu", copy=background, memory_format=torch.contiguous_format)
        if dist.world_size() > 1 and self._group is None:  # of its own: training's is in use by another thread
            limit = timedelta(seconds=dist.GROUP_SECONDS)
            self._group = torch.distributed.new_group(backend="gloo", timeout=limit)
        if background:
            thread = ThreadPoolExecutor(1, "checkpoint")
            self._writing = thread.submit(self._write, step, own, record)
            thread.shutdown(wait=False)  # it ends when that is written
        else:
            self._write(step, own, record)

    def wait(self) -> None:
        """Until what is being written is whole.

        Raises:
            UserError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, own: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        if dist.world_size() == 1:
            write_sealed(self._at(step), own, record)
        else:
            self._write_together(step, own, record)
        steps = self._steps() if dist.rank() == 0 else []
        for old in steps[: -self.keep_last]:
            if old != record["best"][0]:
                gone = self.folder / f".step-{old:06d}.old"  # renamed first: a kill in the middle leaves no half of it
                shutil.rmtree(gone, ignore_errors=True)
                self._at(old).rename(gone)
                shutil.rmtree(gone)

    def _write_together(self, step: int, own: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Every rank writes its share; the first makes the folder and, when all are done, gives it its name."""
        aside = self.folder / f".step-{step:06d}.tmp"
        files = [f"tensors-{rank:05d}{SUFFIX}" for rank in range(dist.world_size())]
        digests: list[str] = []

        def make() -> str:
            if dist.rank() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            return NOTHING

        def fill() -> str:
            digest = _write_tensors(aside / files[dist.rank()], own)
            atomic.sync_file(aside / files[dist.rank()])
            return digest

        def name() -> str:
            if dist.rank() == 0:
                _write_state(aside, record, dict(zip(files, digests, strict=True)))
                atomic.rename_folder(aside, self._at(step))
            return NOTHING

        self._all(make, aside)
        digests += self._all(fill, aside)
        self._all(name, aside)

    def _all(self, work: Callable[[], str], aside: Path) -> list[str]:
        """Let every rank work, and wait for all: what each gave, a digest. Where one fails, all do."""
        failure, given = None, NOTHING
        try:
            with atomic.disk_errors(aside):
                given = work()
        except Exception as error:  # the others wait to be told
            failure = error
        own = torch.tensor([failure is not None, *bytes.fromhex(given)], dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(dist.world_size())]
        torch.distributed.all_gather(parts, own, group=self._group)
        if failure is not None:
            raise failure
        broken = [rank for rank, part in enumerate(parts) if part[0]]
        if broken:
            raise UserError(f"{aside}: rank {broken[0]} could not write its part; its own message tells why")
        return [bytes(part[1:].tolist()).hex() for part in parts]

    def load(self) -> tuple[int, Mapping[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint as (step, tensors, state), or None where there is none."""
        steps = self._steps()
        if not steps:
            return None
        tensors, state = open_sealed(self._at(steps[-1]))
        self.best_step, self.best_value = state["best"]
        return state["step"], tensors, state

    def newest(self) -> int:
        """The step of the newest checkpoint, 0 where there is none."""
        return max(self._steps(), default=0)

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"
