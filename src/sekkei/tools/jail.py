"""The inside of the sandbox: builds the walls around itself, then becomes the code that is to be run.

`sandbox.py` starts this file as a process of its own and hands it one JSON object on standard input.

    namespaces:  launcher --unshare, new root--> init (process 1) --fork, limits, no rights, Landlock, seccomp--> python
    landlock:    launcher --fork, limits, no rights, Landlock, seccomp (no new processes)--> python
    none:        launcher --fork, limits--> python                                    (only when asked for by name)

With namespaces the code has its own file tree (read-only Python and system libraries, a small tmpfs at /tmp), an
empty network, its own process table and users. When `init` ends, the kernel kills whatever the code left running,
whatever it did to get away. The launcher dies with its parent, and init with the launcher.

Sources: user_namespaces(7), mount_namespaces(7), pid_namespaces(7), pivot_root(2), capabilities(7), prctl(2).
It does not handle anything but Linux; `none` needs POSIX only. What it reports goes to the status pipe, one JSON
object a line: {"ready": …}, {"exit": n} or {"failed": why}.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from sekkei.tools import landlock, seccomp

Config = dict[str, Any]

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _SLAVE, _DETACH = 1, 2, 4, 32, 4096, 16384, 1 << 19, 2
_PDEATHSIG, _CAPBSET_DROP, _CHILD_SUBREAPER, _CAP_AMBIENT, _AMBIENT_CLEAR = 1, 24, 36, 47, 4
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPABILITY_VERSION_3 = 0x20080522
_INNER_ID = 1000  # whom the code believes to be, where an ordinary user made the namespace
_LONELY_ID = 0x70000000  # as root: this plus the process id is a user that nobody else is, so its limits are its own
_NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read the configuration, build the walls, run, report. Exit code 0, or 1 if no wall could be built."""
    config: Config = json.loads(sys.stdin.buffer.read())
    report = _reporter(config["status"])
    try:
        _die_with_parent(config["parent"])
        launch = {"namespaces": _in_namespaces, "landlock": _alone, "none": _unprotected}[config["mode"]]
        launch(config, report)
    except OSError as error:
        report(failed=str(error.strerror or error))
        sys.exit(1)


def _reporter(descriptor: int) -> Callable[..., None]:
    os.set_inheritable(descriptor, False)

    def report(**what: object) -> None:
        os.write(descriptor, json.dumps(what).encode() + b"\n")

    return report


# -- three ways to run ------------------------------------------------------------------------------------------------


def _in_namespaces(config: Config, report: Callable[..., None]) -> None:
    root = os.getuid() == 0
    flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS | (0 if root else _NEWUSER)
    uid, gid = os.getuid(), os.getgid()
    _checked(libc.unshare(flags), "unshare")
    inner = _lonely_id() if root else _INNER_ID
    if not root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{inner} {uid} 1"), ("gid_map", f"{inner} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    _new_root(config, inner)
    alive_read, alive_write = os.pipe()
    init = os.fork()
    if init:
        _wait_for(init)
        return
    os.close(alive_write)
    _checked(libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    if select.select([alive_read], [], [], 0)[0]:  # the launcher died before it was tied to us
        os._exit(1)
    child = os.fork()
    if not child:
        _become(config, report, user=inner if root else None)
    while True:
        pid, status = os.wait()
        if pid == child:
            report(exit=os.waitstatus_to_exitcode(status))
            os._exit(0)


def _alone(config: Config, report: Callable[..., None]) -> None:
    child = os.fork()
    if not child:
        _become(config, report)
    report(exit=_wait_for(child))


def _unprotected(config: Config, report: Callable[..., None]) -> None:
    linux = sys.platform == "linux"
    if linux:
        libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)  # whoever is orphaned below becomes our child, and is killed
    child = os.fork()
    if not child:
        _become(config, report)
    code = _wait_for(child)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    while linux and (left := _children_of(os.getpid())):
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.wait()
    report(exit=code)


