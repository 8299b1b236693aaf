"""The vocabulary, cut over tensor-parallel ranks: embedding, and log-probabilities without ever gathering logits.

    rank 0 holds rows 0 … V/2 of embedding and head, rank 1 the rest

    embedding   own rows, zeros for foreign ids, summed over ranks
    log p       lse = log Σ_ranks Σ exp z;  the label's z comes from the one rank that has it

Between ranks go three numbers per token forward (maximum, sum, label's logit; a fourth for the entropy), and the
hidden state's gradient backward (Shoeybi et al. 2019, section 3). Same formulas as model/logprobs.py.

Shapes: `M` scored tokens, `D` model width, `v` rows of the vocabulary on this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sekkei.model.logprobs import scored_indices
from sekkei.parallel.collectives import Group, all_reduced, collect, scatter


class VocabEmbedding(nn.Module):
    """Looks up its own rows; the sum over ranks is the embedding.

    Args:
        weight: [v, D], rows first … first + v of the whole. sequence_parallel: gives each rank its tokens only.
    """

    def __init__(self, weight: nn.Parameter, first: int, group: Group, sequence_parallel: bool) -> None:
        super().__init__()
        self.weight, self.first, self.group, self.sequence_parallel = weight, first, group, sequence_parallel

    def forward(self, ids: Tensor) -> Tensor:
        local = ids - self.first
        mine = (local >= 0) & (local < self.weight.shape[0])
        rows = nn.functional.embedding(local * mine, self.weight) * mine[..., None]
        return scatter(rows, self.group) if self.sequence_parallel else collect(rows, self.group)


class VocabLogprobs:
    """Takes the place of `model.logprobs.label_logprobs` where `weight` is this rank's [v, D]."""

    def __init__(self, first: int, group: Group) -> None:
        self.first, self.group = first, group

    def __call__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float = 1.0, with_entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """As label_logprobs; `hidden` and the results are the same on all ranks of the group."""
        flat = labels.reshape(-1)
        index = scored_indices(flat)
        scored = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
        local = flat.index_select(0, index) - self.first
        compute = hidden.dtype
        if hidden.dtype != torch.float64 and torch.is_autocast_enabled(hidden.device.type):
            compute = torch.get_autocast_dtype(hidden.device.type)
        logprobs, entropy = _VocabLogprobs.apply(scored, weight, local, temperature, compute, with_entropy, self.group)
        empty = logprobs.new_zeros(flat.shape)
        return (
            empty.index_copy(0, index, logprobs).view(labels.shape),
            empty.index_copy(0, index, entropy).view(labels.shape),
        )


class _VocabLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        local: Tensor,
        temperature: float,
        compute: torch.dtype,
        with_entropy: bool,
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            raw = hidden.to(compute) @ weight.to(compute).T
            z = _wide(raw) / temperature
            largest = z.amax(-1)
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
            exp = (z - largest[:, None]).exp()
            mine = (local >= 0) & (local < weight.shape[0])
            own = z.gather(-1, (local * mine)[:, None]).squeeze(-1) * mine
            sums = torch.stack([exp.sum(-1), own, (exp * z).sum(-1)] if with_entropy else [exp.sum(-1), own])
            dist.all_reduce(sums, group=group)
            lse = sums[0].log() + largest
            entropy = lse - sums[2] / sums[0] if with_entropy else torch.zeros_like(lse)
        ctx.save_for_backward(hidden, weight, local, raw, lse, entropy)
        ctx.temperature, ctx.compute, ctx.with_entropy, ctx.group = temperature, compute, with_entropy, group
        return sums[1] - lse, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprob, grad_entropy = grads
        hidden, weight, local, raw, lse, entropy = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            logp = _wide(raw) / ctx.temperature - lse[:, None]
            p = logp.exp()
            g = -p * grad_logprob[:, None]
            if ctx.with_entropy:
                g = g - p * (logp + entropy[:, None]) * grad_entropy[:, None]
            mine = (local >= 0) & (local < weight.shape[0])
            g = g.scatter_add(1, (local * mine)[:, None], (grad_logprob * mine)[:, None])
            g = (g / ctx.temperature).to(ctx.compute)
            grad_hidden = (g @ weight.to(ctx.compute)).to(hidden.dtype)
            grad_weight = (g.T @ hidden.to(ctx.compute)).to(weight.dtype)
        return all_reduced(grad_hidden, ctx.group), grad_weight, None, None, None, None, None


def _wide(raw: Tensor) -> Tensor:
    return raw.to(raw.dtype if raw.dtype == torch.float64 else torch.float32)
