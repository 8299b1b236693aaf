"""Ring attention, and its all-gather alternative, against full attention on one process; cp1, cp2 and cp4 over gloo.

Four processes (`ring_worker.py`) are started once for the module and compute all cases; the tests read their figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sekkei.parallel import kernels
from sekkei.parallel.blockwise import causal_halves
from sekkei.parallel.live_bytes import LiveBytes, storage_bytes

WORKER = Path(__file__).with_name("ring_worker.py")
WORLD, DEADLINE = 4, 150.0  # seconds until the ranks are given up; 25 where the two cores are free
SIZES = ("cp2", "cp4")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """The figures of every rank."""
    folder = tmp_path_factory.mktemp("ring")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    outs = [folder / f"{rank}.json" for rank in range(WORLD)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(folder / "store"), str(out)],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        end = time.monotonic() + DEADLINE
        for rank, process in enumerate(processes):
            _, errors = process.communicate(timeout=max(1.0, end - time.monotonic()))
            assert process.returncode == 0, f"rank {rank}: {errors[-2000:]}"
        yield [json.loads(out.read_text()) for out in outs]
    finally:
        for process in processes:
            process.kill()


def worst(ranks: list[dict[str, Any]], size: str, dtype: torch.dtype) -> tuple[float, str, int]:
    """The largest error of all cases of a dtype, its case and rank."""
    return max(
        (max(errors.values()), name, rank)
        for rank, found in enumerate(ranks)
        for name, errors in found[size]["equality"].items()
        if name.startswith(str(dtype))
    )


@pytest.mark.parametrize("size", ["cp1", *SIZES])
def test_equal_to_full_attention(ranks: list[dict[str, Any]], size: str) -> None:
    """Out, dq, dk, dv: ring and gather, causal or not, grouped heads or not, packed rows or whole ones."""
    assert len(ranks[0][size]["equality"]) == 2 * (2 * 2 * 2 * 2 + 1)
    assert worst(ranks, size, torch.float64) < (1e-12,)
    assert worst(ranks, size, torch.float32) < (1e-5,)


@pytest.mark.parametrize("size", SIZES)
def test_half_precision_is_as_good_as_one_kernel(ranks: list[dict[str, Any]], size: str) -> None:
    for found in ranks:
        ring, kernel = found[size]["half"]["ring"], found[size]["half"]["kernel"]
        assert all(ring[part] <= 2 * kernel[part] for part in kernel), (ring, kernel)


@pytest.mark.parametrize("size", ["cp1", *SIZES])
@pytest.mark.parametrize("way", ["ring", "ring recomputed", "gather"])
def test_a_whole_model_is_the_same(ranks: list[dict[str, Any]], size: str, way: str) -> None:
    """Log-probabilities and every parameter's gradient on packed, unevenly masked rows, float64."""
    for found in ranks:
        assert found[size]["model"][way]["logprobs"] <= 1e-10
        assert found[size]["model"][way]["grads"] <= 1e-10


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "fault",
    ["local positions", "contiguous data into zig-zag", "unseen rows merged with lse 0", "last block skipped"],
)
def test_a_planted_fault_is_seen(ranks: list[dict[str, Any]], size: str, fault: str) -> None:
    """Some rank is wrong by a lot in every figure (a rank whose queries all see every block has nothing to forget)."""
    by_rank = [found[size]["faults"][fault] for found in ranks]
    assert all(max(errors[figure] for errors in by_rank) > 0.1 for figure in by_rank[0]), by_rank


@pytest.mark.parametrize("size", SIZES)
def test_zigzag_balances_work(ranks: list[dict[str, Any]], size: str) -> None:
    """Score elements that the kernel calls compute, per rank."""
    work = {name: [found[size]["work"][name] for found in ranks] for name in ranks[0][size]["work"]}
    assert max(work["zigzag"]) <= 1.1 * min(work["zigzag"])
    assert max(work["contiguous"]) >= 2 * min(work["contiguous"])
    assert sum(work["zigzag"]) == sum(work["contiguous"])


@pytest.mark.parametrize("way", ["ring", "ring packed"])
def test_memory_shrinks_with_ranks(ranks: list[dict[str, Any]], way: str) -> None:
    """Peak live bytes per rank at a fixed global length; gathered keys do not shrink."""
    two, four = (max(found[size]["memory"][way] for found in ranks) for size in SIZES)
    assert four <= 0.6 * two
    assert four < max(found["cp4"]["memory"]["gather"] for found in ranks)


# ---- without processes


