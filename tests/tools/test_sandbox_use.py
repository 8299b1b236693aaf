"""The sandbox in ordinary use, and where a machine has no walls."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from sekkei.core.errors import ConfigError
from sekkei.tools import sandbox
from sekkei.tools.sandbox import Capabilities, Limits, Result, SandboxError, capabilities, run_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the walls are those of Linux"),
    pytest.mark.usefixtures("nothing_left"),
]

Run = Callable[..., Result]
Processes = Callable[[str], list[int]]
ESCAPE = """
import os, sys, time
for _ in range(2):
    if os.fork(): break
    os.setsid()
else:
    for descriptor in (0, 1, 2): os.close(descriptor)
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", {marker!r}])
time.sleep({pause})
"""


# -- ordinary use -----------------------------------------------------------------------------------------------------


def test_what_honest_code_needs_is_there(run: Run) -> None:
    code = """
import json, math, random, sqlite3, tempfile, threading, unittest, zoneinfo
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("text"); file.seek(0); assert file.read() == "text"
results = []
threads = [threading.Thread(target=lambda i=i: results.append(i)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
database = sqlite3.connect("here.db")
database.execute("create table t (x)"); database.execute("insert into t values (41)"); database.commit()
print(input(), sorted(results), database.execute("select x + 1 from t").fetchone()[0], "設計", hash("a") == hash("a"))
"""
    result = run(code, "typed\n")
    assert result.stdout == "typed [0, 1, 2, 3] 42 設計 True\n", result.stderr
    assert result.ok
    assert result.error() == ""


def test_child_processes_work_where_they_are_allowed() -> None:
    if capabilities().mode != "namespaces":
        pytest.skip("no namespaces here")
    code = (
        "import subprocess, sys\nfrom multiprocessing import Pool\nfrom math import factorial\n"
        "done = subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True)\n"
        "with Pool(2) as pool: print(done.stdout.strip(), pool.map(factorial, [3, 4]))"
    )
    result = run_python(code)
    assert result.stdout == "42 [6, 24]\n", result.stderr


def test_files_and_installed_packages_can_be_used() -> None:
    files = {"solution.py": "def f(x): return x + 1", "data/table.csv": b"1,2\n"}
    code = (
        "import numpy\nfrom solution import f\nprint(f(int(numpy.sum([1, 2]))), open('data/table.csv').read().strip())"
    )
    result = run_python(code, files=files)
    assert result.stdout == "4 1,2\n", result.stderr


def test_two_runs_of_the_same_code_are_equal() -> None:
    code = "print(list({'a', 'b', 'c', 'd', 'e'}), hash('text'))"
    assert run_python(code).stdout == run_python(code).stdout


def test_a_wrong_call_is_refused() -> None:
    for name in ("/etc/x", "../x", "a/../../x", ""):
        with pytest.raises(ConfigError, match="relative name"):
            run_python("", files={name: "x"})
    with pytest.raises(ConfigError, match=r"main\.py"):
        run_python("", files={"main.py": "x"})
    with pytest.raises(ConfigError, match="seconds: got 0"):
        Limits(seconds=0)
    with pytest.raises(ConfigError, match="unprotected"):
        run_python("", walls="none")


def test_signals_and_exit_codes_are_told() -> None:
    assert run_python("import sys; sys.exit(3)").error() == "exit code 3"
    result = run_python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (result.exit, result.error()) == (-signal.SIGSEGV, "killed by SIGSEGV")


# -- where there are no walls -----------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sandbox, "capabilities", lambda: Capabilities(mode="none", walls={}, missing={"namespaces": "not permitted"})
    )


@pytest.mark.usefixtures("bare")
def test_without_walls_nothing_is_run_unless_asked() -> None:
    with pytest.raises(SandboxError, match=r"namespaces: not permitted.*unprotected=True"):
        run_python("print(1)")
    assert run_python("print(1)", unprotected=True).stdout == "1\n"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("pause", [0.3, 60])
def test_without_walls_the_limits_hold_and_children_are_killed(pause: float, processes_with: Processes) -> None:
    marker = f"sekkei-marker-{os.getpid()}-{time.monotonic_ns()}"
    limits = Limits(seconds=0.8)
    result = run_python(ESCAPE.format(marker=marker, pause=pause), limits=limits, unprotected=True)
    assert result.stopped == ("time" if pause > 1 else "")
    assert processes_with(marker) == []
    assert "MemoryError" in run_python("bytearray(10 << 30)", unprotected=True).error()


def test_a_trial_that_gets_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe of `capabilities` run without walls must report that nothing holds."""
    trial = sandbox._trial
    assert trial("none")["files"] is False
    assert trial("none")["network"] is False
    monkeypatch.setattr(sandbox, "_trial", lambda mode: trial("none"))
    found = capabilities.__wrapped__()
    assert (found.mode, found.safe) == ("none", False)
    assert set(found.missing) == {"namespaces", "landlock"}
