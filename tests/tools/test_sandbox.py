"""The sandbox against code that tries to get out: both kinds of walls, a parent that is root and one that is not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sekkei.tools.sandbox import Limits, Result, run_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the walls are those of Linux"),
    pytest.mark.usefixtures("nothing_left"),
]

Run = Callable[..., Result]
Processes = Callable[[str], list[int]]
SOURCE = Path(__file__).resolve().parents[2] / "src"


# -- attacks ----------------------------------------------------------------------------------------------------------


def test_a_fork_bomb_is_stopped(run: Run) -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    result = run(bomb, seconds=0.5, processes=8)
    assert result.stopped == "time"
    assert result.error() == "stopped: more than 0.5 s"


def test_no_more_processes_than_the_limit(run: Run, walls: str) -> None:
    code = (
        "import os, time\nmade = 0\nfor _ in range(60):\n    try: pid = os.fork()\n    except OSError: break\n"
        "    if not pid: time.sleep(60)\n    made += 1\nprint(made)"
    )
    result = run(code, processes=10)
    assert result.ok
    assert int(result.stdout) == (9 if walls == "namespaces" else 0)


def test_an_endless_loop_is_stopped(run: Run) -> None:
    result = run("print('began', flush=True)\nwhile True: pass", seconds=0.4)
    assert (result.stopped, result.exit, result.timed_out, result.stdout) == ("time", None, True, "began\n")
    assert result.seconds < 3


def test_processor_time_is_limited(walls: Any) -> None:
    result = run_python("while True: pass", limits=Limits(seconds=20, cpu_seconds=1), walls=walls)
    assert (result.stopped, result.timed_out) == ("cpu", True)


def test_ten_gigabytes_are_refused(run: Run) -> None:
    result = run("x = bytearray(10 << 30)")
    assert result.exit == 1
    assert result.error() == "exit code 1: MemoryError"
    assert result.memory < 1 << 28


def test_memory_of_all_processes_together_is_limited(run: Run, walls: str) -> None:
    if walls == "landlock":
        pytest.skip("one process only")
    code = "import os, time\nfor _ in range(5): os.fork()\nx = bytearray(30 << 20)\ntime.sleep(20)"
    result = run(code, memory=200 << 20, seconds=15, processes=40)
    assert result.stopped == "memory"
    assert "209,715,200 bytes of memory" in result.error()


def test_files_outside_cannot_be_read(run: Run, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as other:
        Path(other).chmod(0o755)
        secrets = [Path(other, "secret"), Path.home() / ".sekkei-test-secret", SOURCE / "sekkei" / "__init__.py"]
        for path in secrets[:2]:
            path.write_text("the-secret")
            path.chmod(0o644)
        environ = [f"/proc/{os.getpid()}/environ", "/proc/self/environ", "/proc/1/cmdline", "/dev/mem", "/sys/kernel"]
        places = [*map(str, secrets), *environ, "/etc/passwd", "/etc/shadow", "/", str(Path.home()), other]
        code = f"""
import os
os.symlink({other!r}, "link")
os.mkdir("below")
for place in {places!r} + ["link/secret", "below/../../../../../../etc/passwd", "/../etc/passwd"]:
    try: print("READ", place, os.listdir(place) if os.path.isdir(place) else open(place, "rb").read(40))
    except OSError: print("refused")
try: os.link({str(secrets[0])!r}, "hard"); print("LINKED")
except OSError: print("refused")
"""
        try:
            result = run(code)
        finally:
            secrets[1].unlink()
    assert result.ok, result.stderr
    assert set(result.stdout.splitlines()) == {"refused"}
    assert len(result.stdout.splitlines()) == len(places) + 4


def test_sockets_lead_nowhere(run: Run) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract,
    ):
        Path(folder).chmod(0o755)
        udp.bind(("127.0.0.1", 0))
        unix.bind(f"{folder}/socket")
        Path(folder, "socket").chmod(0o777)
        abstract.bind("\0sekkei-test-abstract")
        code = f"""
import asyncio, socket
def attempt(do):
    try: do(); print("SENT")
    except OSError: print("refused")
attempt(lambda: socket.create_connection(("127.0.0.1", {tcp.getsockname()[1]}), 1))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {udp.getsockname()[1]})))
attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", {f"{folder}/socket"!r}))
attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", "\\0sekkei-test-abstract"))
attempt(lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"x", {f"{folder}/socket"!r}))
attempt(lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].connect({f"{folder}/socket"!r}))
attempt(lambda: socket.create_server(("127.0.0.1", 0)))
async def legal(): print("loops work")
asyncio.run(legal())
"""
        result = run(code)
        for listener in (udp, unix, abstract, tcp):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept() if listener is tcp else listener.recv(10)
    assert result.ok, result.stderr
    assert result.stdout.splitlines() == ["refused"] * 7 + ["loops work"]


def test_nothing_outside_can_be_written(run: Run) -> None:
    with tempfile.TemporaryDirectory() as other:
        Path(other).chmod(0o777)
        target = Path(other, "target")
        target.write_text("whole")
        target.chmod(0o666)
        before = target.stat()
        code = f"""
import os, sys, sysconfig
site = sysconfig.get_paths()["purelib"]
def attempt(do):
    try: do(); print("DONE", do.__code__.co_firstlineno)
    except OSError: print("refused")
for place in ("/etc/sekkei", "/var/tmp/sekkei", {other!r} + "/new", {str(target)!r}, site + "/sekkei_planted.py",
              os.__file__, sys.executable):
    attempt(lambda: open(place, "a").write("x"))
