"""A run folder to change: a copy of the finished smoke run, and the command line inside this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sekkei.cli import main

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def copy(smoke_run: Path, tmp_path: Path) -> Path:
    """A finished run of `smoke` that a test may spoil; file times are kept."""
    return Path(shutil.copytree(smoke_run, tmp_path / "runs" / "smoke"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a `sekkei` command line in this process: (exit code, what it wrote to standard error)."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """Run a command line that must end in one error line and exit code 2; returns that line."""

    def run(*arguments: object) -> str:
        code, shown = call(*arguments)
        errors = [line for line in shown.splitlines() if line.startswith("error: ")]
        assert code == 2, shown
        assert len(errors) == 1, shown
        assert shown.splitlines()[-1] == errors[0], shown
        return errors[0]

    return run
