"""Attention of one block of queries over one block of keys, with the log-sum-exp that lets blocks be merged.

    S = q kᵀ / √H        lse = log Σ exp S        out = exp(S - lse) v

    forward    (q, k, v) -> out, lse of this block alone
    backward   (dout, q, k, v, out, lse) -> dq, dk, dv, where out and lse are those of the *whole* row: then
               P = exp(S - lse) are the true probabilities, and the blocks' gradients just add up
               (Dao et al. 2022, FlashAttention, appendix B.2)

This is the one file with torch's private names. Which kernel runs is a static table of device, dtype and mask:

    cpu        flash op: any float dtype, grouped heads, an additive mask
    flash      CUDA, half precision, no mask                     (not run on a GPU yet)
    efficient  CUDA, float32, no mask; heads are repeated        (not run on a GPU yet)
    explicit   plain torch, everything else: masks and float64 on CUDA, odd head widths, other devices

A query that sees no key gets lse = -inf and out = 0 (torch's CPU op returns lse = 0, which a merge would take for a
real weight). Not handled: dropout, soft caps, variable-length CUDA kernels (packed rows on CUDA take `explicit`).

Shapes: `B` batch, `N` query heads, `K` key/value heads, `T` queries, `S` keys, `H` head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Kernel = Literal["cpu", "flash", "efficient", "explicit"]
Gradients = tuple[Tensor, Tensor, Tensor]

TILE_ELEMENTS = 1 << 24  # scores that `explicit` holds at a time: 64 MiB in float32
LSE_ALIGNMENT = 32  # the efficient kernel's lse rows are padded to this (torch's mem_eff_attention/kernel_forward.h)
FLASH_MAX_WIDTH, FLASH_WIDTH_STEP, EFFICIENT_WIDTH_STEP = 256, 8, 4  # what the CUDA kernels accept as H

_aten = torch.ops.aten


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of lse, merges and sums of gradients: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def choose_kernel(device: torch.device, dtype: torch.dtype, masked: bool, head_dim: int) -> Kernel:
    """The static table above."""
    if device.type == "cpu":
        return "cpu"
    if device.type == "cuda" and not masked:
        half = dtype in (torch.bfloat16, torch.float16)
        if half and head_dim % FLASH_WIDTH_STEP == 0 and head_dim <= FLASH_MAX_WIDTH:
            return "flash"
        if dtype == torch.float32 and head_dim % EFFICIENT_WIDTH_STEP == 0:
            return "efficient"
    return "explicit"


def block_forward(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool, kernel: Kernel | None = None
) -> tuple[Tensor, Tensor]:
    """Attend over one block.

    Args:
        q: [B, N, T, H]; k, v: [B, K, S, H], K a divisor of N.
        allowed: [B, 1, T, S] bool, which keys a query sees; None: all.
        causal: query t sees keys <= t only; needs T = S and `allowed` None.
        kernel: None: by the table.
    Returns:
        out [B, N, T, H] in q's dtype, and lse [B, N, T] in float32 at least, -inf where nothing is seen.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    kernel = kernel or choose_kernel(q.device, q.dtype, allowed is not None, q.shape[-1])
    if kernel == "cpu":
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=_bias(allowed, q.dtype), scale=scale
        )
        return out, mark_unseen(lse, allowed)
    if kernel == "flash":
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return out, lse
    if kernel == "efficient":
        k, v = (_repeat(x, q.shape[1]) for x in (k, v))
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
        return out, lse[..., : q.shape[2]]
    return _explicit_forward(q, k, v, allowed, causal, scale)


