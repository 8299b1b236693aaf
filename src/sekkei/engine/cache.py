"""Keys and values of the tokens so far, one row per running sample.

    k, v   per layer [rows, K, capacity, H]      lengths [rows]

Running samples stand in rows 0 … n-1 without gaps: when one finishes, the last takes its place. Capacity
grows in steps. Two objects let queries meet keys: `PrefillAttend` for whole prompts, `DecodeAttend` for one
new token per row. It does not page: a row's memory is reserved up to the longest running row.

Shapes: `R` rows, `K` key/value heads, `T` tokens, `H` head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sekkei.model.attention import DenseAttend, explicit_attention
from sekkei.model.config import ModelConfig

GROWTH = 64  # tokens


class KVCache:
    """Preallocated keys and values for up to `rows` samples."""

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (rows, config.num_kv_heads, 0, config.head_size)
        self.k = [torch.empty(self.shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.v = [torch.empty_like(k) for k in self.k]

    @property
    def capacity(self) -> int:
        return self.k[0].shape[2]

    def reserve(self, tokens: int) -> None:
        """Make room for rows of `tokens` tokens."""
        if tokens <= self.capacity:
            return
        more = -(-tokens // GROWTH) * GROWTH - self.capacity
        for store in (self.k, self.v):
            for layer, old in enumerate(store):
                room = old.new_zeros(old.shape[0], old.shape[1], more, old.shape[3])
                store[layer] = torch.cat((old, room), dim=2)

    def fill(self, layer: int, rows: Tensor, source: Tensor, k: Tensor, v: Tensor) -> None:
        """Copy prompts' keys and values [P, K, T, H] into `rows` [n]; `source` [n] says which prompt."""
        tokens = k.shape[2]
        self.k[layer][rows, :, :tokens] = k[source].to(self.k[layer].dtype)
        self.v[layer][rows, :, :tokens] = v[source].to(self.v[layer].dtype)

    def move(self, targets: Tensor, sources: Tensor) -> None:
        """Copy rows onto others."""
        for store in (*self.k, *self.v):
            store[targets] = store[sources]


class PrefillAttend:
    """Dense causal attention over right-padded prompts that remembers their keys and values."""

    def __init__(self) -> None:
        self.dense = DenseAttend(None)
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        self.kept.append((k, v))
        return self.dense(q, k, v, layer)


class DecodeAttend:
    """One new token per row: writes its key and value, then attends to the row so far.

    Args:
        lengths: [n] tokens that each of the first n rows holds before this one.
    """

    def __init__(self, cache: KVCache, lengths: Tensor) -> None:
        self.cache, self.lengths = cache, lengths
        self.rows = torch.arange(len(lengths), device=lengths.device)
        self.used = int(lengths.max()) + 1
        seen = torch.arange(self.used, device=lengths.device) <= lengths[:, None]
        zero = torch.zeros((), dtype=cache.k[0].dtype, device=lengths.device)
        self.bias = zero.where(seen, -torch.inf)[:, None, None]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        n = len(self.lengths)
        keys, values = self.cache.k[layer], self.cache.v[layer]
        keys[self.rows, :, self.lengths] = k[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.lengths] = v[:, :, 0].to(values.dtype)
        out = explicit_attention(q.to(keys.dtype), keys[:n, :, : self.used], values[:n, :, : self.used], self.bias)
        return out.to(q.dtype)
