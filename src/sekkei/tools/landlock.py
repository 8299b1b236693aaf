"""Landlock: the Linux wall that lets a process without any rights confine itself to named files (since 5.13).

    ruleset = every kind of access that this kernel's Landlock knows; whatever no rule allows is refused
    rule    = one file or folder (with all beneath) and the accesses allowed there

The kernel numbers its versions ("ABI"): 1 files; 2 moving between folders; 3 truncating; 4 TCP bind and connect;
5 device ioctls; 6 abstract unix sockets and signals to processes outside. `restrict` uses all that the kernel has.

Source: the kernel's Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.

It does not handle what Landlock itself leaves free: looking at names, sizes and dates of files, changing modes,
owners and times, UDP and other sockets, and files opened before. `tools/seccomp.py` closes the dangerous ones.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Mapping

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PR_SET_NO_NEW_PRIVS = 38
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # the rest is for folders only
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}

READ = _EXECUTE | _READ_FILE | _READ_DIR
DEVICE = _READ_FILE | _WRITE_FILE
ALL = ((1 << 15) - 1) & ~(_MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK)


def abi() -> int:
    """The version that the kernel offers; 0 where Landlock is absent or switched off."""
    if os.uname().sysname != "Linux":
        return 0
    return max(ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, 1), 0)


def restrict(allowed: Mapping[str, int]) -> int:
    """Confine this thread and its descendants, for ever, to `allowed` (path -> READ, DEVICE or ALL); missing paths
    are passed over. Returns the version that stands.

    Raises:
        OSError: the kernel has no Landlock or refused a step.
    """
    version = abi()
    if not version:
        raise OSError("landlock: not in this kernel, or switched off")
    libc = ctypes.CDLL(None, use_errno=True)
    handled = _ALL_BY_ABI.get(version, (1 << 16) - 1)
    fields = [handled]
    if version >= 4:
        fields.append(0b11)  # TCP bind and connect, on any port
    if version >= 6:
        fields.append(0b11)  # abstract unix sockets and signals, towards processes outside
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0), "ruleset")
    try:
        for path, access in allowed.items():
            _allow(libc, ruleset, path, access & handled)
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0), "restrict")
    finally:
        os.close(ruleset)
    return version


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _OF_FILES
        rule = struct.pack("=Qi", access, place)
        _checked(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), f"rule for {path}")
    finally:
        os.close(place)


def _checked(result: int, step: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {step}: {os.strerror(number)}")
    return result
