"""Run Python code that nobody has read: a program that a model wrote, or tests for a reward.

    result = run_python("print(6 * 7)", limits=Limits(seconds=2))
    result.stdout == "42\\n" and result.ok

The code runs as a process of its own behind walls of the kernel, built by `tools/jail.py`: no network, no files but
Python, the system's libraries and an own temporary folder, no sight of other processes, no rights; limits of time,
memory, processes, disk and output. Whatever it started is dead when `run_python` returns, and its folder is gone.

Two ways, the first that stands on this machine: "namespaces" (root, or a kernel that lets users make namespaces) and
"landlock" (Linux 5.13, also inside most containers; the code may not start processes there, and can see names
and sizes, not contents, of files outside). `capabilities` says by trial which walls stand. Where neither does, code
is refused unless `unprotected=True`, which leaves the limits only. The walls cost about 60 ms a run.

It does not handle: walls on macOS and Windows (macOS has no namespaces, Landlock or seccomp; `unprotected` works there,
with time, processor and file limits): use Linux, or a Linux container. Nor GPUs, nor a kernel with holes: around
the code of an adversary put a virtual machine. Time and the sum of memory are looked at every 50 ms, not held exactly;
the memory of each single process is held by the kernel.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sekkei.core.errors import ConfigError
from sekkei.tools.watch import SETUP_SECONDS, Limits, Result, SandboxError, launch

Walls = Literal["namespaces", "landlock", "none"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What this machine holds the code with. `missing` maps a wall, or a way of building them, to the reason."""

    mode: Walls
    walls: Mapping[str, str]
    missing: Mapping[str, str]

    @property
    def safe(self) -> bool:
        return self.mode != "none"


def run_python(
    code: str,
    stdin: str = "",
    limits: Limits | None = None,
    *,
    files: Mapping[str, str | bytes] | None = None,
    walls: Walls | None = None,
    unprotected: bool = False,
) -> Result:
    """Run `code` as a program and say how it ended. Errors of the code are in the result, never raised.

    Args:
        stdin: what it reads on standard input.
        files: relative name -> content, put into its folder, which is its working folder too.
        walls: which way to hold it; None takes the better one that stands here (see `capabilities`).
        unprotected: run without walls where this machine has none. Only for code that you would run yourself.

    Raises:
        SandboxError: the walls cannot be built here, or starting Python behind them failed.
        ConfigError: a name in `files` leads out of the folder.
    """
    limits = limits or Limits()
    if walls is None:
        found = capabilities()
        walls = found.mode
        if walls == "none" and not unprotected:
            why = "; ".join(f"{way}: {reason}" for way, reason in found.missing.items())
            raise SandboxError(f"no sandbox on this machine, so the code was not run ({why}); see unprotected=True")
    elif walls == "none" and not unprotected:
        raise ConfigError("walls", "got 'none', which needs unprotected=True as well")
    if os.name != "posix":
        raise SandboxError(f"code cannot be run on {sys.platform}: use Linux, or a Linux container")
    for name in files or {}:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or path.parts in ((), ("main.py",)):
            raise ConfigError("files", f"{name!r} must be a relative name inside the folder, and not main.py")
    program = {"main.py": code, **(files or {})}
    folder = tempfile.mkdtemp(prefix="sekkei-sandbox-")
    try:
        return launch(_config(walls, os.path.realpath(folder), limits, program, stdin), limits)
    finally:
        shutil.rmtree(folder, onerror=_open_and_retry)


@functools.lru_cache(maxsize=1)
def capabilities() -> Capabilities:
    """Try each way of holding code, with a file, a socket and a process that it must not reach; once per process."""
    missing: dict[str, str] = {}
    for mode in ("namespaces", "landlock") if sys.platform == "linux" else ():
        try:
            held = _trial(mode)
        except (SandboxError, OSError) as error:
            missing[mode] = str(error)
            continue
        if held["files"] and held["network"]:
            return Capabilities(mode=mode, walls=_described(mode, held), missing=missing)
        missing[mode] = "the code could read a file outside" if held["network"] else "the code could reach the network"
    if sys.platform != "linux":
        missing["files, network, processes"] = f"{sys.platform} has no namespaces, Landlock or seccomp"
    return Capabilities(mode="none", walls={"time": "clock, RLIMIT_CPU", "memory": "RLIMIT_AS"}, missing=missing)


_PROBE = """
import json, os, socket, sys
place, port = sys.stdin.read().split("\\n")
held = {}
try: open(place).close(); held["files"] = False
except OSError: held["files"] = True
try: socket.create_connection(("127.0.0.1", int(port)), 2).close(); held["network"] = False
except OSError: held["network"] = True
try: held["processes"] = os.fork() is None
except OSError: held["processes"] = True
print(json.dumps(held))
"""


