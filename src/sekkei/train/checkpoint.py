"""Checkpoints: tensors in safetensors, everything else in JSON, a manifest of SHA-256 digests.

    checkpoints/step-000400/
        tensors.safetensors    every tensor, named          (no code is ever executed by opening it)
        state.json             step, loader, controllers
        manifest.json          digests of the two, checked before anything is used

A folder is written aside, read back and renamed, so it is whole or absent. The last `keep_last` stay,
and the best by the watched figure. It does not handle tensors that are sharded over ranks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sekkei.core import atomic
from sekkei.core.errors import UserError

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def write_sealed(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors, state and manifest into `folder`, atomically, replacing what stood there."""
    with atomic.new_folder(folder) as aside:
        plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        safetensors.torch.save_file(plain, aside / TENSORS)
        (aside / STATE).write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        manifest = {name: atomic.sha256(aside / name) for name in (TENSORS, STATE)}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        with safetensors.safe_open(aside / TENSORS, framework="pt") as readback:
            if set(readback.keys()) != set(plain):
                raise RuntimeError(f"{aside / TENSORS} was not read back as written")


def read_sealed(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_sealed` wrote, after checking its digests.

    Raises:
        UserError: a file is missing or differs from the manifest.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or set(manifest) != {TENSORS, STATE}:
            raise ValueError("its names are not those of a checkpoint")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no JSON
        raise UserError(
            f"{folder / MANIFEST}: is not readable ({error!r}); remove that folder and run again: "
            "the run goes on from the one before, or starts the stage anew"
        ) from None
    try:
        for name in (TENSORS, STATE):
            if atomic.sha256(folder / name) != manifest[name]:
                raise UserError(
                    f"{folder / name}: its checksum differs from {MANIFEST}, the file is damaged; "
                    "remove that folder and run again: the run goes on from the one before, or starts the stage anew"
                )
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return safetensors.torch.load_file(folder / TENSORS), state
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}: is no readable checkpoint ({error}); remove that folder and run again") from None


@dataclass
class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: where `step-*` folders live.
        keep_last: how many of the newest stay.
    """

    folder: Path
    keep_last: int = 2
    best_step: int | None = None
    best_value: float | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], watched: float | None) -> None:
        """Save after `step` steps; `watched` is a figure that is better when lower (held-out loss), or None."""
        if watched is not None and (self.best_value is None or watched < self.best_value):
            self.best_step, self.best_value = step, watched
        record = {**state, "step": step, "best": [self.best_step, self.best_value]}
        write_sealed(self.folder / f"step-{step:06d}", tensors, record)
        steps = self._steps()
        for old in steps[: -self.keep_last]:
            if old != self.best_step:
                shutil.rmtree(self._at(old))

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint as (step, tensors, state), or None where there is none."""
        steps = self._steps()
        if not steps:
            return None
        tensors, state = read_sealed(self._at(steps[-1]))
        self.best_step, self.best_value = state["best"]
        return state["step"], tensors, state

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"
