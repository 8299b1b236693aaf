"""Expert parallelism, applied from outside: each rank of a group holds some experts of every layer, and tokens travel.

    rank 0   rows for e0 e1 | e2 e3      ── all-to-all ──>      rows for e0 e1  from rank 0 | from rank 1
    rank 1   rows for e0 e1 | e2 e3                             rows for e2 e3  from rank 0 | from rank 1
                                                                sorted by expert, computed, sorted back
             results, where they came from   <── all-to-all ──

The group lies inside the data axes: its ranks have other tokens and hold the same dense weights. Counts go first, so
that every rank knows how much it will get; nothing is padded or dropped. The backward pass of an exchange is the
exchange back, so the gradient of an expert is already summed over the group (GShard, Lepikhin et al. 2020, section 3.2;
DeepSpeed-MoE, Rajbhandari et al. 2022): what is left to sum is over the ranks that hold the same experts.

It does not handle tensor parallelism, overlap of exchange and computation, or limits on how many nodes a token visits.

Shapes: `E` experts, `P` ranks, `R` rows sorted by expert, `D` model width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sekkei.model.moe import Experts, MoE, inverse, sizes
from sekkei.model.transformer import Transformer
from sekkei.parallel.collectives import Group


def apply_expert_parallel(model: Transformer, group: Group) -> None:
    """Keep this rank's experts of a whole model, in place."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for layer in model.layers.values():
        if isinstance(layer.mlp, MoE):
            for name, parameter in list(layer.mlp.experts.named_parameters()):
                part = parameter.detach().chunk(size)[rank].clone()
                setattr(layer.mlp.experts, name, nn.Parameter(part, parameter.requires_grad))
            layer.mlp.spread = Exchange(group)


class Exchange:
    """A `Spread`: rows go to the ranks that hold their experts, and results come back."""

    def __init__(self, group: Group) -> None:
        self.group, self.size = group, dist.get_world_size(group)

    def __call__(self, experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        coming = torch.empty_like(counts)  # [P · E / P]: what each rank has for each expert here
        dist.all_to_all_single(coming, counts, group=self.group)
        table = coming.view(self.size, -1)
        sent = sizes(counts.view(self.size, -1).sum(1), len(rows))
        got = sizes(table.sum(1), len(rows))
        arrived = exchange(rows, sent, got, self.group)
        here = torch.arange(table.shape[1], device=rows.device).repeat(self.size)
        which = here.repeat_interleave(coming, output_size=sum(got))
        order = which.argsort(stable=True)
        results = experts(arrived.index_select(0, order), sizes(table.sum(0), sum(got)))
        return exchange(results.index_select(0, inverse(order)), got, sent, self.group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], got: list[int], group: Group) -> Tensor:
        ctx.sent, ctx.got, ctx.group = sent, got, group
        return _exchanged(x, sent, got, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(grad, ctx.got, ctx.sent, ctx.group), None, None, None


def exchange(x: Tensor, sent: list[int], got: list[int], group: Group) -> Tensor:
    """The first `sent[0]` rows go to rank 0, the next to rank 1 …; `got[0]` from rank 0 come first; differentiable."""
    return _Exchange.apply(x, sent, got, group)


def _exchanged(x: Tensor, sent: list[int], got: list[int], group: Group) -> Tensor:
    out = x.new_empty(sum(got), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), got, sent, group=group)
    return out
