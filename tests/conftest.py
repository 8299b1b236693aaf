"""What the whole suite shares: one finished run of the smallest recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


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
