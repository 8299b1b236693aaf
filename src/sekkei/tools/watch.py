"""Start a sandbox's launcher, listen to it, and stop it at its first broken limit.

    parent --JSON--> launcher (tools/jail.py) -> the code          stdout, stderr, status --> parent, every chunk
    every 50 ms: clock, resident memory of all its processes, bytes in its folder

The kernel holds most limits by itself (address space, processor time, number of processes, size of files). What it
does not hold is looked at here: the clock, the sum over processes, the length of the output. Stopping is one signal
to the launcher, which kills and reaps all below it; if it does not answer, it is killed and the kernel kills the rest.

It does not handle building the walls (`jail.py`) nor choosing them (`sandbox.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sekkei.core.errors import ConfigError, UserError

TICK = 0.05  # seconds between two looks at time, memory and disk
SETUP_SECONDS = 30.0  # for building the walls; on a busy machine starting Python takes long
_SOURCE = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv[1]); from sekkei.tools.jail import main; main()"


class SandboxError(UserError):
    """The walls cannot be built here, so the code was not run."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may use. Sizes in bytes, times in seconds."""

    seconds: float = 10.0  # on the clock
    cpu_seconds: int = 10  # of each process
    memory: int = 1 << 30  # address space of each process, and resident memory of all together
    processes: int = 32  # processes and threads at once (none but threads behind "landlock")
    disk: int = 64 << 20  # the temporary folder, and each file
    output: int = 64 << 10  # of stdout and of stderr
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(name, f"got {value}, must be above 0")


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended. `exit` is the exit code (negative: the signal that killed it), None if we stopped it."""

    stdout: str
    stderr: str
    exit: int | None
    stopped: Literal["", "time", "cpu", "memory", "disk", "output"] = ""  # the limit that ended it
    seconds: float = 0.0
    memory: int = 0  # most resident bytes of all its processes together, as seen every 50 ms
    limits: Limits = field(default=Limits(), repr=False)

    @property
    def ok(self) -> bool:
        return self.exit == 0 and not self.stopped

    @property
    def timed_out(self) -> bool:
        return self.stopped in ("time", "cpu")

    def error(self) -> str:
        """One line that says what went wrong, or "" if nothing did."""
        if self.stopped:
            limit = {"time": f"{self.limits.seconds:g} s", "cpu": f"{self.limits.cpu_seconds} s of processor time"}
            for name in ("memory", "disk", "output"):
                limit[name] = f"{getattr(self.limits, name):,} bytes of {name}"
            return f"stopped: more than {limit[self.stopped]}"
        if self.exit == 0:
            return ""
        if self.exit is not None and self.exit < 0:
            return f"killed by {signal.Signals(-self.exit).name}"
        last = self.stderr.strip().rpartition("\n")[2]
        return f"exit code {self.exit}" + (f": {last}" if last else "")


class _Run:
    """A launched sandbox: what it has said so far, and the limit that it broke, if any."""

    def __init__(
        self, process: subprocess.Popen[bytes], config: Mapping[str, Any], limits: Limits, status: int
    ) -> None:
        self.process, self.config, self.limits = process, config, limits
        self.heard: dict[int, bytearray] = {}
        self.status: list[dict[str, Any]] = []
        self.status_fd = status
        self.began = time.monotonic()
        self.ready = False
        self.memory = 0
        self.stopped: Any = ""

    def listen(self) -> None:
        """Until all of its ends are closed or a limit is broken."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with selectors.DefaultSelector() as selector:
            for descriptor in (self.process.stdout.fileno(), self.process.stderr.fileno(), self.status_fd):
                selector.register(descriptor, selectors.EVENT_READ)
                self.heard[descriptor] = bytearray()
            looked = 0.0
            while selector.get_map() and not self.stopped:
                for key, _ in selector.select(TICK):
                    if chunk := os.read(key.fd, 1 << 16):
                        self._hear(key.fd, chunk)
                    else:
                        selector.unregister(key.fd)
                if time.monotonic() - looked >= TICK:
                    looked = time.monotonic()
                    self._look(looked)

    def _hear(self, descriptor: int, chunk: bytes) -> None:
        self.heard[descriptor] += chunk
        if descriptor != self.status_fd:
            if len(self.heard[descriptor]) > self.limits.output:
                self.stopped = "output"
            return
        *lines, rest = self.heard[descriptor].split(b"\n")
        self.heard[descriptor] = bytearray(rest)
        self.status += [json.loads(line) for line in lines]
        if not self.ready and any("ready" in line for line in self.status):
            self.ready, self.began = True, time.monotonic()

    def _look(self, now: float) -> None:
        if now - self.began > (self.limits.seconds if self.ready else SETUP_SECONDS):
            self.stopped = "time"
        if not self.ready:
            return
        self.memory = max(self.memory, _resident(self.process.pid, 2 if self.config["mode"] == "namespaces" else 1))
        if self.memory > self.limits.memory:
            self.stopped = "memory"
        if self.config["mode"] != "namespaces":  # there the folder is a tmpfs of that size
            room = self.limits.disk + self.config["handed"]
            self.stopped = "disk" if _folder_bytes(self.config["folder"]) > room else self.stopped

    def end(self) -> None:
        """Nothing of it is left when this returns."""
        if self.process.poll() is None:
            self.process.terminate()  # the launcher kills and reaps what it started
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                self.process.kill()  # then the kernel does
                self.process.wait()