def _wait_for(child: int) -> int:
    """Wait; a SIGTERM from our parent meanwhile means: kill it."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


# -- a file tree of its own -------------------------------------------------------------------------------------------


def _new_root(config: Config, owner: int) -> None:
    """Replace the root by a tmpfs on `folder` with Python, the system's libraries and a writable /tmp; nothing else."""
    root = config["folder"]
    _mount(None, "/", None, _REC | _SLAVE)
    _mount("sandbox", root, "tmpfs", _NOSUID | _NODEV, "mode=755,size=4m")
    os.mkdir(f"{root}/tmp")
    options = f"mode=700,uid={owner},gid={owner},size={config['disk']},nr_inodes=4096"
    _mount("sandbox", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, options)
    for path in [*config["readable"], *DEVICES]:
        if not os.path.exists(path):
            continue
        target = root + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(path, target, None, _BIND | _REC)
        _make_read_only(target, 0 if path in DEVICES else _NODEV)
    # named semaphores, as multiprocessing makes them, live in /dev/shm
    for path, target in [*config["links"].items(), ("/dev/shm", "/tmp")]:
        if not os.path.lexists(root + path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(target, root + path)
    _checked(
        libc.mount(None, root.encode(), None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV, None), "read-only root"
    )
    os.chdir(root)
    _checked(libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _checked(libc.umount2(b".", _DETACH), "leaving the old root")
    os.chdir("/")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    flag_word = ctypes.c_ulong(flags)
    _checked(libc.mount(words[0], words[1], words[2], flag_word, words[3]), f"mount {source or ''} at {target}")


def _make_read_only(target: str, extra: int) -> None:
    attributes = struct.pack("4Q", _RDONLY | _NOSUID | extra, 0, 0, 0)  # the first three bits are those of mount(2)
    path = os.fsencode(target)
    if libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, attributes, len(attributes)) == 0:
        return
    if ctypes.get_errno() != errno.ENOSYS:  # Linux before 5.12: the outermost mount only, its locked flags kept
        _checked(-1, f"read-only {target}")
    kept = os.statvfs(target).f_flag & 0xF
    _mount(None, target, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | extra | kept)


def _lonely_id() -> int:
    """A user id without any file or process, if this machine's users reach so far; else nobody's."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    for wanted in (_LONELY_ID + os.getpid(), _NOBODY):
        if any(first <= wanted < first + count for first, _, count in ranges):
            return wanted
    raise OSError("no ordinary user id is mapped here: run as an ordinary user instead of root")


# -- the last steps before the code -----------------------------------------------------------------------------------


def _become(config: Config, report: Callable[..., None], user: int | None = None) -> NoReturn:
    """Give up every right and become the Python process. Never returns; a failure is reported and ends in exit 1."""
    try:
        os.setsid()
        mode, linux = config["mode"], sys.platform == "linux"
        folder = "/tmp" if mode == "namespaces" else config["folder"]
        if mode != "none":
            _drop_rights(user)
        if linux and mode != "namespaces":
            _die_with_parent(os.getppid())  # again: losing rights has unset it
        os.chdir(folder)
        os.umask(0o077)
        _write_files(config)
        _limit(config)
        walls: dict[str, object] = {"landlock": 0, "seccomp": False}
        if mode != "none":
            allowed = dict.fromkeys(config["readable"], landlock.READ) | dict.fromkeys(DEVICES, landlock.DEVICE)
            if mode == "landlock" or landlock.abi():
                walls["landlock"] = landlock.restrict(allowed | {folder: landlock.ALL})
            if mode == "landlock" or seccomp.supported():
                seccomp.install(alone_pid=os.getpid() if mode == "landlock" else None)
                walls["seccomp"] = True
        report(ready=walls)
        os.execve(config["argv"][0], config["argv"], config["env"] | {"HOME": folder, "TMPDIR": folder})
    except BaseException as error:
        report(failed=f"{getattr(error, 'strerror', None) or error} (starting {config['argv'][0]})")
    os._exit(1)


def _drop_rights(user: int | None) -> None:
    """No capability may be had or regained; as root, become `user`, who owns nothing."""
    capability = 0
    while libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    libc.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, empty = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _checked(libc.capset(header, empty), "giving up rights")


def _write_files(config: Config) -> None:
    for name, content in config["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as file:
            file.write(base64.b64decode(content))
    with open(".stdin", "wb") as file:
        file.write(base64.b64decode(config["stdin"]))
    descriptor = os.open(".stdin", os.O_RDONLY)
    os.unlink(".stdin")
    os.dup2(descriptor, 0)
    os.close(descriptor)


def _limit(config: Config) -> None:
    for name, value in config["limits"].items():
        soft, hard = value if isinstance(value, list) else (value, value)
        with contextlib.suppress(ValueError):  # macOS refuses some; a limit that was lower stays
            most = resource.getrlimit(getattr(resource, name))[1]
            if most != resource.RLIM_INFINITY:
                soft, hard = min(soft, most), min(hard, most)
            resource.setrlimit(getattr(resource, name), (soft, hard))


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        _checked(libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    if os.getppid() != parent:
        os._exit(1)


def _checked(result: int, step: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result