def _trial(mode: Walls) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as canary, socket.create_server(("127.0.0.1", 0)) as server:
        place = f"{canary.name}\n{server.getsockname()[1]}"
        limits = Limits(seconds=SETUP_SECONDS, processes=2 if mode == "namespaces" else 32)
        walls: dict[str, Any] = {}
        folder = tempfile.mkdtemp(prefix="sekkei-sandbox-")
        try:
            config = _config(mode, os.path.realpath(folder), limits, {"main.py": _PROBE}, place)
            result = launch(config, limits, walls)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if not result.ok:
            raise SandboxError(result.error())
        return walls | json.loads(result.stdout.splitlines()[0])


def _described(mode: Walls, held: Mapping[str, Any]) -> dict[str, str]:
    extra = f" + Landlock {held['landlock']}" if held["landlock"] else ""
    walls = {
        "files": f"own file tree{extra}" if mode == "namespaces" else f"Landlock {held['landlock']}",
        "network": "own empty network" if mode == "namespaces" else "no sockets (seccomp)",
        "processes": "own process table" if mode == "namespaces" else "no new processes (seccomp)",
        "memory": "RLIMIT_AS, and the sum every 50 ms",
        "time": "clock, RLIMIT_CPU",
    }
    return walls | ({"system calls": "seccomp"} if held["seccomp"] else {})


# -- what the code may see --------------------------------------------------------------------------------------------


def _config(walls: Walls, folder: str, limits: Limits, files: Mapping[str, str | bytes], stdin: str) -> dict[str, Any]:
    readable, links = _python_installation()
    threads = limits.processes + (2 if os.getuid() else 0)  # an ordinary user's launcher and init count as well
    rlimits: dict[str, Any] = {
        "RLIMIT_CPU": [limits.cpu_seconds, limits.cpu_seconds + 1],
        "RLIMIT_AS": limits.memory,
        "RLIMIT_FSIZE": limits.disk,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    if walls == "namespaces":  # elsewhere the kernel counts all the processes of the user, outside too
        rlimits["RLIMIT_NPROC"] = threads
    library = f"{sys.base_prefix}/lib"
    return {
        "mode": walls,
        "folder": folder,
        "parent": os.getpid(),
        "argv": [sys.executable, "-s", "-B", "-X", "utf8", "main.py"],
        "env": {
            **{"PATH": os.path.dirname(sys.executable), "LANG": "C.UTF-8", "USER": "sandbox", "PYTHONHASHSEED": "0"},
            **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            # without /proc the loader cannot find what lies beside the program itself
            **({"LD_LIBRARY_PATH": library} if sys.base_prefix not in ("/usr", "/usr/local") else {}),
        },
        "files": {name: _base64(content) for name, content in files.items()},
        "stdin": _base64(stdin),
        "disk": limits.disk,
        "handed": sum(len(content) + 8192 for content in files.values()),  # what we put there, in whole blocks
        "limits": rlimits,
        "readable": readable,
        "links": links,
    }


def _base64(content: str | bytes) -> str:
    return base64.b64encode(content.encode() if isinstance(content, str) else content).decode()


@functools.lru_cache(maxsize=1)
def _python_installation() -> tuple[list[str], dict[str, str]]:
    """Real paths of Python, its packages and the system's libraries, and the symlinks that lead there."""
    wanted = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", sys.executable]
    wanted += [f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64", f"{sys.prefix}/pyvenv.cfg"]
    wanted += [
        path for name, path in sysconfig.get_paths().items() if name in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    real: set[str] = set()
    links: dict[str, str] = {}
    for path in wanted:
        _follow(os.path.abspath(path), real, links)
    readable = [path for path in sorted(real) if not any(parent in real for parent in map(str, Path(path).parents))]
    return readable, links


def _follow(path: str, real: set[str], links: dict[str, str]) -> None:
    for _ in range(40):  # as many symlinks as the kernel follows
        for part in [*reversed(Path(path).parents), Path(path)]:
            if os.path.islink(part):  # False, too, where we may not look
                links[str(part)] = os.readlink(part)
                rest = os.path.relpath(path, part)
                path = os.path.normpath(os.path.join(part.parent, links[str(part)], rest))
                break
        else:
            if os.path.exists(path):
                real.add(path)
            return


def _open_and_retry(function: Any, path: str, _: object) -> None:
    """The code may have closed a folder of its own against deletion."""
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700)
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            function(path)
