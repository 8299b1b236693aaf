"""Ranks end with the process that launched them, and only with that one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

RANK = """
import time
from sekkei.core.launch import end_with_launcher
end_with_launcher()
print("at work", flush=True)
time.sleep(60)
"""
LAUNCHING = """
import os, subprocess, sys
os.environ["SEKKEI_LAUNCHER"] = str({launcher})
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def gone(process: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{process}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":  # ended, and nobody has asked for its code
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize(("launcher", "ends"), [("os.getpid()", True), ("1 + os.getpid()", False)])
def test_a_rank_without_its_launcher(launcher: str, ends: bool) -> None:
    code = LAUNCHING.format(launcher=launcher)
    parent = subprocess.Popen([sys.executable, "-c", code, RANK], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    rank = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        assert gone(rank, 20 if ends else 2) == ends
    finally:
        if not gone(rank, 0.1):
            os.kill(rank, signal.SIGKILL)
