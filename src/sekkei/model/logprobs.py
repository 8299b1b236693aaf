"""From hidden states to the log-probabilities of the labels, without keeping a float32 copy of the logits.

    z = h Wᵀ / temperature        lse = log Σ exp z
    logprob = z[label] - lse      entropy = lse - Σ softmax(z) z

Both are differentiable: with p = softmax(z), d logprob / dz = onehot - p and
d entropy / dz = -p (log p + entropy). Only scored tokens (label != -100) are computed. Small problems
keep the logits in the compute dtype for the backward pass, large ones recompute them chunk by chunk
(the choice is by size alone). It does not handle a vocabulary that is sharded over ranks.

Shapes: `M` scored tokens, `D` model width, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sekkei.model.choices import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, KEEP_ELEMENTS

IGNORED = -100


def label_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float = 1.0, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `labels` and entropy of their distributions, under softmax(h Wᵀ / temperature).

    Args:
        hidden: [..., D]; weight: [V, D]; labels: [...] int64, -100 = not scored.
        with_entropy: False saves a pass over the logits; the entropy is then 0 everywhere.
    Returns:
        logprobs and entropy, each [...] float32 (float64 for float64 input), 0 where not scored.
    """
    flat = labels.reshape(-1)
    index = scored_indices(flat)
    scored = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
    compute = torch.get_autocast_dtype(hidden.device.type) if _autocasting(hidden) else hidden.dtype
    logprobs, entropy = _LabelLogprobs.apply(
        scored, weight, flat.index_select(0, index), temperature, compute, with_entropy
    )
    empty = logprobs.new_zeros(flat.shape)
    return (
        empty.index_copy(0, index, logprobs).view(labels.shape),
        empty.index_copy(0, index, entropy).view(labels.shape),
    )


def scored_indices(labels: Tensor) -> Tensor:
    """Indices of the labels [n] that are scored; all of them in a dry run, whose tensors have no values."""
    if isinstance(labels, FakeTensor):
        return torch.arange(labels.shape[0], device=labels.device)
    return (labels != IGNORED).nonzero().squeeze(-1)


def _autocasting(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


class _LabelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        temperature: float,
        compute: torch.dtype,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(compute), weight.to(compute)
            chunk = CHUNK_ELEMENTS if hidden.device.type == "cpu" else GPU_CHUNK_ELEMENTS
            rows = max(1, chunk // weight.shape[0])
            keep = hidden.shape[0] * weight.shape[0] <= KEEP_ELEMENTS
            logprobs, entropies, logsums, kept = [], [], [], []
            for part, label in zip(h.split(rows), labels.split(rows), strict=True):
                raw = part @ w.T
                z = wide(raw, temperature)
                highest = z.amax(-1, keepdim=True)
                exps = (z - highest).exp_()
                total = exps.sum(-1)
                lse = total.log() + highest.squeeze(-1)
                logprobs.append(z.gather(-1, label[:, None]).squeeze(-1) - lse)
                entropies.append(lse - exps.mul_(z).sum(-1) / total if with_entropy else torch.zeros_like(lse))
                logsums.append(lse)
                if keep:
                    kept.append(raw)
        ctx.save_for_backward(hidden, weight, labels, torch.cat(logsums), torch.cat(entropies), *kept)
        ctx.temperature, ctx.compute, ctx.rows, ctx.with_entropy = temperature, compute, rows, with_entropy
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_logprob, grad_entropy = grads
        hidden, weight, labels, logsums, entropies, *kept = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(ctx.compute), weight.to(ctx.compute)
            grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
            with_entropy = ctx.with_entropy and bool(grad_entropy.any())
            for i, start in enumerate(range(0, len(h), ctx.rows)):
                part = slice(start, start + ctx.rows)
                logp = wide(kept[i] if kept else h[part] @ w.T, ctx.temperature) - logsums[part, None]
                scale = grad_logprob[part, None] / ctx.temperature
                if with_entropy:
                    p = logp.exp()
                    pull = logp.add_(entropies[part, None]).mul_(grad_entropy[part, None] / ctx.temperature)
                    g = p.mul_(pull.add_(scale).neg_())
                else:
                    g = logp.exp_().mul_(-scale)
                g.scatter_add_(1, labels[part, None], scale)
                g = g.to(ctx.compute)
                grad_hidden[part] = (g @ w).to(hidden.dtype)
                grad_weight += (g.T @ h[part]).to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def wide(raw: Tensor, temperature: float) -> Tensor:
    """The logits in float32 at least, divided by the temperature; not to be written to."""
    z = raw.to(raw.dtype if raw.dtype == torch.float64 else torch.float32)
    return z / temperature if temperature != 1.0 else z
