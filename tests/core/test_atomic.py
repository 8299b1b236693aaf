"""Files and folders are whole or absent, at whatever instant the writer is killed."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sekkei.core import atomic
from sekkei.core.errors import UserError

# A writer that kills itself just before its n-th rename (never, for n = 0).
WRITER = """
import os, signal, sys
from pathlib import Path
from sekkei.core import atomic

path, kill_at, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rename, count = os.replace, 0

def counted(old, new):
    global count
    count += 1
    if count == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)

os.replace = counted
if kind == "file":
    atomic.write_text(path, "new")
else:
    with atomic.new_folder(path) as folder:
        (folder / "a").write_text("new")
        if kill_at < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "b").write_text("new")
"""


def write(path: Path, kill_at: int, kind: str) -> int:
    return subprocess.run([sys.executable, "-c", WRITER, str(path), str(kill_at), kind], check=False).returncode


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    assert write(path, 1, "file") == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2  # what was set aside
    atomic.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert write(path, 0, "file") == 0
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("kill_at", "left"),
    [
        (-1, {"a": "old", "c": "old"}),  # half of the new folder written
        (1, {"a": "old", "c": "old"}),  # before the old folder moves away
        (2, None),  # between the two renames: absent, so it is made again
        (0, {"a": "new", "b": "new"}),
    ],
)
def test_a_killed_writer_never_leaves_a_mixed_folder(kill_at: int, left: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "stage"
    path.mkdir()
    for name in ("a", "c"):
        (path / name).write_text("old")
    assert write(path, kill_at, "folder") == (0 if kill_at == 0 else -signal.SIGKILL)
    assert (contents(path) if path.exists() else None) == left
    atomic.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == ([path] if left else [])
    assert write(path, 0, "folder") == 0
    assert contents(path) == {"a": "new", "b": "new"}


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stage"

    def fill() -> None:
        with atomic.new_folder(path) as folder:
            (folder / "a").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "--run-dir")]
)
def test_a_disk_that_cannot_be_written_is_one_line(number: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught, atomic.disk_errors(tmp_path):
        raise OSError(number, "from the system")
    assert str(tmp_path) in str(caught.value)


def test_other_system_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="odd"), atomic.disk_errors(tmp_path):
        raise OSError(errno.EIO, "odd")


def test_digests_see_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return atomic.sha256(tmp_path / name)

    first = folder("first", {"a": "1", "sub/b": "2"})
    assert folder("same", {"sub/b": "2", "a": "1"}) == first
    assert folder("renamed", {"a": "1", "sub/c": "2"}) != first
    assert folder("changed", {"a": "1", "sub/b": "3"}) != first
    # SHA-256 of "abc", FIPS 180-4
    (tmp_path / "abc").write_text("abc")
    assert atomic.sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")
    assert atomic.sha256_json({"a": 1, "b": 2}) == atomic.sha256_json({"b": 2, "a": 1})
