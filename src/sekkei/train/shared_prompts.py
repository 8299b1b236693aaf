"""A prompt that several answers of a micro-batch share goes through the model once.

    rows     p0 p1 p2 a0 a1 | p0 p1 p2 b0          9 inputs, of which the p's are computed twice
    flat     p0 p1 | p2 a0 a1 | p2 b0              7: the shared head, then each answer's own tokens

The head of a segment is what stands before the first input whose label is scored, so the prompt's last token, which
predicts something else in each answer, stays with the answer. Segments of one micro-batch whose heads are equal,
positions included, share one: its tokens see themselves, the answers' tokens see it and themselves. Nothing is
approximated: outputs go back to every place in the rows that they belong to, gradients of the copies are summed
(a sum in another order: rounding differs). This is what a group of GRPO and a pair of DPO have in common; the same
idea for inference is Hydragen's (Juravsky et al. 2024).

It does not handle prompts that are equal in part, experts (whose load would be counted another way), or layouts
(sharded_step.py runs the rows as they are).

Shapes: `B` rows, `T` tokens, `n` flat tokens, `R` pieces padded to `L` queries and `S` keys, `N` query heads,
`K` key/value heads, `H` head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sekkei.data.batch import IGNORED, Batch
from sekkei.model.attention import explicit_attention
from sekkei.model.choices import choose_path
from sekkei.model.output import Output

WORTH = 0.9  # of the rows' tokens: with more than that left, rows are run as they are


@dataclass(frozen=True)
class _Segment:
    """Flat places of a segment of the rows: [first, first + length) of B · T, of which the first `head` are shared."""

    first: int
    length: int
    head: int
    key: bytes


@dataclass(frozen=True)
class Flat:
    """A micro-batch without its repetitions.

    ids, positions, labels: [1, n]. where: [B · T], the flat token of each place in the rows, n at padding.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    where: Tensor
    attend: FlatAttend

    def rows(self, out: Output, shape: torch.Size) -> Output:
        """Outputs [1, n] at their places in rows [B, T], 0 at padding."""

        def back(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return torch.cat((x[0], x.new_zeros(1))).index_select(0, self.where).view(shape)

        return Output(logprobs=back(out.logprobs), entropy=back(out.entropy), values=back(out.values))


def flat_batch(batch: Batch, device: torch.device) -> Flat | None:
    """The batch with shared heads taken once; None where that saves less than a tenth of the work.

    Args:
        batch: where it was made, best on the CPU, as its values are read. device: of the result.
    """
    segments = _segments(batch)
    heads: dict[bytes, list[_Segment]] = {}
    for segment in segments:
        if segment.head:
            heads.setdefault(segment.key, []).append(segment)
    shared = {key: found[0] for key, found in heads.items() if len(found) > 1}
    if not shared:
        return None
    begins: dict[bytes, int] = {}
    n = 0
    for key, segment in shared.items():
        begins[key], n = n, n + segment.head
    prompts = [_Piece(begins[key], segment.head, 0, 0) for key, segment in shared.items()]
    answers, sources = [], [_span(segment.first, segment.head) for segment in shared.values()]
    where = np.zeros(batch.ids.numel(), np.int64)
    real = np.zeros(batch.ids.numel(), np.bool_)
    for segment in segments:
        head = segment.head if segment.key in shared else 0
        begin, own = begins.get(segment.key, 0), segment.length - head
        answers.append(_Piece(n, own, begin, head))
        sources.append(_span(segment.first + head, own))
        where[segment.first : segment.first + head] = _span(begin, head)
        where[segment.first + head : segment.first + segment.length] = _span(n, own)
        real[segment.first : segment.first + segment.length] = True
        n += own
    if not _worth(n, [prompts, answers], batch.ids.shape):
        return None
    where[~real] = n
    source = torch.from_numpy(np.concatenate(sources)).to(batch.ids.device)
    ids, positions, labels = (
        x.reshape(-1)[source][None].to(device) for x in (batch.ids, batch.positions, batch.labels)
    )
    attend = FlatAttend([_Padded(part, device) for part in (prompts, answers)])
    return Flat(ids, positions, labels, torch.from_numpy(where).to(device), attend)


def _segments(batch: Batch) -> list[_Segment]:
    """All segments, in the order of the rows."""
    fields = (batch.ids, batch.positions, batch.labels, batch.segments)
    ids, positions, labels, segment = (x.cpu().numpy() for x in fields)
    tokens, found = ids.shape[1], []
    for row in range(len(ids)):
        bounds = [0, *(np.flatnonzero(np.diff(segment[row])) + 1).tolist(), tokens]
        for start, end in itertools.pairwise(bounds):
            if segment[row, start] < 0:
                continue
            scored = np.flatnonzero(labels[row, start:end] != IGNORED)
            head = int(scored[0]) if len(scored) else 0
            at = (row, slice(start, start + head))
            key = ids[at].tobytes() + positions[at].tobytes()
            found.append(_Segment(row * tokens + start, end - start, head, key))
    return found


@dataclass(frozen=True)
class _Piece:
    """Flat tokens [begin, begin + length) that also see [head_begin, head_begin + head)."""

    begin: int
    length: int
    head_begin: int
    head: int


def _worth(n: int, parts: Sequence[Sequence[_Piece]], shape: torch.Size) -> bool:
    """Whether it is less work, by shapes alone: tokens of the matmuls, pairs of query and key as they are padded."""
    pairs = 0
    for pieces in parts:
        longest = max(piece.length for piece in pieces)
        pairs += len(pieces) * longest * (longest + max(piece.head for piece in pieces))
    return n <= WORTH * shape[0] * shape[1] and pairs <= shape[0] * shape[1] ** 2


class _Padded:
    """Pieces padded to one shape: queries [R · L] and keys [R · S] as flat indices, the real ones among the queries,
    and which key each query sees [R, 1, L, S].
    """

    def __init__(self, pieces: Sequence[_Piece], device: torch.device) -> None:
        begin, length, head_begin, head = (
            np.asarray([getattr(piece, name) for piece in pieces])[:, None]
            for name in ("begin", "length", "head_begin", "head")
        )
        own, before = np.arange(int(length.max())), np.arange(int(head.max()))
        query = np.minimum(own, length - 1)  # padding repeats the last one, and is not looked at
        queries = begin + query
        keys = np.concatenate((head_begin + np.minimum(before, np.maximum(head - 1, 0)), queries), axis=1)
        sees_head = np.broadcast_to((before < head)[:, None], (len(pieces), len(own), len(before)))
        sees = np.concatenate((sees_head, own <= query[:, :, None]), axis=2)
        self.pieces = len(pieces)
        self.queries, self.keys = (torch.from_numpy(x.ravel()).to(device) for x in (queries, keys))
        self.real = torch.from_numpy(np.flatnonzero(own < length)).to(device)
        self.sees = torch.from_numpy(sees[:, None]).to(device)
        self.bias: Tensor | None = None

    def meet(self, width: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, N · H], k, v [n, K · H] -> [real tokens, N · H]."""
        asked = self._heads(q, self.queries, width)
        seen_k, seen_v = self._heads(k, self.keys, width), self._heads(v, self.keys, width)
        if choose_path(q.device.type, q.dtype == torch.bfloat16, seen_k.shape[2]) == "explicit":
            if self.bias is None:
                self.bias = torch.zeros((), dtype=q.dtype, device=q.device).where(self.sees, -torch.inf)
            out = explicit_attention(asked, seen_k, seen_v, self.bias)
        else:
            grouped = asked.shape[1] != seen_k.shape[1]
            out = scaled_dot_product_attention(asked, seen_k, seen_v, attn_mask=self.sees, enable_gqa=grouped)
        return out.transpose(1, 2).reshape(-1, q.shape[1]).index_select(0, self.real)

    def _heads(self, x: Tensor, index: Tensor, width: int) -> Tensor:
        """[n, heads · H] -> [R, heads, tokens, H]."""
        return x.index_select(0, index).view(self.pieces, -1, x.shape[1] // width, width).transpose(1, 2)


class FlatAttend:
    """How flat tokens meet: first the heads, each by itself, then the answers, each with its head and itself."""

    def __init__(self, parts: Sequence[_Padded]) -> None:
        self.parts = parts

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q [1, N, n, H], k, v [1, K, n, H] -> [1, N, n, H]."""
        _, heads, n, width = q.shape
        flat = [x[0].transpose(0, 1).reshape(n, -1) for x in (q, k, v)]
        out = torch.cat([part.meet(width, *flat) for part in self.parts])
        return out.view(1, n, heads, width).transpose(1, 2)


def _span(begin: int, count: int) -> np.ndarray:
    return np.arange(begin, begin + count)
