"""The run's log `metrics.jsonl` and the lock on its folder.

One JSON object per line, one line per step; the report, the trackers and the tests all read this
file, and `RunLog` is its only writer:

    {"bpb": 1.41, "loss": 3.412, "machine": {"tokens_per_s": 41200.0}, "stage": "sft", "step": 120}

Everything that depends on the clock or on the machine goes under `"machine"`; the rest of two runs
of one recipe is equal, which `without_machine` lets a test say. Keys are sorted and floats written
as Python's `repr`, so equal numbers are equal bytes. A loss that is not finite becomes `null`,
since JSON has no word for it.

A process may die in the middle of a line: the torn end is cut off by the next writer and skipped
by readers. A resume cuts back what was logged after its checkpoint (`truncate`).

It does not handle several writers (rank 0 writes), nor Windows (`RunLock` needs fcntl).
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from sekkei.core.atomic import disk_errors, write_bytes
from sekkei.core.errors import UserError

Record = dict[str, Any]


class RunLog:
    """Appends to one `metrics.jsonl`; usable as a context manager.

    Args:
        path: the file; it and its folder are made at the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line. `record` needs `stage` (str) and `step` (int), and holds plain JSON values.

        Raises:
            KeyError: no `stage` or no `step`.
            TypeError: a value that JSON does not know, as a tensor.
            UserError: the disk is full or not writable.
        """
        record["stage"], record["step"]
        line = json.dumps(_finite(record), sort_keys=True, ensure_ascii=False, allow_nan=False)
        with disk_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _cut_torn_end(self.path)
                self._file = self.path.open("a", encoding="utf-8", buffering=1)
            self._file.write(line + "\n")

    def truncate(self, stage: str, step: int) -> None:
        """Forget the lines of `stage` after `step`: what a resume at `step` is going to write again."""
        self._keep(lambda record: record["stage"] != stage or record["step"] <= step)

    def drop(self, stage: str) -> None:
        """Forget every line of `stage`: it starts anew."""
        self._keep(lambda record: record["stage"] != stage)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, wanted: Callable[[Record], bool]) -> None:
        self.close()
        if not self.path.exists():
            return
        _cut_torn_end(self.path)
        lines = self.path.read_bytes().split(b"\n")[:-1]
        kept = [line for line, record in zip(lines, read(self.path)) if wanted(record)]
        if len(kept) != len(lines):
            write_bytes(self.path, b"".join(line + b"\n" for line in kept))


class SilentLog(RunLog):
    """Of a rank that is not the first: writes nothing."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def truncate(self, stage: str, step: int) -> None: ...

    def drop(self, stage: str) -> None: ...


def read(path: Path) -> list[Record]:
    """All whole lines of a `metrics.jsonl`; a torn last line is skipped, a missing file is empty.

    Raises:
        UserError: a line other than a torn last one is not a JSON object.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    records: list[Record] = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:  # a JSONDecodeError or a UnicodeDecodeError
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; remove the line, or start the run anew")
        records.append(record)
    return records


def without_machine(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """The records less what depends on the clock or the machine: equal for two runs of one recipe."""
    return [{key: value for key, value in record.items() if key != "machine"} for record in records]


class RunLock:
    """Holds `<folder>/.lock` for this process while the `with` block runs.

    A POSIX record lock (fcntl(2)): the kernel lets go of it when the process dies, however it dies,
    and a forked child does not inherit it, so no lock is ever stale and the file may stay. For the same
    reason this process must not open `.lock` a second time: closing any handle would let go.

    Raises:
        UserError: another process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._descriptor = -1

    def __enter__(self) -> Self:
        import fcntl

        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, by system (fcntl(2))
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{self.path.parent}: is in use by process {holder or '(starting)'}; wait or choose another --run-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _cut_torn_end(path: Path) -> None:
    """Cut the file after its last newline."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            file.truncate(whole)
