"""Files that are either whole or absent.

Every file that outlives a process is written aside, flushed to the disk and renamed; a folder is
built under a temporary name and renamed as one. A run that is killed at any instant therefore
leaves nothing that a later one could mistake for finished work. Digests are SHA-256.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a folder without write permission, or a file in its place into a one-line error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space or choose another --run-dir or --out") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"{path}: no permission to write; choose another --run-dir or --out") from None
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise UserError(
                f"{path}: a file stands where a folder is needed; choose another --run-dir or --out"
            ) from None
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either its old content or all of the new."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it becomes `path`, replacing what stood there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    with disk_errors(path):
        aside.mkdir(parents=True)
        try:
            yield aside
            rename_folder(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def rename_folder(aside: Path, path: Path) -> None:
    """Let a finished folder become `path`, flushed to the disk, replacing what stood there."""
    for file in aside.rglob("*"):
        if file.is_file():
            sync_file(file)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.replace(path, old)
    os.replace(aside, path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left aside in `folder` (only the holder of the run's lock may call)."""
    for left in [*folder.rglob(".*.tmp"), *folder.rglob(".*.old")]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of one file, or of a folder: the sorted relative names and digests of its files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        sync_file(path)
