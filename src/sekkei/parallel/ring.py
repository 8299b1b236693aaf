"""Ring attention: keys and values travel from rank to rank while each rank computes with those it holds.

    step 0         step 1         step 2                 every step: send what is held to the next rank and receive
    r0: kv0        r0: kv2        r0: kv1                the previous rank's into a second buffer, *while* computing
    r1: kv1   ->   r1: kv0   ->   r1: kv2                with what is held; then swap. No rank ever holds more than
    r2: kv2        r2: kv1        r2: kv0                its own keys and two in transit, and no [T, T] scores.

The forward merges the steps by their log-sum-exps; the backward goes round once more with the row's final out and
log-sum-exp, so that every step yields its exact share. dq stays; dk and dv follow their keys, each rank adding its
share, and after the last step one more hop brings them home (in float32 at least: half precision loses in sums).
Grouped heads are sent as they are, before they are repeated for the queries.

Paper: Liu, Zaharia & Abbeel 2023, Ring Attention with Blockwise Transformers; blocks and balance: `blockwise.py`,
`zigzag.py`. The same code runs on CPU (gloo) and CUDA (NCCL; not run on a GPU yet). One rank alone sends nothing: gloo
cannot send to itself. Not handled: second derivatives, ranks with different numbers of tokens, attention dropout.

Shapes: `B` batch, `N` query heads, `K` key/value heads, `T` tokens of one rank, `H` head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sekkei.parallel import kernels
from sekkei.parallel.blockwise import (
    Finished,
    Merged,
    Visibility,
    attend_source,
    source_gradients,
    to_compute_dtype,
)
from sekkei.parallel.zigzag import Order

KEYS, GRADIENTS = 0, 1  # message tags: the two streams of the backward pass are never mistaken for each other


class RingAttend:
    """Attention over rows that are cut over a process group; one object serves all layers of one forward pass.

    It takes the place of `model.attention.DenseAttend`; all ranks of the group make it and call it together.

    Args:
        segments: [B, T] int64, this rank's tokens of `zigzag.shard_batch`, -1 = padding; None: one document per row.
        group: the context-parallel process group; None: all processes.
        causal: whether later tokens are hidden.
        order: how rows were cut.
    """

    def __init__(
        self,
        segments: Tensor | None,
        group: dist.ProcessGroup | None = None,
        causal: bool = True,
        order: Order = "zigzag",
    ) -> None:
        self.segments = segments
        self.visibility = Visibility(segments, group, causal, order)
        self.ring = Ring(group)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q [B, N, T, H], k and v [B, K, T, H], T even -> [B, N, T, H]."""
        q, k, v = to_compute_dtype(q, k, v)
        return _RingAttention.apply(q, k, v, self.visibility, self.ring)


class Ring:
    """This rank's two neighbours in a process group."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group if group is not None else dist.group.WORLD
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        ranks = dist.get_process_group_ranks(self.group)
        self.next, self.previous = (ranks[(self.rank + hop) % self.size] for hop in (1, -1))

    def shift(self, outgoing: Tensor, tag: int) -> Transfer:
        """Begin to send a tensor to the next rank and to receive one of its shape from the previous."""
        incoming = torch.empty_like(outgoing)
        operations = [
            dist.P2POp(dist.isend, outgoing, self.next, self.group, tag),
            dist.P2POp(dist.irecv, incoming, self.previous, self.group, tag),
        ]
        return Transfer(outgoing, incoming, dist.batch_isend_irecv(operations))


class Transfer:
    """A hop under way; it keeps both buffers alive until `wait` returns what came in."""

    def __init__(self, outgoing: Tensor, incoming: Tensor, works: list[dist.Work]) -> None:
        self.outgoing, self.incoming, self.works = outgoing, incoming, works

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.incoming


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, ring: Ring) -> Tensor:
        own = held = torch.stack((k, v))  # one message per hop
        merged = Merged(q)
        with torch.autocast(q.device.type, enabled=False):
            for step in range(ring.size):
                transfer = ring.shift(held, KEYS) if step + 1 < ring.size else None
                attend_source(merged, q, held, visibility, (ring.rank - step) % ring.size)
                if transfer is not None:
                    held = transfer.wait()
        out = merged.out.to(q.dtype)
        ctx.save_for_backward(q, own, out, merged.lse)
        ctx.visibility, ctx.ring = visibility, ring
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, held, out, lse = ctx.saved_tensors
        ring: Ring = ctx.ring
        whole = Finished(grad, q, out, lse)
        dq = torch.zeros(q.shape, dtype=kernels.wide_dtype(q.dtype), device=q.device)
        dkv: Transfer | Tensor | None = None
        for step in range(ring.size):
            transfer = ring.shift(held, KEYS) if step + 1 < ring.size else None
            share = source_gradients(whole, dq, held, ctx.visibility, (ring.rank - step) % ring.size)
            if isinstance(dkv, Transfer):
                share += dkv.wait()  # what the ranks before this one found for the same keys
            dkv = ring.shift(share, GRADIENTS) if ring.size > 1 else share
            if transfer is not None:
                held = transfer.wait()
        home = dkv.wait() if isinstance(dkv, Transfer) else dkv
        dk, dv = home.to(q.dtype)
        return dq.to(q.dtype), dk, dv, None, None
