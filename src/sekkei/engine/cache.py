"""Keys and values in blocks, and attention that reads them where they lie.

    [layers, keys | values, blocks, K, size, H]          table[row] = the row's blocks, in order

    row 0   5 0 7        block 5: 32 tokens  ─┐
    row 1   5 1          block 5 is shared:   └── read once for both rows

One new token per row (decode) meets every block once: the queries of all rows that hold a block are stacked and
multiplied with it in place, then each row joins its blocks' results by what they weigh,

    o_b = softmax(s_b) V_b,  l_b = log Σ e^(s_b)         o = Σ_b softmax(l)_b o_b

(the merge of FlashAttention, Dao et al. 2022; sharing of a prefix's reads as in Hydragen, Juravsky et al. 2024). Few
and plain operations: a pass over short rows is made of little else, and on a CPU torch's fused attention takes 1.6 to
2 times as long as these two products. Which rows hold which blocks is worked out anew only when that changes.
No keys are gathered into a padded copy, which on a CPU costs 2-20x the attention itself, and a row reads its own
length, not the longest one's. Prompts (prefill) attend in right-padded groups of like length; one that begins at 0
uses its own keys, one that goes on after a shared or earlier part gathers that part.

It runs on CPU and CUDA by the same calls, and was measured on CPU only; passes that a CUDA graph replays attend in
graphs.py. It does not handle quantised keys, or tensor-parallel heads.

Shapes: `R` rows, `N` query heads, `K` key/value heads, `G` = N / K, `H` head width, `T` tokens of the pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

from sekkei.engine.scheduler import Piece
from sekkei.model.attention import DenseAttend

SPARE = 1.5  # a run of blocks is read whole if it holds at most this many times the blocks that are wanted
LOG_HOLDERS = 3  # blocks held by 1, 2-8, 9-64, 65-512 … rows are each one matmul, padded to their class's most
ALIKE = 0.7  # prompts are padded to one length if the shorter has at least this share of the longer


class BlockStore:
    """The tensor, made at the first use with the head shape, dtype and device of what is stored.

    Memory is zeroed (an unwritten value times weight 0 must be 0) and, on CPUs, only taken from the machine once a
    block is written.
    """

    def __init__(self, layers: int, blocks: int, size: int) -> None:
        self.layers, self.blocks, self.size = layers, blocks, size
        self.both: Tensor | None = None

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [T, K, H] of one layer where they belong; returns its keys and values, [blocks, K, size, H] each.

        Args:
            rows: [T · 2K], index of each token's K keys and K values among the layer's vectors, keys before values.
        """
        if self.both is None:
            shape = (self.layers, 2, self.blocks, k.shape[1], self.size, k.shape[2])
            self.both = _zeros(shape, k)
        here = self.both[layer]
        here.view(-1, k.shape[2])[rows] = torch.cat((k, v), dim=1).flatten(0, 1)
        return here[0], here[1]

    def copy(self, pairs: Sequence[tuple[int, int]], tokens: int) -> None:
        """Copy the first `tokens` of blocks (from, to) in all layers; sources are read before any target is written."""
        if not pairs or self.both is None:
            return
        source, target = torch.tensor(pairs, device=self.both.device).T
        self.both[:, :, target, :, :tokens] = self.both[:, :, source, :, :tokens]

    def clear(self) -> None:
        """Forget the contents, as after a pass that left numbers that are not finite."""
        self.both = None


