"""Keys and values in blocks, and attention that reads them where they lie.

    keys, values   [layers, blocks, K, size, H]          table[row] = the row's blocks, in order

    row 0   5 0 7        block 5: 32 tokens  ─┐
    row 1   5 1          block 5 is shared:   └── read once for both rows

One new token per row (decode) meets every block once: the queries of all rows that hold a block are stacked and
multiplied with it in place, then each row joins its blocks' results by their maxima,

    o_b = e^(s_b - m_b) V_b,  l_b = Σ e^(s_b - m_b)      o = Σ_b e^(m_b - m) o_b / Σ_b e^(m_b - m) l_b

(the merge of FlashAttention, Dao et al. 2022; sharing of a prefix's reads as in Hydragen, Juravsky et al. 2024). On a
CPU in float32 torch's fused attention gives o_b / l_b and m_b + log l_b of a class of blocks in one call, which is
fewer small calls: a pass over short rows is made of little else.
No keys are gathered into a padded copy, which on a CPU costs 2-20x the attention itself, and a row reads its own
length, not the longest one's. Prompts (prefill) attend in right-padded groups of like length; one that begins at 0
uses its own keys, one that goes on after a shared or earlier part gathers that part.

It runs on CPU and CUDA by the same calls; it was measured on CPU only, and has no CUDA graph or fused kernel. It
does not handle quantised keys, or tensor-parallel heads.

Shapes: `R` rows, `N` query heads, `K` key/value heads, `G` = N / K, `H` head width, `T` tokens of the pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sekkei.engine.scheduler import Piece
from sekkei.model.attention import DenseAttend

SPARE = 1.5  # a run of blocks is read whole if it holds at most this many times the blocks that are wanted
LOG_HOLDERS = 3  # blocks held by 1, 2-8, 9-64, 65-512 … rows are each one matmul, padded to their class's most
ALIKE = 0.7  # prompts are padded to one length if the shorter has at least this share of the longer


class BlockStore:
    """The tensors, made at the first use with the head shape, dtype and device of what is stored.

    Memory is zeroed (an unwritten value times weight 0 must be 0) and, on CPUs, only taken from the machine once a
    block is written.
    """

    def __init__(self, layers: int, blocks: int, size: int) -> None:
        self.layers, self.blocks, self.size = layers, blocks, size
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [blocks, K, size, H] of one layer; `like`: [T, K, H]."""
        if self.keys is None or self.values is None:
            shape = (self.layers, self.blocks, like.shape[1], self.size, like.shape[2])
            self.keys, self.values = _zeros(shape, like), _zeros(shape, like)
        return self.keys[index], self.values[index]

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [T, K, H] of one layer where they belong, and return all keys and values.

        Args:
            rows: [T · K], index of each head's vector among the layer's.
        """
        keys, values = self.layer(layer, k)
        width = k.shape[-1]
        keys.view(-1, width).index_copy_(0, rows, k.reshape(-1, width))
        values.view(-1, width).index_copy_(0, rows, v.reshape(-1, width))
        return keys, values

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks (from, to) in all layers; every source is read before a target is written."""
        if not pairs or self.keys is None or self.values is None:
            return
        source, target = torch.tensor(pairs, device=self.keys.device).T
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]

    def clear(self) -> None:
        """Forget the contents, as after a pass that left numbers that are not finite."""
        self.keys = self.values = None


