"""One of four gloo ranks that compute the cases of test_ring.py; rank by rank the figures go into a JSON file.

    python ring_worker.py RANK STORE OUT

Every case runs for groups of one rank, for two pairs of ranks at once (cp2, as a mesh of dp2 × cp2 has them), and for
all four (cp4).

Shapes: `B` batch, `N` query heads, `K` key/value heads, `T` tokens, `H` head width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import run_recomputed
from sekkei.parallel import kernels
from sekkei.parallel.blockwise import Block, Visibility
from sekkei.parallel.gather import AllGatherAttend
from sekkei.parallel.live_bytes import LiveBytes
from sekkei.parallel.ring import RingAttend
from sekkei.parallel.zigzag import Order, gather_tokens, shard_batch, take

WORLD, TOKENS = 4, 64
PACKED = ((40, 13, 5), (7, 57))  # documents per row: across chunks, several per row, 6 tokens of padding
ATTENDS = {"ring": RingAttend, "gather": AllGatherAttend}
PARTS = ("out", "dq", "dk", "dv")


def packed_segments() -> Tensor:
    segments = torch.full((len(PACKED), TOKENS), -1)
    for row, lengths in zip(segments, PACKED, strict=True):
        row[: sum(lengths)] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return segments


def draw(dtype: torch.dtype, kv_heads: int, tokens: int = TOKENS, batch: int = 2) -> list[Tensor]:
    """q, k, v and the gradient of the output, whole and the same on every rank."""
    g = torch.Generator().manual_seed(5)
    heads = (4, kv_heads, kv_heads, 4)
    return [torch.randn(batch, n, tokens, 16, dtype=torch.float64, generator=g).to(dtype) for n in heads]


def reference(inputs: list[Tensor], segments: Tensor | None, causal: bool) -> list[Tensor]:
    """out, dq, dk, dv by the textbook formula in float64 and torch's own derivative."""
    q, k, v, grad = (x.double() for x in inputs)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    t = q.shape[2]
    allowed = torch.ones(t, t, dtype=torch.bool).tril() if causal else torch.ones(t, t, dtype=torch.bool)
    if segments is not None:
        allowed = allowed & (segments[:, None, :, None] == segments[:, None, None, :])
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    out = scores.softmax(-1) @ v
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def distances(got: list[Tensor], want: list[Tensor]) -> dict[str, float]:
    return {name: (a.double() - b.double()).abs().max().item() for name, a, b in zip(PARTS, got, want, strict=True)}


class Side:
    """This rank's seat in one context-parallel group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)

    def take(self, x: Tensor, dim: int = 1, order: Order = "zigzag") -> Tensor:
        return take(x, self.rank, self.size, dim, order)

    def run(
        self, kind: str, inputs: list[Tensor], segments: Tensor | None, causal: bool, order: Order = "zigzag"
    ) -> list[Tensor]:
        """out, dq, dk, dv of this rank's tokens."""
        mine = [self.take(x, 2, order) for x in inputs]
        leaves = [x.requires_grad_() for x in mine[:3]]
        cut = None if segments is None else self.take(segments, 1, order)
        out = ATTENDS[kind](cut, self.group, causal=causal, order=order)(*leaves, 0)
        return [out.detach(), *torch.autograd.grad(out, leaves, mine[3])]

    def compare(self, kind: str, inputs: list[Tensor], segments: Tensor | None, causal: bool) -> dict[str, float]:
        want = [self.take(x, 2) for x in reference(inputs, segments, causal)]
        return distances(self.run(kind, inputs, segments, causal), want)


# ---- equality with full attention


def equality(side: Side) -> dict[str, dict[str, float]]:
    found = {}
    for dtype in (torch.float64, torch.float32):
        for kind in ATTENDS:
            for causal in (True, False):
                for kv_heads in (4, 2):
                    for segments in (None, packed_segments()):
                        rows = "whole" if segments is None else "packed"
                        name = f"{dtype} {kind} causal={causal} kv={kv_heads} {rows}"
                        found[name] = side.compare(kind, draw(dtype, kv_heads), segments, causal)
        name = f"{dtype} ring causal=True kv=2 contiguous"
        want = [side.take(x, 2, "contiguous") for x in reference(draw(dtype, 2), packed_segments(), True)]
        found[name] = distances(side.run("ring", draw(dtype, 2), packed_segments(), True, "contiguous"), want)
    return found


def half_precision(side: Side) -> dict[str, dict[str, float]]:
    """Errors in bf16 against float64, of the ring and of one kernel over the whole row."""
    inputs = draw(torch.bfloat16, 2)
    want = reference(inputs, None, True)
    q, k, v, grad = inputs
    out, lse = kernels.block_forward(q, k, v, None, causal=True)
    kernel = [out, *kernels.block_backward(grad, q, k, v, out, lse, None, causal=True)]
    mine = [gather_tokens(x, side.group, 2) for x in side.run("ring", inputs, None, True)]
    return {"ring": distances(mine, want), "kernel": distances(kernel, want)}


# ---- a whole model


