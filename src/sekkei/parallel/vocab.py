"""The vocabulary, cut over tensor-parallel ranks: embedding, and log-probabilities without ever gathering logits.

    rank 0 holds rows 0 … V/2 of embedding and head, rank 1 the rest

    embedding   own rows, zeros for foreign ids, summed over ranks
    log p       lse = log Σ_ranks e^(m_rank - m) Σ e^(z - m_rank);  the label's z comes from the one rank that has it

Between ranks go three numbers per token forward (maximum, sum, label's logit; a fourth for the entropy), and the
hidden state's gradient backward (Shoeybi et al. 2019, section 3). Formulas and sizes are those of model/logprobs.py:
logits are made in chunks of tokens, and where [M, v] of them are many they are made again in the backward pass, so that
they never exist whole.

Shapes: `M` scored tokens, `D` model width, `v` rows of the vocabulary on this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sekkei.model.choices import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, KEEP_ELEMENTS
from sekkei.model.logprobs import scored_indices, wide
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
        rows, keep = chunking(hidden, weight)
        kept, largest, sums = [], [], []
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(compute), weight.to(compute)
            mine, within = _mine(local, weight), _within(local, weight)
            for part, label in zip(h.split(rows), within.split(rows), strict=True):
                raw = part @ w.T
                z = wide(raw, temperature)
                top = z.amax(-1)
                below = z - top[:, None]
                exp = below.exp()
                own = z.gather(-1, label).squeeze(-1)
                spread = [(exp * below).sum(-1)] if with_entropy else []
                sums.append(torch.stack([exp.sum(-1), own, *spread]))
                largest.append(top)
                if keep:
                    kept.append(raw)
            top, found = torch.cat(largest), torch.cat(sums, dim=1)
            found[1] *= mine
            over_ranks = top.clone()
            dist.all_reduce(over_ranks, dist.ReduceOp.MAX, group)
            found[2:] += (top - over_ranks) * found[0]  # from this rank's largest logit to that of all
            found[0::2] *= (top - over_ranks).exp()  # but not the label's logit, in row 1
            dist.all_reduce(found, group=group)
            lse = found[0].log() + over_ranks
            entropy = found[0].log() - found[2] / found[0] if with_entropy else torch.zeros_like(lse)
        ctx.save_for_backward(hidden, weight, local, lse, entropy, *kept)
        ctx.temperature, ctx.compute, ctx.with_entropy, ctx.group = temperature, compute, with_entropy, group
        return found[1] - lse, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprob, grad_entropy = grads
        hidden, weight, local, lse, entropy, *kept = ctx.saved_tensors
        rows, _ = chunking(hidden, weight)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(ctx.compute), weight.to(ctx.compute)
            grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=lse.dtype)
            scale, within = grad_logprob[:, None] / ctx.temperature, _within(local, weight)
            own = scale * _mine(local, weight)[:, None]
            for i, start in enumerate(range(0, len(h), rows)):
                part = slice(start, start + rows)
                logp = wide(kept[i] if kept else h[part] @ w.T, ctx.temperature) - lse[part, None]
                p = logp.exp()
                g = -p * scale[part]
                if ctx.with_entropy:
                    g -= p * (logp + entropy[part, None]) * (grad_entropy[part, None] / ctx.temperature)
                g = g.scatter_add_(1, within[part], own[part]).to(ctx.compute)
                grad_hidden[part] = (g @ w).to(hidden.dtype)
                grad_weight += g.T @ h[part]
        return all_reduced(grad_hidden, ctx.group), grad_weight.to(weight.dtype), None, None, None, None, None


def chunking(hidden: Tensor, weight: Tensor) -> tuple[int, bool]:
    """Tokens per chunk of logits, and whether all logits are kept for the backward pass: by sizes alone."""
    elements = CHUNK_ELEMENTS if hidden.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    return max(1, elements // weight.shape[0]), hidden.shape[0] * weight.shape[0] <= KEEP_ELEMENTS


def _mine(local: Tensor, weight: Tensor) -> Tensor:
    """Which labels lie in this rank's rows."""
    return (local >= 0) & (local < weight.shape[0])


def _within(local: Tensor, weight: Tensor) -> Tensor:
    """Labels as indices, [n, 1]; those of other ranks are 0."""
    return (local * _mine(local, weight))[:, None]
