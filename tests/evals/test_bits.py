"""Bits per byte on models whose bits are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sekkei.data.batch import Batch
from sekkei.data.shards import Shard
from sekkei.evals.bits import domain_bits, position_bits
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.output import Output
from sekkei.parallel.ops import LocalOps
from sekkei.train.step import PlainStep

VOCABULARY = 40
SPECIAL = 3  # ids 0, 1, 2 stand for no text
TOKEN_BYTES = [0] * SPECIAL + [1 + token % 4 for token in range(SPECIAL, VOCABULARY)]
CONFIG = ModelConfig(
    hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=16, vocab_size=VOCABULARY
)


def shard(lengths: list[int], seed: int = 0) -> Shard:
    """Documents <1> … <2> of random text tokens, with a special token inside the longer ones."""
    rng = np.random.Generator(np.random.PCG64(seed))
    documents = []
    for length in lengths:
        ids = rng.integers(SPECIAL, VOCABULARY, size=length)
        ids[0], ids[-1] = 1, 2
        if length > 10:
            ids[7] = 0
        documents.append(ids)
    sizes = np.array(lengths, np.int64)
    return Shard(np.concatenate(documents).astype(np.uint16), np.cumsum(sizes) - sizes, sizes)


def uniform(batch: Batch) -> Output:
    """A real model with a head of zeros: every token costs log2(V) bits."""
    model = build(CONFIG, seed=0)
    torch.nn.init.zeros_(model.lm_head.weight)
    step = PlainStep({"policy": model}, LocalOps(), torch.device("cpu"), None)
    return step.score("policy", batch, frozenset({"logprobs"}), 1.0)


def by_position(batch: Batch) -> Output:
    """The label at position p costs p + 1 bits."""
    return Output(logprobs=-math.log(2) * (batch.positions + 1).float() * (batch.labels >= 0))


def expected(documents: Shard, context: int, cost: float | None) -> float:
    """Bits per byte, one document at a time; `cost` per token, or None: the position in its window + 1."""
    bits, sizes = 0.0, 0
    for number in range(len(documents)):
        for place, token in enumerate(documents[number][1:].tolist()):
            if TOKEN_BYTES[token]:
                bits += cost if cost is not None else place % context + 1
                sizes += TOKEN_BYTES[token]
    return bits / sizes


@pytest.mark.parametrize("context", [8, 16, 64])
def test_every_token_of_text_is_counted_once(context: int) -> None:
    documents = shard([5, 30, 2, 17, 65, 9, 33])
    found = domain_bits(uniform, documents, context, TOKEN_BYTES, 10_000)
    assert found == pytest.approx(expected(documents, context, math.log2(VOCABULARY)), rel=1e-5)
    found = domain_bits(by_position, documents, context, TOKEN_BYTES, 10_000)
    assert found == pytest.approx(expected(documents, context, None), rel=1e-5)


def test_the_limit_of_tokens() -> None:
    documents = shard([17, 17, 17, 17])
    seen = []

    def score(batch: Batch) -> Output:
        seen.append(int((batch.labels >= 0).sum()))
        return by_position(batch)

    for limit, tokens in ((1, 8), (16, 16), (17, 24), (10_000, 64)):
        seen.clear()
        domain_bits(score, documents, 8, TOKEN_BYTES, limit)
        assert sum(seen) == tokens


def test_many_rows_are_scored_in_batches() -> None:
    documents = shard([65] * 150)  # more than BATCH_TOKENS
    sizes = []

    def score(batch: Batch) -> Output:
        sizes.append(batch.ids.numel())
        return by_position(batch)

    found = domain_bits(score, documents, 64, TOKEN_BYTES, 1_000_000)
    assert len(sizes) == 2
    assert max(sizes) == 8192
    assert found == pytest.approx(expected(documents, 64, None), rel=1e-5)


def test_the_same_text_is_read_at_both_places() -> None:
    documents = shard([33, 40, 5, 32, 64, 100], seed=4)
    seen: dict[int, list[int]] = {8: [], 32: []}

    def score(batch: Batch) -> Output:
        width = batch.ids.shape[1]
        start = width // 2 if width == 8 else 8
        seen[width] += batch.labels[:, start:].flatten().tolist()
        return by_position(batch)

    found = position_bits(score, [documents], 8, 32, TOKEN_BYTES, 10)
    assert list(found) == [(4, 8), (8, 32)]
    assert sorted(seen[8]) == sorted(seen[32])
    windows = [(0, 0), (1, 0), (4, 0), (5, 0), (5, 32), (5, 64)]  # of 32 tokens and one more, end to end
    for (low, high), place_of in (((4, 8), lambda b: 4 + b % 4), ((8, 32), lambda b: b)):
        bits = sizes = 0
        for number, start in windows:
            for b in range(8, 32):
                size = TOKEN_BYTES[int(documents[number][start + b + 1])]
                bits, sizes = bits + (place_of(b) + 1) * bool(size), sizes + size
        assert found[low, high] == pytest.approx(bits / sizes, rel=1e-5)


def test_windows_per_shard_are_limited_and_short_documents_left_out() -> None:
    rows = []

    def score(batch: Batch) -> Output:
        rows.append(len(batch.ids) if batch.ids.shape[1] == 32 else 0)
        return by_position(batch)

    position_bits(score, [shard([40] * 5), shard([40] * 2)], 16, 32, TOKEN_BYTES, 3)
    assert sum(rows) == 5
    assert position_bits(score, [shard([32, 5])], 16, 32, TOKEN_BYTES, 3) == {}
