"""The filter's program, run by a small interpreter of classic BPF, for both machines that it knows."""

from __future__ import annotations

import platform
import re
import struct
from pathlib import Path

import pytest

from sekkei.tools import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050001, 0x00050026
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {
    "read": (0, 63), "openat": (257, 56), "execve": (59, 221), "mmap": (9, 222), "getrandom": (318, 278),
    "futex": (202, 98), "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "socketpair": (53, 199),
    "sendto": (44, 206), "kill": (62, 129), "tgkill": (234, 131), "ioctl": (16, 29), "unshare": (272, 97),
    "io_uring_setup": (425, 425), "prlimit64": (302, 261), "fchmod": (91, 52), "ptrace": (101, 117), "new": (500, 500),
}  # fmt: skip


def run(program: bytes, number: int, arch: int, *args: int) -> int:
    """What the kernel would answer."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *(args + (0,) * (6 - len(args))))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("alone", [None, 77])
def test_what_is_allowed_and_what_is_not(machine: str, alone: int | None) -> None:
    program = seccomp.program(machine, alone)
    assert len(program) // 8 < 4096  # BPF_MAXINSNS

    def ask(name: str, *args: int) -> int:
        return run(program, NUMBERS[name][machine == "aarch64"], ARCH[machine], *args)

    for name in ("read", "openat", "execve", "mmap", "getrandom", "futex"):
        assert ask(name, 1, 2, 3, 4, 5, 6) == ALLOW
    for name in ("socket", "unshare", "io_uring_setup", "ptrace"):
        assert ask(name, 1, 1) == EPERM
    assert (ask("clone3"), ask("new")) == (ENOSYS, ENOSYS)
    assert (ask("socketpair", 1), ask("socketpair", 2)) == (ALLOW, EPERM)
    assert (ask("sendto", 3, 4, 5, 6, 0), ask("sendto", 3, 4, 5, 6, 7)) == (ALLOW, EPERM)
    assert ask("sendto", 3, 4, 5, 6, 7 << 32) == EPERM  # a pointer whose low word is 0
    assert (ask("ioctl", 1, 0x5401), ask("ioctl", 1, 0x5450), ask("ioctl", 0, 0x5412)) == (ALLOW, ALLOW, EPERM)
    assert ask("clone", 0x10000 | 0x100) == ALLOW  # a thread
    assert ask("clone", 0x10000 | 0x10000000) == EPERM  # a new user namespace
    free = ALLOW if alone is None else EPERM
    assert ask("clone", 17) == free  # a process
    assert (ask("kill", 77, 9), ask("kill", 78, 9), ask("tgkill", 1, 1, 9)) == (ALLOW, free, free)
    assert (ask("prlimit64", 0), ask("prlimit64", 77), ask("prlimit64", 1)) == (ALLOW, ALLOW, free)
    assert ask("fchmod", 3, 0o777) == free


def test_another_calling_convention_is_fatal() -> None:
    program = seccomp.program("x86_64")
    assert run(program, 1, 0x40000003) == KILL  # 32-bit calls of the same machine
    assert run(program, 0x40000000 + 41, ARCH["x86_64"]) == ENOSYS  # socket by the x32 table
    with pytest.raises(KeyError):
        seccomp.program("riscv64")


def test_the_numbers_are_those_of_the_kernel_headers() -> None:
    headers = {
        0: [Path(f"/usr/include/{place}asm/unistd_64.h") for place in ("x86_64-linux-gnu/", "")],
        1: [Path("/usr/include/asm-generic/unistd.h")],
    }
    tables = seccomp._REFUSED | seccomp._REFUSED_ALONE | seccomp._ARGUED
    compared = 0
    for column, places in headers.items():
        text = next((place.read_text() for place in places if place.exists()), "")
        known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text)}
        for name, numbers in tables.items():
            if name in known:
                assert numbers[column] == known[name], name
                compared += 1
    if not compared:
        pytest.skip(f"no kernel headers on this machine ({platform.machine()})")
    assert compared > 50
