"""How the tokens of a row are dealt to the ranks of the context-parallel axis.

A row is cut into 2·cp chunks, and rank r holds chunks r and 2·cp-1-r, in this order:

    cp = 4     chunk   0  1  2  3  4  5  6  7
               rank    0  1  2  3  3  2  1  0

A causal query at position t meets t+1 keys, so an early chunk is cheap and a late one dear. One of each gives every
rank the same work: in units of a chunk's keys, r + (2·cp-1-r) = 2·cp-1 for all r. Contiguous halves would give rank 0
a share of 1 and the last rank one of 2·cp-1.

Dealing a row to both ends is the balance of Llama 3 (Grattafiori et al. 2024, section 3.3.2); striped attention
(Brandon et al. 2023) reaches nearly the same with single tokens. Positions and segment numbers stay those of the whole
row: rotary angles and masks are made from them. Loss units are counted on whole rows, *before* this split; the sum of
a loss over the ranks' tokens is then the row's own. Packed rows are cut as they are, so their work is balanced only as
far as their documents are (the segments of a row are not reordered).

`order="contiguous"` is for measurements that show what zig-zag is worth.

Shapes: `B` rows, `T` tokens of a whole row, `S` segments per row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from sekkei.data.batch import Batch
from sekkei.parallel.layout import check_length

Order = Literal["zigzag", "contiguous"]

TOKEN_FIELDS = ("ids", "labels", "mask", "positions", "segments")


def chunks_of(rank: int, size: int, order: Order = "zigzag") -> tuple[int, int]:
    """The two of 2·size chunks that a rank holds, ascending."""
    return (rank, 2 * size - 1 - rank) if order == "zigzag" else (2 * rank, 2 * rank + 1)


def take(x: Tensor, rank: int, size: int, dim: int = 1, order: Order = "zigzag") -> Tensor:
    """What `rank` holds of a whole tensor: [.., T, ..] -> [.., T / size, ..].

    Raises:
        ConfigError: 2·size does not divide T.
    """
    check_length(x.shape[dim], size)
    if size == 1:
        return x
    parts = x.chunk(2 * size, dim)
    return torch.cat([parts[index] for index in chunks_of(rank, size, order)], dim)


def join(parts: Sequence[Tensor], dim: int = 1, order: Order = "zigzag") -> Tensor:
    """The inverse of `take`: every rank's part, in order of rank -> the whole tensor."""
    size = len(parts)
    if size == 1:
        return parts[0]
    chunks = {}
    for rank, part in enumerate(parts):
        chunks.update(zip(chunks_of(rank, size, order), part.chunk(2, dim), strict=True))
    return torch.cat([chunks[index] for index in range(2 * size)], dim)


def gather_tokens(x: Tensor, group: dist.ProcessGroup | None, dim: int = 1, order: Order = "zigzag") -> Tensor:
    """Whole rows on every rank from each rank's tokens (log-probabilities of a reference, say); not differentiable.

    Args:
        x: [.., T / size, ..], of one shape on all ranks.
    """
    size = dist.get_world_size(group)
    if size == 1:
        return x.detach()
    mine = x.detach().contiguous()
    parts = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(parts, mine, group=group)
    return join(parts, dim, order)


def shard_batch(
    batch: Batch, rank: int, size: int, per_segment: Collection[str] = (), order: Order = "zigzag"
) -> Batch:
    """The tokens of a batch that `rank` holds.

    Extras per token are cut, extras per segment stay whole on every rank: segment numbers are the whole row's. Which
    is which is told by the width, T or S; name in `per_segment` those that could be mistaken (S = T).

    Args:
        batch: whole rows, [B, T].
    Returns:
        A batch of [B, T / size].
    Raises:
        ConfigError: 2·size does not divide T.
    """
    tokens = batch.ids.shape[1]
    check_length(tokens, size)
    cut = {name: take(getattr(batch, name), rank, size, order=order) for name in TOKEN_FIELDS}
    extra = {
        name: take(x, rank, size, order=order) if x.shape[1] == tokens and name not in per_segment else x
        for name, x in batch.extra.items()
    }
    return Batch(**cut, extra=extra)


def join_batches(parts: Sequence[Batch], per_segment: Collection[str] = (), order: Order = "zigzag") -> Batch:
    """The inverse of `shard_batch`: the parts of all ranks, in order of rank -> whole rows.

    An extra as wide as a part is taken for one per token: name in `per_segment` those that are not (S = T / size).
    """
    tokens = parts[0].ids.shape[1]
    whole = {name: join([getattr(part, name) for part in parts], order=order) for name in TOKEN_FIELDS}
    extra = {
        name: join([part.extra[name] for part in parts], order=order)
        if x.shape[1] == tokens and name not in per_segment
        else x
        for name, x in parts[0].extra.items()
    }
    return Batch(**whole, extra=extra)
