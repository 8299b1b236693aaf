"""Held-out bits per byte: how many bits a model needs for a byte of text that it never saw.

    bpb = Σ -log2 p(token) / Σ bytes(token)        over tokens that stand for text (special tokens left out)

Bits per byte do not depend on the tokenizer, so models with different vocabularies can be compared.
`position_bits` asks whether more context helps: the same text is read with less and with more before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.data.packing import pack
from sekkei.data.shards import Shard
from sekkei.model.output import Output

ScoreBatch = Callable[[Batch], Output]
BATCH_TOKENS = 8192


def domain_bits(score: ScoreBatch, shard: Shard, context: int, token_bytes: Sequence[int], max_tokens: int) -> float:
    """Bits per byte of a held-out domain, read in windows of `context` tokens, at most about `max_tokens`."""
    samples, total = [], 0
    for document in range(len(shard)):
        ids = shard[document].astype(np.int64)
        for start in range(0, len(ids) - 1, context):
            samples.append(Sample(ids=ids[start : start + context + 1]))
            total += samples[-1].length
            if total >= max_tokens:
                break
        if total >= max_tokens:
            break
    bits, sizes = _token_bits(score, samples, context, token_bytes)
    return float(bits.sum() / sizes.sum())


def document_bits(
    score: ScoreBatch, documents: Sequence[np.ndarray], context: int, token_bytes: Sequence[int]
) -> tuple[list[float], list[float]]:
    """(bits, bytes) of every document, read in windows of `context` tokens: their sums give `domain_bits`."""
    cut = [[ids[i : i + context + 1].astype(np.int64) for i in range(0, len(ids) - 1, context)] for ids in documents]
    samples = [Sample(ids=ids) for windows in cut for ids in windows]
    if not samples:
        return [0.0] * len(documents), [0.0] * len(documents)
    found, wide = _token_bits(score, samples, context, token_bytes, whole_rows=True)
    owner = np.repeat(np.arange(len(documents)), [len(windows) for windows in cut])
    bits, sizes = (np.bincount(owner, part.double().sum(1), len(documents)).tolist() for part in (found, wide))
    return bits, sizes


def position_bits(
    score: ScoreBatch, shards: Sequence[Shard], short: int, long: int, token_bytes: Sequence[int], max_windows: int
) -> dict[tuple[int, int], float]:
    """Bits per byte of the *same* text, read with little and with much before it.

    Windows of `long` tokens are cut end to end from documents that fill them. Their tokens at positions
    short … long are scored twice: where they stand, and in rows of `short` tokens, in the second half. Text
    differs from place to place far more than context helps, so only the same text can be compared.

    Args:
        short, long: tokens of the two contexts; `long` is rounded down to a multiple of `short / 2`.
        max_windows: of each shard, spread evenly over all it has.
    Returns:
        {(short / 2, short): bits per byte with that much context, (short, long): with more}; empty where no
        document is long enough.
    """
    half = short // 2
    long = short + (long - short) // half * half
    windows = []
    for shard in shards:
        places = [(d, s) for d in range(len(shard)) for s in range(0, int(shard.lengths[d]) - long, long)]
        spread = [places[i * len(places) // max_windows] for i in range(max_windows)] if places else []
        windows += [shard[d][s : s + long + 1].astype(np.int64) for d, s in dict.fromkeys(spread)]
    if not windows:
        return {}
    near = [Sample(ids=ids[b - half : b + half + 1]) for ids in windows for b in range(short, long, half)]
    far = [Sample(ids=ids) for ids in windows]
    found = {}
    for samples, low, high in ((near, half, short), (far, short, long)):
        bits, sizes = _token_bits(score, samples, high, token_bytes, whole_rows=True)
        found[low, high] = float(bits[:, low:].sum() / sizes[:, low:].sum())
    return found


def _token_bits(
    score: ScoreBatch, samples: Sequence[Sample], tokens: int, token_bytes: Sequence[int], whole_rows: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits and bytes of every label, each [rows, tokens]; 0 where a label stands for no text."""
    table = torch.tensor(token_bytes, dtype=torch.float32)
    if whole_rows:
        rows = [[sample] for sample in samples]
    else:
        rows = [[samples[i] for i in row] for row in pack([s.length for s in samples], tokens)]
    size = max(1, BATCH_TOKENS // tokens)
    bits, sizes = [], []
    for start in range(0, len(rows), size):
        batch = lay_out(rows[start : start + size], tokens)
        out = score(batch)
        assert out.logprobs is not None
        here = table[batch.labels.clamp(min=0)] * (batch.labels >= 0)
        sizes.append(here)
        bits.append(-out.logprobs.cpu() / math.log(2) * (here > 0))
    return torch.cat(bits), torch.cat(sizes)
