"""What the machine under the run is, and the one setting of it that we change.

Nothing here decides how a model is computed: those choices are made from shapes by static tables.
This file names the processor and its bf16 units, reads memory, tells the peak that the model FLOP
utilisation is divided by, and tunes glibc's allocator. `torch` is imported inside the functions,
so that the command line may import this file and stay light.

    MFU = achieved FLOP/s / peak FLOP/s        peak: vendor's dense figure, else a measured matmul

It does not handle Windows (no `resource` module), and knows AMX and AVX-512 on Linux only, where
the kernel lists them in /proc/cpuinfo.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

GIB = 1024**3

# Dense bf16 FLOP/s with fp32 accumulation, from the vendors' data sheets (a sheet that quotes
# sparsity is halved). The key is a set of words of the device's name; the first row that fits wins,
# so a variant stands before its family.
_DENSE_BF16: tuple[tuple[frozenset[str], float], ...] = (
    (frozenset({"B200"}), 2250e12),
    (frozenset({"H200", "NVL"}), 835.5e12),
    (frozenset({"H200"}), 989.4e12),
    (frozenset({"GH200"}), 989.4e12),
    (frozenset({"H100", "PCIe"}), 756.5e12),
    (frozenset({"H100", "NVL"}), 835.5e12),
    (frozenset({"H100"}), 989.4e12),
    (frozenset({"H800"}), 989.4e12),
    (frozenset({"A100"}), 312e12),
    (frozenset({"A800"}), 312e12),
    (frozenset({"A30"}), 165e12),
    (frozenset({"L40S"}), 362e12),
    (frozenset({"L4"}), 121e12),
    (frozenset({"MI300X"}), 1307.4e12),
)


class Memory(NamedTuple):
    """Main memory that this process may use, in bytes."""

    total: int
    available: int


class Peak(NamedTuple):
    """FLOP/s that 100% utilisation would be, and where the figure is from."""

    flops: float
    source: str


def cpu_name() -> str:
    """The processor's own name, as in `Intel(R) Xeon(R) Platinum 8481C`."""
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Logical cores that this process may run on (its affinity mask, where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Threads that one torch operation uses; sums are split by thread, so the last bits depend on it."""
    import torch

    return torch.get_num_threads()


def has_amx_bf16() -> bool:
    """Whether the processor has AMX tiles for bf16 (Sapphire Rapids and later)."""
    return {"amx_tile", "amx_bf16"} <= _cpu_flags()


def has_avx512_bf16() -> bool:
    """Whether the processor has AVX-512 dot products of bf16 (Cooper Lake, Zen 4 and later)."""
    return "avx512_bf16" in _cpu_flags()


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype that matrix products are fast in: bfloat16 where the device has units for it, else float32.

    A GPU since Ampere (compute capability 8) has them, and a CPU with AMX or AVX-512 bf16. A CPU without them
    is not merely slow: torch then multiplies bf16 element by element, 100 times slower than float32
    (measured on an AVX2 machine: 1.3 against 130 GFLOP/s).
    """
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    return torch.bfloat16 if has_amx_bf16() or has_avx512_bf16() else torch.float32


def memory() -> Memory:
    """Total and available memory in bytes; a container's own limit counts where it is lower."""
    import psutil

    machine = psutil.virtual_memory()
    limit = _cgroup_limit(Path("/sys/fs/cgroup/memory.max"))
    if limit is None or limit >= machine.total:
        return Memory(machine.total, machine.available)
    return Memory(limit, min(limit, machine.available))


def peak_rss_gib() -> float:
    """Highest resident memory of this process so far, in GiB.

    Linux's `ru_maxrss` is inherited through exec, so that a run started from a large process would be
    charged for its parent, and RUSAGE_CHILDREN shows this process's own memory again for every program
    that it started; the kernel's VmHWM is free of both. Children are therefore not counted.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB  # the file counts in kibibytes
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def tune_allocator() -> str:
    """Keep freed blocks in the process instead of giving them back to the kernel.

    glibc serves large requests by `mmap` and returns them at `free`, so each large temporary of a
    training step page-faults afresh. `M_MMAP_MAX=0` and `M_TRIM_THRESHOLD=-1` (mallopt(3)) switch
    both off: once the heap has grown to a step's needs, steps no longer fault. The price: memory at
    its peak stays with the process.

    Returns:
        One log line: what was done, or why nothing was.
    """
    other = [name for name in ("jemalloc", "tcmalloc", "mimalloc") if name in os.environ.get("LD_PRELOAD", "")]
    if other:
        return f"allocator: {other[0]} is preloaded, left as it is"
    if not sys.platform.startswith("linux"):
        return f"allocator: left as it is ({sys.platform} has no mallopt)"
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return "allocator: left as it is (the C library is not glibc)"
    mmap_max, trim_threshold = -4, -1  # names of the parameters in glibc's malloc.h
    if library.mallopt(mmap_max, 0) and library.mallopt(trim_threshold, -1):
        return "allocator: glibc keeps freed memory (M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1)"
    return "allocator: left as it is (glibc refused mallopt)"


def trim_memory() -> None:
    """Give freed memory back to the system where glibc allows it: `tune_allocator` keeps it, and shapes that vary
    from step to step fragment what is kept.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def peak_flops(device: torch.device, dtype: torch.dtype) -> Peak:
    """The denominator of model FLOP utilisation; it goes into logs only, under `"machine"`.

    A known GPU in bf16 or fp16 has its data sheet's dense figure, anything else (CPUs, fp32,
    unknown GPUs) a measured matmul: there 100% means "as fast as one large matmul here".
    """
    import torch

    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        known = dense_bf16_flops(name)
        if known is not None:
            return Peak(known, f"{name}, data sheet, dense bf16")
    return Peak(measure_matmul_flops(dtype, device), f"measured {str(dtype).removeprefix('torch.')} matmul")


def best_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def loopback() -> str:
    """The name of the network interface on which processes of this machine talk to each other."""
    import socket

    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), names[0])


def synchronize(device: torch.device) -> None:
    """Wait for the device, before its time is read."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def dense_bf16_flops(name: str) -> float | None:
    """The data sheet's dense bf16 FLOP/s of the GPU called `name`, None if it is not in the table."""
    words = frozenset(name.replace("-", " ").split())
    return next((flops for key, flops in _DENSE_BF16 if key <= words), None)


def measure_matmul_flops(dtype: torch.dtype, device: torch.device | None = None, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of several square matmuls of `dtype`, tried for about `seconds`.

    A product of two [n, n] matrices is 2·n³ operations; n is 1024 on a CPU (2 GFLOP: some
    milliseconds even where bf16 is emulated), 8192 on a GPU.
    """
    import torch

    device = device or torch.device("cpu")
    n = 8192 if device.type == "cuda" else 1024
    left = torch.ones(n, n, dtype=dtype, device=device)
    out = torch.empty_like(left)
    best = float("inf")
    start = time.perf_counter()
    runs = 0
    while runs < 3 or time.perf_counter() - start < seconds:  # the first two also load the kernel
        before = time.perf_counter()
        torch.mm(left, left, out=out)
        synchronize(device)
        best = min(best, time.perf_counter() - before)
        runs += 1
    return 2.0 * n**3 / best


@functools.cache
def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _cpu_flags() -> frozenset[str]:
    for line in _cpuinfo().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _cgroup_limit(path: Path) -> int | None:
    """The limit in a cgroup v2 `memory.max` file, None where there is none (`max`, or no such file)."""
    if not path.exists():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdigit() else None