def block_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    allowed: Tensor | None,
    causal: bool,
    kernel: Kernel | None = None,
) -> Gradients:
    """This block's share of dq [B, N, T, H], dk and dv [B, K, S, H].

    Args:
        grad, out: [B, N, T, H] and lse: [B, N, T], of the whole row: merged over all blocks.
        q, k, v, allowed, causal, kernel: as in `block_forward`.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    kernel = kernel or choose_kernel(q.device, q.dtype, allowed is not None, q.shape[-1])
    lse = lse.contiguous()
    if kernel == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, attn_mask=_bias(allowed, q.dtype), scale=scale
        )
    if kernel == "flash":
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # random state, unread without dropout
        tokens, keys = q.shape[2], k.shape[2]
        return _aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, tokens, keys, 0.0, causal, state, state[0], scale=scale
        )
    if kernel == "efficient":
        heads = k.shape[1]
        k, v = (_repeat(x, q.shape[1]) for x in (k, v))
        lse = pad(lse, (0, -lse.shape[-1] % LSE_ALIGNMENT), value=torch.inf)
        state = torch.zeros((), dtype=torch.int64, device=q.device)
        wanted = [True, True, True, False]
        dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, None, out, lse, state, state, 0.0, wanted, causal, scale=scale
        )
        return dq, _fold(dk, heads), _fold(dv, heads)
    return _explicit_backward(grad, q, k, v, out, lse, allowed, causal, scale)


def mark_unseen(lse: Tensor, allowed: Tensor | None) -> Tensor:
    """lse [B, N, T] with -inf at queries that see no key."""
    return lse if allowed is None else lse.masked_fill(~allowed.any(-1), -torch.inf)


def _bias(allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """0 where a key is seen, -inf elsewhere."""
    if allowed is None:
        return None
    return torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, -torch.inf)


def _repeat(x: Tensor, heads: int) -> Tensor:
    """[B, K, S, H] -> [B, heads, S, H], each head followed by its copies."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _fold(x: Tensor, heads: int) -> Tensor:
    """The backward of `_repeat`: sum the copies."""
    return x.unflatten(1, (heads, -1)).sum(2)


def _explicit_forward(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The two formulas of the header, a tile of queries at a time, in float32 at least."""
    keys, values = (_repeat(x.to(wide_dtype(q.dtype)), q.shape[1]) for x in (k, v))
    outs, sums = [], []
    for tile in _tiles(q, k):
        scores = _scores(q[:, :, tile], keys, allowed, causal, tile, scale)
        lse = scores.logsumexp(-1)
        finite = lse.masked_fill(lse == -torch.inf, 0.0)  # a query that sees nothing: exp(-inf - 0) = 0
        outs.append(((scores - finite[..., None]).exp_() @ values).to(q.dtype))
        sums.append(lse)
    return torch.cat(outs, 2), torch.cat(sums, 2)


def _explicit_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    allowed: Tensor | None,
    causal: bool,
    scale: float,
) -> Gradients:
    """dV = Pᵀ dO; dS = P ∘ (dO Vᵀ - rowsum(dO ∘ O)); dQ = dS K / √H; dK = dSᵀ Q / √H."""
    wide = wide_dtype(q.dtype)
    keys, values = (_repeat(x.to(wide), q.shape[1]) for x in (k, v))
    dq, dk, dv = torch.empty_like(q, dtype=wide), torch.zeros_like(keys), torch.zeros_like(values)
    for tile in _tiles(q, k):
        g, o, part = (x[:, :, tile].to(wide) for x in (grad, out, q))
        probs = (_scores(part, keys, allowed, causal, tile, scale) - lse[:, :, tile, None]).exp_()
        dv += probs.transpose(-1, -2) @ g
        pull = g @ values.transpose(-1, -2) - (g * o).sum(-1, keepdim=True)
        dscores = probs.mul_(pull).mul_(scale)
        dq[:, :, tile] = dscores @ keys
        dk += dscores.transpose(-1, -2) @ part
    heads = k.shape[1]
    return dq.to(q.dtype), _fold(dk, heads).to(k.dtype), _fold(dv, heads).to(v.dtype)


def _tiles(q: Tensor, k: Tensor) -> Iterator[slice]:
    b, n, t, _ = q.shape
    rows = max(1, TILE_ELEMENTS // (b * n * k.shape[2]))
    return (slice(start, min(start + rows, t)) for start in range(0, t, rows))


def _scores(q: Tensor, keys: Tensor, allowed: Tensor | None, causal: bool, tile: slice, scale: float) -> Tensor:
    """[B, N, tile, S]: q kᵀ / √H, -inf at keys that are not seen."""
    scores = (q.to(keys.dtype) @ keys.transpose(-1, -2)).mul_(scale)
    if causal:
        seen = torch.arange(tile.start, tile.stop, device=q.device)[:, None]
        allowed = torch.arange(keys.shape[2], device=q.device) <= seen
    elif allowed is not None:
        allowed = allowed[:, :, tile]
    return scores if allowed is None else scores.masked_fill_(~allowed, -torch.inf)