class PassAttend:
    """Attention of one forward pass over flat tokens: `decodes` first, then the tokens of each of `prefills`.

    Args:
        tables: [rows of the engine, most blocks] int64, by slot. heads: K.
        whole: every token's result is wanted, not only the last one's of each piece.
        before: the last pass's `decode`, which is taken over if its rows hold the same blocks.
    Attributes:
        positions: [T], all below `end`. wanted: [pieces] indices of the tokens that are scored; None: all.
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
        before: DecodeBlocks | None = None,
    ) -> None:
        self.store, self.device, self.decodes = store, device, len(decodes)
        pieces, size = [*decodes, *prefills], store.size
        of_pieces = np.array([(piece.sequence.slot, piece.start, piece.count) for piece in pieces], np.int64)
        slots, starts, counts = of_pieces.T
        ends = counts.cumsum()
        rows = slots.repeat(counts)
        positions = np.arange(int(ends[-1])) + (starts - (ends - counts)).repeat(counts)
        at = (tables[rows, positions // size] * heads)[:, None] + np.arange(heads)
        at = at * size + (positions % size)[:, None]
        at = np.concatenate((at, at + store.blocks * heads * size), axis=1)
        self.positions, self.end = torch.from_numpy(positions).to(device), int((starts + counts).max())
        self.rows = torch.from_numpy(at.ravel()).to(device)
        self.wanted = torch.from_numpy(ends - 1).to(device) if prefills and not whole else None
        tables, lengths = tables[slots], starts + counts
        self.decode = self.last = None
        if decodes:
            own, long = tables[: len(decodes)], lengths[: len(decodes)]
            if before is not None and before.fits(own, long):
                before.see(long)
                self.decode = before
            else:
                self.decode = DecodeBlocks(own, long, size, heads, device)
        if self.wanted is not None:
            self.last = DecodeBlocks(tables, lengths, size, heads, device)
        groups = like_prompts(prefills, len(decodes))
        self.prompts = [PromptGroup(part, offsets, tables[index], size, device) for part, offsets, index in groups]

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
        tables: [R, most blocks]. lengths: [R], tokens of each row, the new one included. heads: K.
    """

    def __init__(self, tables: np.ndarray, lengths: np.ndarray, size: int, heads: int, device: torch.device) -> None:
        self.size, self.device = size, device
        slots = -(-lengths // size)
        live = np.arange(int(slots.max())) < slots[:, None]
        self.blocks = np.where(live, tables[:, : live.shape[1]], -1)
        rows, columns = live.nonzero()
        blocks = tables[rows, columns]
        order = np.argsort(blocks, kind="stable")
        blocks, rows, columns = blocks[order], rows[order], columns[order]
        unique, first, counts = np.unique(blocks, return_index=True, return_counts=True)
        classes = np.ceil(np.log2(counts) / LOG_HOLDERS).astype(np.int64)
        found = np.zeros((*live.shape, heads), np.int64)
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
            askers, column_of = np.zeros((height, holders), np.int64), np.full((height, holders), -1)
            askers[place], column_of[place] = who, column
            at = (place[:, None] * heads + np.arange(heads))[:, None] * holders + np.arange(holders)[:, None]
            found[who, column] = base + at
            base += height * heads * holders
            take = slice(int(which[0]), int(which[0]) + span) if span == height else torch.from_numpy(which).to(device)
            part = _Class(take, askers, column_of, heads, device)
            self.parts.append(part)
        self.found, self.live = found, live
        self.merge: _Merge | None = None
        self.see(lengths)

    def fits(self, tables: np.ndarray, lengths: np.ndarray) -> bool:
        """Whether rows of these tables and lengths hold the same blocks."""
        columns = self.blocks.shape[1]
        if len(lengths) != len(self.blocks) or columns != -(-int(lengths.max()) // self.size):
            return False
        live = np.arange(columns) * self.size < lengths[:, None]
        return bool((np.where(live, tables[:, :columns], -1) == self.blocks).all())

    def see(self, lengths: np.ndarray) -> None:
        """The rows have these lengths now."""
        for part in self.parts:
            part.see(lengths, self.size)

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q [R, N, H] over keys, values [blocks, K, size, H] -> [R, N, H]."""
        r, n, h = q.shape
        kv = keys.shape[1]
        q = q.reshape(r * kv, n // kv, h)
        both = [part.attend(q, keys, values) for part in self.parts]
        out, logsum = both[0] if len(both) == 1 else (torch.cat(x) for x in zip(*both, strict=True))
        if self.merge is None:
            self.merge = _Merge(self.found, self.live, n // kv, self.device)
        return self.merge(out.view(-1, h), logsum.view(-1)).view(r, n, h)


class _Merge:
    """Where the results of each row's blocks stand, and how they become one.

    Args:
        found: [R, C, K], in groups of G, of block number C of the row. live: [R, C], whether there is one.
    """

    def __init__(self, found: np.ndarray, live: np.ndarray, groups: int, device: torch.device) -> None:
        rows, columns, kinds = found.shape
        index = found.transpose(0, 2, 1)[:, :, None] * groups + np.arange(groups)[:, None]  # [R, K, G, C]
        here = np.broadcast_to(live[:, None, None], index.shape)
        self.shape = (rows, kinds * groups, columns)
        self.all, self.index, self.here, self.begin = (
            torch.from_numpy(x).to(device)
            for x in (
                np.where(here, index, 0).ravel(),
                index[here],
                np.flatnonzero(here),
                np.concatenate(([0], live.sum(1).repeat(kinds * groups).cumsum()[:-1])),
            )
        )
        self.dead = torch.from_numpy(np.where(live, np.float32(0), np.float32(-np.inf))[:, None]).to(device)

    def __call__(self, out: Tensor, logsum: Tensor) -> Tensor:
        """out [n, H], logsum [n] of all blocks and who asks them -> [R · N, H]."""
        weight = logsum.index_select(0, self.all).view(self.shape).add_(self.dead).softmax(-1).view(-1)
        weight = weight.index_select(0, self.here).to(out.dtype)
        return embedding_bag(self.index, out, self.begin, mode="sum", per_sample_weights=weight)


class _Class:
    """`P` blocks that are held by up to `O` rows each.

    Args:
        take: the blocks. askers: [P, O], whose queries meet them. columns: [P, O], which of the asker's blocks it is,
            -1 where nobody asks.
    """

    def __init__(
        self, take: slice | Tensor, askers: np.ndarray, columns: np.ndarray, heads: int, device: torch.device
    ) -> None:
        self.take, self.rows, self.columns, self.device = take, askers, columns, device
        self.height, self.holders = askers.shape
        index = askers[:, None] * heads + np.arange(heads)[:, None]
        self.askers = torch.from_numpy(index.ravel()).to(device)

    def see(self, lengths: np.ndarray, size: int) -> None:
        """How many keys of its block each asker may see, by the rows' lengths [R]."""
        left = np.where(self.columns < 0, 1, lengths[self.rows] - self.columns * size)
        self.keys = min(int(left.max()), size)
        bias = np.where(np.arange(self.keys) < left[:, :, None], np.float32(0), np.float32(-np.inf))
        self.seen = torch.from_numpy(bias).to(self.device)
        self.bias: Tensor | None = None

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What each asker gets from its block alone: q [R · K, G, H] -> [P · K · O, G, H], and log Σ exp of its scores
        [P · K · O, G].
        """
        _, g, h = q.shape
        kv = keys.shape[1]
        k, v = (x[self.take][:, :, : self.keys].flatten(0, 1) for x in (keys, values))
        if self.bias is None:  # [P · K, O · G, keys]
            self.bias = self.seen[:, None, :, None].expand(-1, kv, -1, g, -1).flatten(2, 3).flatten(0, 1).to(q.dtype)
        asked = q.index_select(0, self.askers).view(-1, self.holders * g, h)
        scores = torch.baddbmm(self.bias, asked, k.mT, alpha=1.0 / math.sqrt(h))
        wide = scores if scores.dtype == torch.float64 else scores.float()
        logs = wide.log_softmax(-1)
        logsum = wide[..., 0] - logs[..., 0]  # the first key of a block is always seen
        return torch.bmm(logs.exp_().to(v.dtype), v).view(-1, g, h), logsum.view(-1, g)


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
