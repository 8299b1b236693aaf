"""Shared by the tests of the sandbox: its walls, who calls it, and a look at what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sekkei.tools.sandbox import Limits, Result, SandboxError, capabilities, run_python

SOURCE = Path(__file__).resolve().parents[2] / "src"
NOBODY = 65534
# a Python that nobody may start: one below root's home may not be
PYTHONS = [sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]
CHILD = """
import dataclasses, json, sys
sys.path.insert(0, {source!r})
from sekkei.tools.sandbox import Limits, run_python
asked = json.load(sys.stdin)
result = run_python(asked["code"], asked["stdin"], Limits(**asked["limits"]), walls=asked["walls"])
print(json.dumps(dataclasses.asdict(result) | {{"limits": None}}))
"""
Run = Callable[..., Result]
Processes = Callable[[str], list[int]]


def as_nobody(command: list[str]) -> list[str]:
    """`env` between the two, because setpriv itself may still start what nobody may not."""
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", *command]


def usable_python() -> str:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in PYTHONS:
        done = subprocess.run(as_nobody([python, "-c", check]), capture_output=True, check=False, cwd="/")
        if done.returncode == 0:
            return python
    pytest.skip("no Python 3.11 that an ordinary user may start")


@pytest.fixture(params=["namespaces", "landlock"])
def walls(request: pytest.FixtureRequest) -> str:
    reason = capabilities().missing.get(request.param)
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    if request.param == "landlock":
        try:
            run_python("", walls="landlock")
        except SandboxError as error:
            pytest.skip(str(error))
    return str(request.param)


@pytest.fixture(params=["ourselves", "nobody"])
def run(request: pytest.FixtureRequest, walls: str) -> Run:
    """`run_python` behind one kind of walls, called by us or by a process of an ordinary user."""

    def here(code: str, stdin: str = "", **limits: Any) -> Result:
        return run_python(code, stdin, Limits(**limits), walls=walls)  # type: ignore[arg-type]

    def there(code: str, stdin: str = "", **limits: Any) -> Result:
        asked = json.dumps({"code": code, "stdin": stdin, "limits": limits, "walls": walls})
        command = as_nobody([python, "-c", CHILD.format(source=str(SOURCE))])
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr
        return Result(**json.loads(done.stdout) | {"limits": Limits(**limits)})

    if request.param == "ourselves":
        return here
    if os.getuid() != 0:
        pytest.skip("only root can become another user; 'ourselves' is an ordinary user already")
    python = usable_python()
    return there


@pytest.fixture
def nothing_left(own_temp: Path, processes_with: Processes) -> Iterator[None]:
    """After every test: no process of a sandbox, no folder of one."""
    yield
    assert processes_with("sekkei.tools.jail") == []
    assert processes_with("-s -B -X utf8 main.py") == []
    assert list(own_temp.glob("sekkei-sandbox-*")) == []


@pytest.fixture
def child() -> str:
    """A program that calls the sandbox as its standard input asks."""
    return CHILD.format(source=str(SOURCE))
