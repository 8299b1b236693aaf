"""What context parallelism costs each rank: work, memory and traffic of one attention over a row of fixed length.

    python benchmarks/ring.py [--tokens 4096] [--out benchmarks/results/ring.json]

On 2 and 4 gloo ranks, forward and backward, by counting, so the figures do not depend on the machine's load:

    work       score elements that a rank's kernel calls compute in the forward pass; imbalance = the most / the mean
    memory     peak live bytes of tensor storage on a rank, its own q, k, v and dout included
    traffic    bytes that a rank hands to its neighbour (ring), or to the collectives (gather: what a ring algorithm
               of theirs sends)

It does not time anything: two cores cannot show how much of a transfer hides behind computation with four ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from sekkei.parallel import kernels
from sekkei.parallel.gather import AllGatherAttend
from sekkei.parallel.live_bytes import LiveBytes
from sekkei.parallel.ring import Ring, RingAttend, Transfer
from sekkei.parallel.zigzag import Order, take

SIZES = (2, 4)
HEADS, KV_HEADS, WIDTH = 8, 2, 64
DOCUMENTS = (0.45, 0.3, 0.15, 0.1)  # shares of a packed row
CASES: dict[str, tuple[type, Order, bool]] = {  # name -> class, how rows are cut, packed
    "ring": (RingAttend, "zigzag", False),
    "ring, contiguous": (RingAttend, "contiguous", False),
    "ring, packed": (RingAttend, "zigzag", True),
    "gather": (AllGatherAttend, "zigzag", False),
}


class Counters:
    """Counts what passes through the block kernel and the ring of this process."""

    def __init__(self) -> None:
        self.scores = self.sent = 0
        self._forward, self._shift = kernels.block_forward, Ring.shift
        kernels.block_forward = self._count_forward  # type: ignore[assignment]

        def shift(ring: Ring, outgoing: Tensor, tag: int) -> Transfer:
            self.sent += outgoing.nbytes
            return self._shift(ring, outgoing, tag)

        Ring.shift = shift  # type: ignore[method-assign]

    def reset(self) -> None:
        self.scores = self.sent = 0

    def _count_forward(
        self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool
    ) -> tuple[Tensor, Tensor]:
        t, s = q.shape[2], k.shape[2]
        self.scores += t * (t + 1) // 2 if causal else t * s
        return self._forward(q, k, v, allowed, causal)


def packed_segments(tokens: int) -> Tensor:
    """[1, T]: documents of the shares above."""
    ends = [round(sum(DOCUMENTS[: i + 1]) * tokens) for i in range(len(DOCUMENTS))]
    return torch.bucketize(torch.arange(tokens), torch.tensor(ends[:-1]), right=True)[None]


def measure(rank: int, size: int, tokens: int, counters: Counters, case: str) -> dict[str, int]:
    """One attention, forward and backward, on this rank."""
    attend_class, order, packed = CASES[case]
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, tokens, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    mine = [take(torch.randn(shape, generator=generator), rank, size, 2, order) for shape in shapes]
    leaves, grad = [x.requires_grad_() for x in mine[:3]], mine[3]
    segments = take(packed_segments(tokens), rank, size, 1, order) if packed else None
    counters.reset()
    with LiveBytes(mine) as tracker:
        out = attend_class(segments, None, order=order)(*leaves, 0)
        torch.autograd.grad(out, leaves, grad)
    sent = counters.sent if attend_class is RingAttend else 3 * (size - 1) * (mine[1].nbytes + mine[2].nbytes)
    return {"scores": counters.scores, "peak_bytes": tracker.peak, "sent_bytes": sent}


def worker(rank: int, size: int, tokens: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store{size}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    counters = Counters()
    found = {case: measure(rank, size, tokens, counters, case) for case in CASES}
    Path(folder, f"{size}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def summary(ranks: list[dict[str, dict[str, int]]]) -> dict[str, Any]:
    """By case: figures of each rank, and the imbalance of work."""
    found: dict[str, Any] = {}
    for case in CASES:
        columns = {name: [rank[case][name] for rank in ranks] for name in ranks[0][case]}
        mean = sum(columns["scores"]) / len(ranks)
        found[case] = {"imbalance": round(max(columns["scores"]) / mean, 3), **columns}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="length of the whole row")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ring.json")
    args = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            torch.multiprocessing.spawn(worker, (size, args.tokens, folder), nprocs=size)
            parts = [Path(folder, f"{size}-{rank}.json") for rank in range(size)]
            sizes[size] = summary([json.loads(part.read_text()) for part in parts])
    two, four = (sizes[size] for size in SIZES)
    ratios = {case: round(max(four[case]["peak_bytes"]) / max(two[case]["peak_bytes"]), 3) for case in CASES}
    setting = {"tokens": args.tokens, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": WIDTH, "dtype": "float32"}
    machine = {"torch": torch.__version__, "device": "cpu", "backend": "gloo"}
    result = {"setting": setting, "machine": machine, "ranks": sizes, "peak_bytes_4_over_2": ratios}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for size, cases in sizes.items():
        for case, figures in cases.items():
            peak, sent = (max(figures[name]) / 2**20 for name in ("peak_bytes", "sent_bytes"))
            print(
                f"cp{size}  {case:17}  imbalance {figures['imbalance']:.3f}  peak {peak:6.1f} MiB  sent {sent:5.1f} MiB"
            )
    print("peak(4) / peak(2):", ", ".join(f"{case} {ratio}" for case, ratio in ratios.items()))


if __name__ == "__main__":
    main()
