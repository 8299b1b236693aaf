"""A system-call filter for the sandbox, written as the classic BPF program that the kernel runs on every call.

    load the call's number; each rule:  number == N?  -> (look at its arguments) -> answer EPERM, or go on
    newer than what this file knows?    -> ENOSYS, so that the caller falls back to the older call
    another architecture's calling convention?  -> the process is killed
    else -> allowed

Refused in every sandbox: sockets except a private `socketpair`, new namespaces, mounts, tracing, io_uring (it would
go round the filter), the kernel's keyrings, BPF, performance counters, System V memory, all but harmless ioctls.
Refused where the process has no namespaces of its own (`alone`): new processes, signals and limits of other
processes, and the changes to files that Landlock does not govern (modes, owners, times, attributes).

Sources: the kernel's Documentation/userspace-api/seccomp_filter.rst, seccomp(2), the default profile's intent of
container engines; the numbers are those of asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).

It does not handle other architectures (`program` raises), nor arguments behind pointers, which BPF cannot see.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

# call -> (x86_64, aarch64); None: the architecture does not have it
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    **{"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202)},
    **{"accept4": (288, 242), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"kcmp": (312, 272), "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219)},
    **{"add_key": (248, 217), "request_key": (249, 218), "mount": (165, 40), "umount2": (166, 39)},
    **{"pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "reboot": (169, 142)},
    **{"finit_module": (313, 273), "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225)},
    **{"acct": (163, 89), "quotactl": (179, 60), "userfaultfd": (323, 282), "open_by_handle_at": (304, 265)},
    **{"name_to_handle_at": (303, 264), "iopl": (172, None), "ioperm": (173, None), "settimeofday": (164, 170)},
    **{"clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "syslog": (103, 116)},
    **{"mknod": (133, None), "mknodat": (259, 33), "migrate_pages": (256, 238), "move_pages": (279, 239)},
    **{"shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193)},
    **{"semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188)},
    **{"msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "inotify_add_watch": (254, 27)},
    **{"fanotify_init": (300, 262), "fanotify_mark": (301, 263), "sethostname": (170, 161)},
    **{"setdomainname": (171, 162), "vhangup": (153, 58), "uselib": (134, None), "modify_ldt": (154, None)},
    # from 424 on every architecture has the same numbers
    **{"pidfd_send_signal": (424, 424), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426)},
    **{"io_uring_register": (427, 427), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430)},
    **{"fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "pidfd_getfd": (438, 438)},
    **{"process_madvise": (440, 440), "mount_setattr": (442, 442), "quotactl_fd": (443, 443)},
    **{"process_mrelease": (448, 448), "statmount": (457, 457), "listmount": (458, 458)},
}
_REFUSED_ALONE: dict[str, tuple[int | None, int | None]] = {
    **{"fork": (57, None), "vfork": (58, None), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138)},
    **{"rt_tgsigqueueinfo": (297, 240), "sendmsg": (46, 211), "sendmmsg": (307, 269), "setpriority": (141, 140)},
    **{"sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274)},
    **{"sched_setaffinity": (203, 122), "ioprio_set": (251, 30), "chmod": (90, None), "fchmod": (91, 52)},
    **{"fchmodat": (268, 53), "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54)},
    **{"utime": (132, None), "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14)},
    **{"lremovexattr": (198, 15), "fremovexattr": (199, 16), "pidfd_open": (434, 434), "fchmodat2": (452, 452)},
}
_ARGUED: dict[str, tuple[int, int]] = {
    **{"clone": (56, 220), "clone3": (435, 435), "socketpair": (53, 199), "sendto": (44, 206), "ioctl": (16, 29)},
    **{"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)},
}
_NEWEST = 462  # mseal, Linux 6.10; later calls are answered as an older kernel would
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
# TCGETS, TIOCGWINSZ (is it a terminal? how wide?), FIONREAD, FIONBIO, FIOCLEX, FIONCLEX
_HARMLESS_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5451, 0x5450)

_LOAD, _JUMP_EQ, _JUMP_GT, _JUMP_SET, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _ARCH_AT, _ARGS_AT = 0, 4, 16  # offsets in struct seccomp_data
_SET_MODE_FILTER, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 2, 22, 38

Test = tuple[str, int, tuple[int, ...]]  # ("not in" | "bits" | "no bits", offset of a 32-bit word, values)


def supported() -> bool:
    """Whether this file knows the machine's calling convention."""
    return platform.machine() in _ARCHITECTURES and os.name == "posix"


