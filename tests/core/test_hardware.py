"""What the machine is said to be, and the allocator's effect in page faults."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sekkei.core import hardware

GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def test_the_machine_is_named() -> None:
    assert hardware.cpu_name().strip()
    assert hardware.cores() >= 1
    assert hardware.threads() == torch.get_num_threads()
    memory = hardware.memory()
    assert 0 < memory.available <= memory.total


def test_flags_are_read_from_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model name\t: Fast 9000\nflags\t\t: fpu amx_bf16 amx_tile avx512_bf16\n"
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: text)
    assert hardware.cpu_name() == "Fast 9000"
    assert hardware.has_amx_bf16()
    assert hardware.has_avx512_bf16()
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: text.replace("amx_tile", "").replace("avx512_bf16", "avx512f"))
    assert not hardware.has_amx_bf16()
    assert not hardware.has_avx512_bf16()
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: "")  # a system without /proc
    assert not hardware.has_amx_bf16()
    assert hardware.cpu_name()


def test_a_container_limit_counts(tmp_path: Path) -> None:
    path = tmp_path / "memory.max"
    assert hardware._cgroup_limit(path) is None
    path.write_text("max\n")
    assert hardware._cgroup_limit(path) is None
    path.write_text("1073741824\n")
    assert hardware._cgroup_limit(path) == hardware.GIB


def test_peak_memory_sees_an_allocation() -> None:
    code = (
        "from sekkei.core.hardware import peak_rss_gib\nbefore = peak_rss_gib()\n"
        "block = bytearray(b'x') * (256 << 20)\nprint(peak_rss_gib() - before)"
    )
    grown = float(subprocess.check_output([sys.executable, "-c", code]))
    assert 0.24 < grown < 0.3  # and so nothing of the parent, which is larger


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_data_sheets(name: str, flops: float | None) -> None:
    assert hardware.dense_bf16_flops(name) == flops


def test_a_cpu_is_measured() -> None:
    peak = hardware.peak_flops(torch.device("cpu"), torch.float32)
    assert peak.source == "measured float32 matmul"
    assert 1e8 < peak.flops < 1e15


FAULTS = """
import resource, sys
from sekkei.core.hardware import tune_allocator
import torch
if sys.argv[1] == "tuned":
    print(tune_allocator(), file=sys.stderr)
for _ in range(40):  # the heap grows for the first ten or so, until aligned blocks fit
    torch.ones(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # 32 MiB each, 8,192 pages: glibc's own adaptive threshold ends just below
    torch.ones(8 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator only")
def test_tuned_allocator_stops_page_faults() -> None:
    def faults(kind: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, kind], stderr=subprocess.DEVNULL))

    plain, tuned = faults("plain"), faults("tuned")
    assert plain > 50_000
    assert tuned < 100


def test_allocator_says_why_it_did_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert hardware.tune_allocator() == "allocator: jemalloc is preloaded, left as it is"
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "darwin has no mallopt" in hardware.tune_allocator()


def test_allocator_survives_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # as musl: no mallopt
    assert "not glibc" in hardware.tune_allocator()


def test_bf16_is_fast_only_where_the_processor_has_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, dtype in (
        ("fpu avx2", torch.float32),
        ("fpu avx512f avx512_bf16", torch.bfloat16),
        ("fpu amx_tile amx_bf16", torch.bfloat16),
    ):
        monkeypatch.setattr(hardware, "_cpuinfo", lambda flags=flags: f"flags\t\t: {flags}\n")
        assert hardware.fast_dtype(cpu) == dtype
