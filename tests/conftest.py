"""What the whole suite shares: one finished run of the smallest recipe, and the order of its files.

`make test` runs files side by side (pytest-xdist, a process per core, one thread each). A file is given to whoever is
free, so the folders with the longest files come first; else one of them starts last and the other cores wait for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
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
