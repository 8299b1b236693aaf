"""What the whole suite shares: one finished run of the smallest recipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

THREADS = torch.get_num_threads()  # as a process of its own has it


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs/smoke` of a finished `sekkei run smoke`, made once for the whole suite.

    Tests read it. One that changes files works on a copy; running the recipe again reuses it.
    """
    folder = tmp_path_factory.mktemp("smoke") / "runs" / "smoke"
    command = [sys.executable, "-m", "sekkei", "run", "smoke", "--run-dir", str(folder)]
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