class PassAttend:
    """Attention of one forward pass over flat tokens: `decodes` first, then the tokens of each of `prefills`.

    Args:
        tables: [rows of the engine, most blocks] int64, by slot. heads: K.
        whole: every token's result is wanted, not only the last one's of each piece.
    Attributes:
        positions: [T]. wanted: [pieces] indices of the tokens that are scored; None: all.
    """

    def __init__(
        self,
        store: BlockStore,
        tables: np.ndarray,
        decodes: Sequence[Piece],
        prefills: Sequence[Piece],
        device: torch.device,
        *,
        heads: int,
        whole: bool,
    ) -> None:
        self.store, self.device, self.decodes = store, device, len(decodes)
        pieces = [*decodes, *prefills]
        slots = np.fromiter((piece.sequence.slot for piece in pieces), np.int64, len(pieces))
        starts = np.fromiter((piece.start for piece in pieces), np.int64, len(pieces))
        counts = np.fromiter((piece.count for piece in pieces), np.int64, len(pieces))
        ends = counts.cumsum()
        rows = slots.repeat(counts)
        positions = np.arange(int(ends[-1])) + (starts - (ends - counts)).repeat(counts)
        at = (tables[rows, positions // store.size] * heads)[:, None] + np.arange(heads)
        self.positions = torch.from_numpy(positions).to(device)
        self.rows = torch.from_numpy((at * store.size + (positions % store.size)[:, None]).ravel()).to(device)
        self.wanted = torch.from_numpy(ends - 1).to(device) if prefills and not whole else None
        tables, lengths = tables[slots], starts + counts
        self.decode = self.last = None
        if decodes:
            self.decode = DecodeBlocks(tables[: len(decodes)], lengths[: len(decodes)], store.size, device)
        if self.wanted is not None:
            self.last = DecodeBlocks(tables, lengths, store.size, device)
        groups = like_prompts(prefills, len(decodes))
        self.prompts = [
            PromptGroup(part, offsets, tables[index], store.size, device) for part, offsets, index in groups
        ]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q [T, N, H], k, v [T, K, H] -> [T, N, H]."""
        keys, values = self.store.write(layer, self.rows, k, v)
        if self.decode is not None and not self.prompts:
            return self.decode(q, keys, values)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self.decode is not None:
            out[: self.decodes] = self.decode(q[: self.decodes], keys, values)
        for group in self.prompts:
            group(q, k, v, keys, values, out)
        return out

    def ends(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """As a call, for the queries [pieces, N, H] of the wanted tokens, which read all keys from their blocks."""
        assert self.last is not None
        return self.last(q, *self.store.write(layer, self.rows, k, v))


class DecodeBlocks:
    """Which blocks R rows hold, in classes by how many rows share one, and how each row finds its results.

    Args:
        tables: [R, most blocks]. lengths: [R], tokens of each row, the new one included.
    """

    def __init__(self, tables: np.ndarray, lengths: np.ndarray, size: int, device: torch.device) -> None:
        slots = -(-lengths // size)
        live = np.arange(int(slots.max())) < slots[:, None]
        rows, columns = live.nonzero()
        blocks = tables[rows, columns]
        order = np.argsort(blocks, kind="stable")
        blocks, rows, columns = blocks[order], rows[order], columns[order]
        unique, first, counts = np.unique(blocks, return_index=True, return_counts=True)
        classes = np.ceil(np.log2(counts) / LOG_HOLDERS).astype(np.int64)
        found = np.zeros(live.shape, np.int64)
        self.parts: list[_Class] = []
        base = 0
        for power in np.unique(classes):
            mine = (classes == power).nonzero()[0]
            holders = int(counts[mine].max())
            index = first[mine][:, None] + np.minimum(np.arange(holders), counts[mine][:, None] - 1)
            who, column, which = rows[index], columns[index], unique[mine]
            span = int(which[-1] - which[0]) + 1
            place = which - which[0] if span <= SPARE * len(which) else np.arange(len(which))
            height = int(place[-1]) + 1  # blocks in between are computed and not looked at
            askers = np.zeros((height, holders), np.int64)
            left = np.full((height, holders), size)
            askers[place], left[place] = who, lengths[who] - column * size
            found[who, column] = base + place[:, None] * holders + np.arange(holders)
            base += height * holders
            bias = np.where(np.arange(size) < left[:, :, None], np.float32(0), np.float32(-np.inf))
            take = slice(int(which[0]), int(which[0]) + span) if span == height else torch.from_numpy(which).to(device)
            part = _Class(take, torch.from_numpy(askers.ravel()).to(device), torch.from_numpy(bias).to(device), holders)
            self.parts.append(part)
        found = np.where(live, found, found[:, :1])  # a row's missing blocks point at its first, with weight 0
        self.shape = found.shape
        self.found, self.live = torch.from_numpy(found.ravel()).to(device), torch.from_numpy(live).to(device)
        self.dead = torch.zeros(()).where(self.live.cpu(), -torch.inf)[:, :, None].to(device)

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q [R, N, H] over keys, values [blocks, K, size, H] -> [R, N, H]."""
        r, n, h = q.shape
        grouped = q.view(r, keys.shape[1], -1, h)
        if q.device.type == "cpu" and q.dtype == torch.float32:
            both = [part.fused(grouped, keys, values) for part in self.parts]
            logsum, out = both[0] if len(both) == 1 else (torch.cat(x) for x in zip(*both, strict=True))
            weight = (logsum.index_select(0, self.found).view(*self.shape, n) + self.dead).softmax(1)
        else:
            wide = torch.float64 if q.dtype == torch.float64 else torch.float32
            grouped = grouped * (1.0 / math.sqrt(h))
            three = [part.written_out(grouped, keys, values, wide) for part in self.parts]
            top, total, out = three[0] if len(three) == 1 else (torch.cat(x) for x in zip(*three, strict=True))
            top, total = (x.index_select(0, self.found).view(*self.shape, n) for x in (top, total))
            weight = (top - top.amax(1, keepdim=True)).exp_() * self.live[:, :, None]
            weight = weight / (weight * total).sum(1, keepdim=True)
        out = out.index_select(0, self.found).view(*self.shape, n, h)
        return (out * weight[..., None].to(out.dtype)).sum(1)


class _Class:
    """`P` blocks that are held by up to `O` rows each.

    Args:
        take: the blocks. askers: [P · O], whose queries meet them. bias: [P, O, size], -inf at keys that do not exist.
    """

    def __init__(self, take: slice | Tensor, askers: Tensor, bias: Tensor, holders: int) -> None:
        self.take, self.askers, self.bias, self.holders = take, askers, bias, holders
        self.mask: Tensor | None = None

    def asked(self, q: Tensor) -> Tensor:
        """q [R, K, G, H] -> [P, K, O · G, H]."""
        _, kv, g, h = q.shape
        asked = q.index_select(0, self.askers)
        if self.holders == 1:
            return asked
        return asked.view(-1, self.holders, kv, g, h).transpose(1, 2).reshape(-1, kv, self.holders * g, h)

    def flat(self, x: Tensor) -> Tensor:
        """[P, K, O · G, …] -> [P · O, N, …], as rows find it."""
        return x.unflatten(2, (self.holders, -1)).transpose(1, 2).reshape(len(self.askers), -1, *x.shape[3:])

    def fused(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the sum of exponentials [P · O, N], and the mean of values that they weigh [P · O, N, H]."""
        if self.mask is None:
            self.mask = self.bias.repeat_interleave(q.shape[2], 1)[:, None]
        out, logsum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            self.asked(q), keys[self.take], values[self.take], attn_mask=self.mask
        )
        return self.flat(logsum), self.flat(out)

    def written_out(self, q: Tensor, keys: Tensor, values: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Per (block, holder): largest score and sum of exponentials [P · O, N], weighted values [P · O, N, H]."""
        k, v, o = keys[self.take], values[self.take], self.holders
        b, kv, size, _ = k.shape
        g = q.shape[2]
        scores = (self.asked(q) @ k.transpose(-1, -2)).to(wide).view(b, kv, o, g, size) + self.bias[:, None, :, None]
        top = scores.amax(-1, keepdim=True)
        weights = scores.sub_(top).exp_()
        out = weights.to(v.dtype).view(b, kv, o * g, size) @ v
        return self.flat(top.view(b, kv, o * g)), self.flat(weights.sum(-1).view(b, kv, o * g)), self.flat(out)


class PromptGroup:
    """Pieces of prompts, padded to one length on the right, that attend together.

    Args:
        pieces, offsets: with each piece's first index among the flat tokens. tables: [pieces, most blocks].
    """

    def __init__(
        self, pieces: Sequence[Piece], offsets: Sequence[int], tables: np.ndarray, size: int, device: torch.device
    ) -> None:
        counts = np.asarray([piece.count for piece in pieces])
        starts = np.asarray([piece.start for piece in pieces])
        at = np.arange(int(counts.max()))
        self.alone = slice(offsets[0], offsets[0] + len(at)) if len(pieces) == 1 else None
        if self.alone is None:
            flat = np.asarray(offsets)[:, None] + np.minimum(at, counts[:, None] - 1)
            real = at < counts[:, None]
            self.flat = torch.from_numpy(flat).to(device)
            self.target = torch.from_numpy(flat[real]).to(device)
            self.real = torch.from_numpy(real).to(device)
        self.blocks: Tensor | None = None
        if starts.any():
            longest = int((starts + counts).max())
            self.blocks = torch.from_numpy(tables[:, : -(-longest // size)]).to(device)
            query = (starts[:, None] + np.minimum(at, counts[:, None] - 1))[:, :, None]
            seen = np.arange(self.blocks.shape[1] * size) <= query
            self.seen = torch.from_numpy(seen[:, None]).to(device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        """Write the results of this group's tokens into out [T, N, H]; q: [T, N, H], k, v: [T, K, H]."""
        asked = self._padded(q)
        if self.blocks is None:
            result = DenseAttend(None)(asked, self._padded(k), self._padded(v), 0)
        else:
            p, s = self.blocks.shape
            _, kv, size, h = keys.shape
            seen_k, seen_v = (x[self.blocks].transpose(1, 2).reshape(p, kv, s * size, h) for x in (keys, values))
            grouped = q.shape[1] != kv
            result = scaled_dot_product_attention(asked, seen_k, seen_v, attn_mask=self.seen, enable_gqa=grouped)
        if self.alone is not None:
            out[self.alone] = result[0].transpose(0, 1)
        else:
            out[self.target] = result.transpose(1, 2)[self.real]

    def _padded(self, x: Tensor) -> Tensor:
        """[T, heads, H] -> [pieces, heads, t, H]."""
        return (x[self.flat] if self.alone is None else x[self.alone][None]).transpose(1, 2)


def like_prompts(pieces: Sequence[Piece], decodes: int) -> list[tuple[list[Piece], list[int], list[int]]]:
    """Groups of pieces of like length, and apart those that begin at 0, after one token for each of `decodes`.

    Returns:
        for each, its pieces, their first indices among the flat tokens, and among the pass's pieces.
    """
    offsets = decodes + np.cumsum([0, *(piece.count for piece in pieces)])
    groups: list[tuple[list[Piece], list[int], list[int]]] = []
    order = sorted(range(len(pieces)), key=lambda i: (pieces[i].start > 0, -pieces[i].count))
    for i in order:
        piece, last = pieces[i], groups[-1][0][0] if groups else None
        fits = last is not None and (last.start > 0) == (piece.start > 0) and piece.count >= ALIKE * last.count
        if not fits:
            groups.append(([], [], []))
        group = groups[-1]
        group[0].append(piece)
        group[1].append(int(offsets[i]))
        group[2].append(decodes + i)
    return groups


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    if like.device.type != "cpu":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    size = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(size, np.uint8)).view(like.dtype).view(shape)  # the kernel gives zero pages late