attempt(lambda: os.chmod({str(target)!r}, 0o777))
attempt(lambda: os.utime({str(target)!r}, (1, 1)))
attempt(lambda: os.truncate({str(target)!r}, 0))
attempt(lambda: os.remove({str(target)!r}))
attempt(lambda: os.rename({str(target)!r}, "mine"))
attempt(lambda: os.mkdir({other!r} + "/folder"))
attempt(lambda: os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o777))
open("mine", "w").write("allowed")
print(open("mine").read())
"""
        result = run(code)
        after = target.stat()
        assert sorted(path.name for path in Path(other).iterdir()) == ["target"]
        assert (target.read_text(), after.st_mode, after.st_mtime_ns) == ("whole", before.st_mode, before.st_mtime_ns)
    assert not Path("/etc/sekkei").exists()
    assert not Path("/var/tmp/sekkei").exists()
    assert result.ok, result.stderr
    assert result.stdout.splitlines() == ["refused"] * 14 + ["allowed"]


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


@pytest.mark.parametrize("pause", [0.3, 60])
def test_a_child_in_a_session_of_its_own_does_not_survive(
    run: Run, walls: str, pause: float, processes_with: Processes
) -> None:
    marker = f"sekkei-marker-{os.getpid()}-{time.monotonic_ns()}"
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.extend(p for p in processes_with(f"time.sleep(600) {marker}") if p not in seen)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run(ESCAPE.format(marker=marker, pause=pause), seconds=0.8)
    done.set()
    watcher.join()
    if walls == "landlock":
        assert "PermissionError" in result.error()
    else:
        assert seen, "the child was never there, so this test proves nothing"
        assert result.stopped == ("time" if pause > 1 else "")
    assert processes_with(marker) == []


def test_a_flood_of_output_is_cut(run: Run) -> None:
    for stream in ("stdout", "stderr"):
        result = run(f"import sys\nwhile True: sys.{stream}.write('flood ' * 1000)", output=10_000)
        assert result.stopped == "output"
        assert len(getattr(result, stream)) == 10_000


def test_the_disk_is_limited(run: Run, walls: str) -> None:
    result = run("open('big', 'wb').write(bytes(5 << 20))", disk=1 << 20)
    assert result.exit == 1
    assert "OSError" in result.stderr
    result = run("n = 0\nwhile True: open(f'f{n}', 'wb').write(bytes(99_999)); n += 1", disk=1 << 20)
    assert "No space left" in result.error() if walls == "namespaces" else result.stopped == "disk"


def test_other_processes_cannot_be_signalled(run: Run) -> None:
    code = f"""
import os, signal
for pid in ({os.getpid()}, os.getppid(), 1):
    try: os.kill(pid, signal.SIGKILL); print("killed?", pid)
    except OSError: print("refused")
"""
    result = run(code)
    assert "Traceback" not in result.stderr
    # in its own process table 1 and the parent are init, which the kernel keeps from being killed from inside
    assert set(result.stdout.splitlines()) <= {"refused", "killed? 1"}
    assert result.ok


def test_calls_that_undo_walls_are_refused(run: Run) -> None:
    code = """
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
intel = platform.machine() == "x86_64"
calls = {
    "unshare": (272 if intel else 97, 0x10000000), "mount": (165 if intel else 40, 0, 0, 0, 0, 0),
    "ptrace": (101 if intel else 117, 16, 1, 0, 0), "io_uring": (425, 4, 0), "bpf": (321 if intel else 280, 0, 0, 0),
    "clone with a new user": (56 if intel else 220, 0x10000011, 0, 0, 0, 0), "keyctl": (250 if intel else 219, 0, 0),
    "clone3": (435, 0, 0), "of tomorrow": (600,), **({"x32": (0x40000000 + 39,)} if intel else {}),
}
for name, call in calls.items():
    ctypes.set_errno(0)
    done = libc.syscall(*call)
    print(name, done if done >= 0 else errno.errorcode[ctypes.get_errno()])
"""
    result = run(code)
    assert result.ok, result.stderr
    answers = dict(line.rsplit(" ", 1) for line in result.stdout.splitlines())
    newer = {name: answers.pop(name) for name in ("clone3", "of tomorrow", "x32") if name in answers}
    assert set(newer.values()) == {"ENOSYS"}
    assert set(answers.values()) == {"EPERM"}
    assert len(answers) == 7


def test_no_rights_are_left_and_none_come_back(run: Run) -> None:
    code = """
import ctypes, struct
data = ctypes.create_string_buffer(24)
assert ctypes.CDLL(None).capget(struct.pack("Ii", 0x20080522, 0), data) == 0
print(any(data.raw), ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))  # PR_GET_NO_NEW_PRIVS
"""
    again = f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', {code!r}])"
    for attempt in (code, again):
        assert run(attempt).stdout == "False 1\n"


def test_when_the_parent_is_killed_the_code_dies(walls: str, processes_with: Processes, child: str) -> None:
    marker = f"sekkei-marker-{os.getpid()}-{time.monotonic_ns()}"
    code = (
        f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}])"
    )
    asked = json.dumps({"code": code, "stdin": "", "limits": {"seconds": 500}, "walls": walls})
    parent = subprocess.Popen(
        [sys.executable, "-c", child],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdin is not None
    parent.stdin.write(asked)
    parent.stdin.close()
    try:
        assert eventually(lambda: len(processes_with(f"time.sleep(600) {marker}")) == 1)
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not processes_with(marker))
    assert eventually(lambda: not processes_with("sekkei.tools.jail"))
    for folder in Path(tempfile.gettempdir()).glob("sekkei-sandbox-*"):  # SIGKILL leaves no time to remove it
        if folder.stat().st_mtime > time.time() - 60:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
