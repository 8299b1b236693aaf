"""What the whole suite shares: one finished run of the smallest recipe, and the order of its files.

`make test` runs files side by side (pytest-xdist, a process per core, one thread each). A file is given to whoever is
free, so the folders with the longest files come first; else one of them starts last and the other cores wait for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

LONG = ("stages", "house", "prove", "parallel", "cli")  # folders of tests whose files take a minute
THREADS = torch.get_num_threads()  # as a process of its own has it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long folders first; within them, and after them, the order stays."""
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs/smoke` of a finished `sekkei run smoke`, made once for the whole suite.

    Whichever process asks first makes it. Tests read it; one that changes files works on a copy; running the recipe
    again reuses it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # a worker's own folder lies in the suite's
    folder = base / "smoke" / "runs" / "smoke"
    command = [sys.executable, "-m", "sekkei", "run", "smoke", "--run-dir", str(folder)]
    with FileLock(base / "smoke.lock"):
        if (folder / "report.html").exists():
            return folder
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.fail(f"sekkei run smoke: exit code {result.returncode}\n{result.stdout}\n{result.stderr}")
    return folder


@pytest.fixture(autouse=True)
def _threads_as_found() -> Iterator[None]:
    """A test that changes torch's thread count must not change it for the next: sums, and so bits, depend on it."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture
def own_temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, not shared with tests that run beside this one."""
    with tempfile.TemporaryDirectory(prefix="sekkei-test-") as folder:
        os.chmod(folder, 0o1777)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def processes_with() -> Callable[[str], list[int]]:
    """Ids of living processes whose command line holds some words, but for those of test processes beside this one."""

    def living(words: str) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if words in line and not _of_a_sibling(int(entry.name)):
                    found.append(int(entry.name))
        return found

    return living


def _of_a_sibling(pid: int) -> bool:
    """Whether `pid` comes from another child of this process's parent. What lost its own parent comes from nobody."""
    try:
        while (parent := int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])) > 1:
            if parent == os.getppid():
                return pid != os.getpid()
            pid = parent
    except OSError:
        return True  # ended meanwhile
    return False