def model_batch() -> Batch:
    """Two packed rows with unevenly masked tokens, and extras of both kinds."""
    g = torch.Generator().manual_seed(7)

    def sample(length: int) -> Sample:
        ids = torch.randint(0, 61, (length + 1,), generator=g).tolist()
        weights = (torch.rand(length + 1, generator=g) < 0.6).float().tolist()
        return Sample(ids=ids, weights=weights, per_token={"advantages": ids}, per_segment={"rewards": float(ids[0])})

    return lay_out([[sample(n) for n in lengths] for lengths in PACKED], TOKENS)


def model_gradients(batch: Batch, attend: Any, units: Tensor, recompute: bool = False) -> tuple[Tensor, dict]:
    """Log-probabilities, and every parameter's gradient of (sum of -weight · logprob) / units."""
    config = ModelConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, vocab_size=61, qk_norm=True
    )
    model = build(config, seed=3, dtype=torch.float64)
    if recompute:
        model.run_block = run_recomputed
    out = model(batch.ids, batch.positions, attend, batch.labels, {"logprobs"})
    (-(out.logprobs * batch.mask).sum() / units).backward()
    return out.logprobs.detach(), {name: p.grad for name, p in model.named_parameters()}


def model_errors(
    side: Side,
    kind: str = "ring",
    change: Callable[[Batch], Batch] = lambda batch: batch,
    order: Order = "zigzag",
    recompute: bool = False,
) -> dict[str, float]:
    """Of log-probabilities (largest difference) and of gradients (relative, the worst parameter)."""
    batch = model_batch()
    units = batch.mask.sum()  # counted on whole rows
    logprobs, grads = model_gradients(batch, DenseAttend(batch.segments), units)
    part = change(shard_batch(batch, side.rank, side.size, order=order))
    mine, partial = model_gradients(part, ATTENDS[kind](part.segments, side.group), units, recompute)
    worst = 0.0
    for name, grad in partial.items():
        dist.all_reduce(grad, group=side.group)
        worst = max(worst, ((grad - grads[name]).norm() / grads[name].norm()).item())
    return {"logprobs": (mine - side.take(logprobs, 1, order)).abs().max().item(), "grads": worst}


# ---- planted faults


@contextmanager
def planted(owner: Any, name: str, value: Any) -> Iterator[None]:
    right = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, right)


def faults(side: Side) -> dict[str, dict[str, float]]:
    def local_positions(batch: Batch) -> Batch:
        count = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
        return Batch(**{**vars(batch), "positions": count})

    found = {
        "local positions": model_errors(side, change=local_positions),
        "contiguous data into zig-zag": model_errors(side, order="contiguous"),
    }
    inputs, segments = draw(torch.float64, 2), packed_segments()
    with planted(kernels, "mark_unseen", lambda lse, allowed: lse):
        found["unseen rows merged with lse 0"] = side.compare("ring", inputs, segments, True)

    right = Visibility.blocks

    def but_the_last(self: Visibility, source: int, tokens: int) -> list[Block]:
        return [] if source == (self.rank + 1) % self.size else right(self, source, tokens)

    with planted(Visibility, "blocks", but_the_last):
        found["last block skipped"] = side.compare("ring", inputs, None, True)
    return found


# ---- work and memory


def work(side: Side) -> dict[str, int]:
    """Score elements that this rank's kernel calls compute in one forward pass."""
    found = {}
    right = kernels.block_forward
    count = 0

    def counting(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
        nonlocal count
        t, s = q.shape[2], k.shape[2]
        count += t * (t + 1) // 2 if causal else t * s
        return right(q, k, v, allowed, causal)

    with planted(kernels, "block_forward", counting):
        for name, order, segments in (
            ("zigzag", "zigzag", None),
            ("contiguous", "contiguous", None),
            ("packed", "zigzag", packed_segments()),
        ):
            count = 0
            side.run("ring", draw(torch.float32, 2), segments, True, order)
            found[name] = count
    return found


def memory(side: Side, tokens: int = 1024) -> dict[str, int]:
    """Peak live bytes of one attention, forward and backward, of a row of fixed global length."""
    found = {}
    packed = torch.arange(4).repeat_interleave(tokens // 4)[None]
    for kind, segments in (("ring", None), ("ring packed", packed), ("gather", None)):
        inputs = [side.take(x, 2) for x in draw(torch.float32, 2, tokens, batch=1)]
        leaves = [x.requires_grad_() for x in inputs[:3]]
        attend = ATTENDS[kind.split()[0]](None if segments is None else side.take(segments), side.group)
        with LiveBytes(inputs) as tracker:
            out = attend(*leaves, 0)
            torch.autograd.grad(out, leaves, inputs[3])
        found[kind] = tracker.peak
    return found


def main(rank: int, store: str, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, WORLD), rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    alone = [dist.new_group([r]) for r in range(WORLD)]
    found = {}
    for name, group in (("cp1", alone[rank]), ("cp2", pairs[rank // 2]), ("cp4", dist.group.WORLD)):
        side = Side(group)
        found[name] = {"equality": equality(side), "work": work(side), "memory": memory(side)}
        if side.size > 1:
            found[name]["half"] = half_precision(side)
            found[name]["faults"] = faults(side)
        found[name]["model"] = {
            "ring": model_errors(side),
            "ring recomputed": model_errors(side, recompute=True),
            "gather": model_errors(side, "gather"),
        }
    out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