def program(machine: str, alone_pid: int | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        machine: "x86_64" or "aarch64", as `platform.machine()` says.
        alone_pid: the process's own id where it shares the process table with others (the stricter filter).

    Raises:
        KeyError: another machine.
    """
    column, arch = _ARCHITECTURES[machine]
    code = [_op(_LOAD, _ARCH_AT), _op(_JUMP_EQ, arch, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER_AT)]
    code += [_op(_JUMP_GT, _NEWEST, 0, 1), _op(_RETURN, _ERRNO | errno.ENOSYS)]
    refused = _REFUSED | (_REFUSED_ALONE if alone_pid is not None else {})
    for numbers in refused.values():
        number = numbers[column]
        if number is not None:
            code += _rule(number, [], errno.EPERM)
    argument = [_ARGS_AT + 8 * index for index in range(6)]  # the low words; both machines are little-endian
    rules: list[tuple[str, list[Test], int]] = [
        ("clone", [("bits", argument[0], (_NEW_NAMESPACES,))], errno.EPERM),
        ("clone3", [], errno.ENOSYS),  # its flags lie behind a pointer; libraries fall back to clone
        ("socketpair", [("not in", argument[0], (_AF_UNIX,))], errno.EPERM),
        ("sendto", [("not in", argument[4], (0,))], errno.EPERM),
        ("sendto", [("not in", argument[4] + 4, (0,))], errno.EPERM),
        ("ioctl", [("not in", argument[1], _HARMLESS_IOCTLS)], errno.EPERM),
    ]
    if alone_pid is not None:
        rules += [
            ("clone", [("no bits", argument[0], (_CLONE_THREAD,))], errno.EPERM),
            ("kill", [("not in", argument[0], (alone_pid,))], errno.EPERM),
            ("tgkill", [("not in", argument[0], (alone_pid,))], errno.EPERM),
            ("prlimit64", [("not in", argument[0], (0, alone_pid))], errno.EPERM),
        ]
    for name, tests, answer in rules:
        code += _rule(_ARGUED[name][column], tests, answer)
    code.append(_op(_RETURN, _ALLOW))
    return b"".join(code)


def install(alone_pid: int | None = None) -> None:
    """Put the filter on this thread and its descendants, for ever. Sets no_new_privs, which it requires.

    Raises:
        OSError: the kernel refused.
    """
    code = program(platform.machine(), alone_pid)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SET_MODE_FILTER, header, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _rule(number: int, tests: list[Test], answer: int) -> list[bytes]:
    """Answer with an error if the call has this number and every test of its arguments holds."""
    body: list[bytes] = []
    tail = [_op(_RETURN, _ERRNO | answer)]
    for kind, offset, values in reversed(tests):
        # jump over what follows (the later tests and the answer) when the test fails
        block = [_op(_LOAD, offset)]
        over = len(body) + len(tail)
        if kind == "bits":
            block.append(_op(_JUMP_SET, values[0], 0, over))
        elif kind == "no bits":
            block.append(_op(_JUMP_SET, values[0], over, 0))
        else:
            left = range(len(values) - 1, -1, -1)
            block += [_op(_JUMP_EQ, value, after + over, 0) for value, after in zip(values, left)]
        body = block + body
    body += tail
    if tests:  # the arguments have replaced the number
        body.append(_op(_LOAD, _NUMBER_AT))
    return [_op(_JUMP_EQ, number, 0, len(body)), *body]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
