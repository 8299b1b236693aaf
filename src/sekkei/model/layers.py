"""The decoder's parts: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Sources: RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021; halves, not pairs, are
rotated, as in Hugging Face checkpoints), grouped-query attention (Ainslie et al. 2023), QK-norm
(Qwen3), SwiGLU (Shazeer 2020). How queries meet keys is injected (`attend`): dense for training,
cached for generation. Head counts are read from tensor shapes, never from the config, so that a
tensor-parallel rank that holds some heads runs the same code.

Shapes: `B` batch, `T` tokens, `D` model width, `N` query heads, `K` key/value heads, `H` head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sekkei.model.config import ModelConfig, RopeScaling

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q [B, N, T, H], k [B, K, T, H], v [B, K, T, H], layer index) -> [B, N, T, H]."""

Rope = tuple[Tensor, Tensor]
"""cos and sin, each [B, 1, T, H]."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matmuls of x are computed in: autocast's dtype where it is on, else its own."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Angles per position, [H/2] float64."""
    freqs = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        return freqs / scaling.factor
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    wavelength = 2 * math.pi / freqs
    smooth = ((scaling.original_context / wavelength) - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * freqs / scaling.factor + smooth * freqs
    return torch.where(wavelength > low, freqs / scaling.factor, torch.where(wavelength < high, freqs, blended))


def rope_tables(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> Rope:
    """cos and sin of every position, computed in float32 (float64 for a float64 model) from explicit positions.

    Args:
        positions: [B, T] int64.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    freqs = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling).to(positions.device, wide)
    angles = positions[:, None, :, None].to(wide) * freqs
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate [B, heads, T, H] by its positions."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    """Scale to unit root mean square; statistics in float32 at least."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the meeting of q, k and v is `attend`'s."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_size
        self.head_dim = head
        self.q_proj = nn.Linear(width, config.num_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.num_kv_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.num_kv_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_heads * head, width, bias=False)
        self.q_norm = RMSNorm(head, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(head, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, rope: Rope, attend: Attend, layer: int) -> Tensor:
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, -1, self.head_dim)
        k = self.k_proj(x).view(b, t, -1, self.head_dim)
        v = self.v_proj(x).view(b, t, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = apply_rope(q.transpose(1, 2), rope)
        k = apply_rope(k.transpose(1, 2), rope)
        out = attend(q, k, v.transpose(1, 2), layer)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