def launch(config: dict[str, Any], limits: Limits, walls: dict[str, Any] | None = None) -> Result:
    read_end, write_end = os.pipe()
    command = [sys.executable, "-I", "-S", "-B", "-c", _START, _SOURCE]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, read_end)
        try:
            process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                pass_fds=(write_end,),
                start_new_session=True,
                env={},
                cwd="/",
            )
        finally:
            os.close(write_end)
        stack.enter_context(process)  # closes the pipes
        run = _Run(process, config, limits, read_end)
        stack.callback(run.end)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(config | {"status": write_end}).encode())
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        run.listen()
        seconds = time.monotonic() - run.began
    return _result(run, seconds, walls)


def _result(run: _Run, seconds: float, walls: dict[str, Any] | None) -> Result:
    assert run.process.stdout is not None
    said, complained, *_ = [bytes(heard[: run.limits.output]).decode(errors="replace") for heard in run.heard.values()]
    failed = next((line["failed"] for line in run.status if "failed" in line), None)
    if failed or not run.ready:
        reason = failed or complained.strip().rpartition("\n")[2] or "the launcher did not answer"
        raise SandboxError(f"the sandbox ({run.config['mode']}) could not be built: {reason}")
    if walls is not None:
        walls.update(next(line["ready"] for line in run.status if "ready" in line))
    code = next((line["exit"] for line in run.status if "exit" in line), None)
    stopped: Any = run.stopped or ("cpu" if code == -signal.SIGXCPU else "")
    if code is None and not stopped:
        raise SandboxError(f"the sandbox ({run.config['mode']}) was killed from outside")
    return Result(
        stdout=said,
        stderr=complained,
        exit=None if stopped else code,
        stopped=stopped,
        seconds=seconds,
        memory=run.memory,
        limits=run.limits,
    )


def _resident(pid: int, depth: int) -> int:
    """Resident anonymous bytes of all the processes `depth` generations below `pid` and deeper."""
    total, generation, level = 0, [pid], 0
    while generation:
        below: list[int] = []
        for one in generation:
            with contextlib.suppress(OSError, ValueError):
                if level >= depth:
                    words = Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()
                    total += (int(words[1]) - int(words[2])) * os.sysconf("SC_PAGE_SIZE")
                for task in os.listdir(f"/proc/{one}/task"):
                    below += map(int, Path(f"/proc/{one}/task/{task}/children").read_text(encoding="ascii").split())
        generation, level = below, level + 1
    return total


def _folder_bytes(folder: str) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total
