"""What a worker is at, written where it outlives the worker: so a page that kills its process can be named.

    WORK/now/PID    "BLOCK\tID"        overwritten for every document and block (a mapped page: no system call)

A crash inside a library written in C, or the kernel's kill for want of memory, leaves no exception behind. The parent
reads which document the dead process was at, and has it left out (phases.leave_out).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_SIZE = 4096
_NOW: mmap.mmap | None = None


def begin(folder: Path) -> None:
    """Keep the journal of this process in `folder` from now on."""
    global _NOW  # noqa: PLW0603  # one per process
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / str(os.getpid())).open("w+b") as file:
        file.truncate(_SIZE)
        _NOW = mmap.mmap(file.fileno(), _SIZE)


def note(block: str, name: str) -> None:
    """The block `block` begins with the document `name`."""
    if _NOW is not None:
        text = f"{block}\t{name}".encode("utf-8", "surrogatepass")[: _SIZE - 2]
        _NOW[: len(text) + 2] = len(text).to_bytes(2, "little") + text


def last(folder: Path, pid: int) -> tuple[str, str] | None:
    """(block, document) that process `pid` was at, or None where it had not begun with one."""
    try:
        data = (folder / str(pid)).read_bytes()
    except FileNotFoundError:
        return None
    text = data[2 : 2 + int.from_bytes(data[:2], "little")].decode("utf-8", "surrogatepass")
    block, _, name = text.partition("\t")
    return (block, name) if name else None