def test_halves_that_meet() -> None:
    everything, first, second = slice(0, 2), slice(0, 1), slice(1, 2)
    assert causal_halves((1, 6), (0, 7)) == [(everything, first)]  # zig-zag, keys of an earlier rank
    assert causal_halves((0, 7), (1, 6)) == [(second, everything)]  # of a later rank
    assert causal_halves((2, 3), (0, 1)) == [(everything, everything)]  # contiguous
    assert causal_halves((0, 1), (2, 3)) == []
    assert causal_halves((1, 3), (0, 2)) == [(first, first), (second, everything)]  # striped


def inputs(dtype: torch.dtype, queries: int = 24, keys: int = 40) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(2)
    q, grad = (torch.randn(2, 4, queries, 16, dtype=torch.float64).to(dtype) for _ in range(2))
    k, v = (torch.randn(2, 2, keys, 16, dtype=torch.float64).to(dtype) for _ in range(2))
    return q, k, v, grad


@pytest.mark.parametrize("mask", ["none", "causal", "allowed"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_explicit_kernel_is_the_cpu_kernel(
    monkeypatch: pytest.MonkeyPatch, mask: str, dtype: torch.dtype, bound: float
) -> None:
    """The plain torch path of masks on CUDA, in several tiles of queries, with a row that sees nothing."""
    monkeypatch.setattr(kernels, "TILE_ELEMENTS", 3000)
    q, k, v, grad = inputs(dtype, keys=24 if mask == "causal" else 40)
    allowed = torch.rand(2, 1, 24, 40) < 0.3 if mask == "allowed" else None
    if allowed is not None:
        allowed[:, :, 3] = False
    results = []
    for kernel in ("cpu", "explicit"):
        out, lse = kernels.block_forward(q, k, v, allowed, mask == "causal", kernel)
        whole = lse.logaddexp(torch.zeros_like(lse))  # as if merged with more keys
        backward = kernels.block_backward(grad, q, k, v, out, whole, allowed, mask == "causal", kernel)
        results.append((out, lse.exp(), *backward))
        if allowed is not None:
            assert (lse[:, :, 3] == -torch.inf).all()
            assert (out[:, :, 3] == 0).all()
    for cpu, explicit in zip(*results, strict=True):
        assert explicit.shape == cpu.shape
        assert (explicit.double() - cpu.double()).abs().max() <= bound * cpu.double().abs().max()


def test_a_row_whose_first_keys_are_all_hidden() -> None:
    """The CPU op walks keys in pieces of 512; the first piece may be hidden as a whole."""
    q, k, v, grad = inputs(torch.float64, queries=8, keys=1100)
    allowed = (torch.arange(1100) >= 700).expand(2, 1, 8, 1100)
    out, lse = kernels.block_forward(q, k, v, allowed, False)
    want, want_lse = kernels.block_forward(q, k[:, :, 700:], v[:, :, 700:], None, False)
    assert torch.allclose(out, want, atol=1e-12)
    assert torch.allclose(lse, want_lse, atol=1e-12)
    _, dk, _ = kernels.block_backward(grad, q, k, v, out, lse, allowed, False)
    assert (dk[:, :, :700] == 0).all()


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.bfloat16, "flash"), (torch.float32, "efficient")])
def test_cuda_calls_fit_their_schemas(dtype: torch.dtype, kernel: kernels.Kernel) -> None:
    """No GPU is needed for that: on the meta device torch checks arguments and gives shapes."""
    q, k, v, grad = (x.to("meta") for x in inputs(dtype, keys=24))
    assert kernels.choose_kernel(torch.device("cuda"), dtype, masked=False, head_dim=16) == kernel
    out, lse = kernels.block_forward(q, k, v, None, True, kernel)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, q.shape[:-1], torch.float32)
    gradients = kernels.block_backward(grad, q, k, v, out, lse, None, True, kernel)
    assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]


@pytest.mark.parametrize(
    ("dtype", "masked", "width"),
    [(torch.bfloat16, True, 64), (torch.float64, False, 64), (torch.bfloat16, False, 20), (torch.float32, False, 6)],
)
def test_what_no_cuda_kernel_takes_is_explicit(dtype: torch.dtype, masked: bool, width: int) -> None:
    assert kernels.choose_kernel(torch.device("cuda"), dtype, masked, width) == "explicit"


def test_live_bytes_count_storages_once() -> None:
    x = torch.zeros(100)
    with LiveBytes([x]) as tracker:
        y = x + 1
        views = [y[:50], y[50:]]
        assert tracker.live == 800
        del y, views
        assert tracker.live == 400
        z = x.expand(3, 100).contiguous()
    assert (tracker.live, tracker.peak) == (1600, 1600)
    assert storage_bytes([z[0], z[1], x]) == 1600
