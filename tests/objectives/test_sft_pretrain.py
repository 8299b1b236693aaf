"""Pretraining and SFT: units, bits per byte, packing, and state that a resume needs."""

from __future__ import annotations

import math
import random
import threading

import numpy as np
import pytest
import torch

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.data.loader import MixtureLoader
from sekkei.data.shards import Shard
from sekkei.model.output import Output
from sekkei.objectives.pretrain import Pretrain, PretrainConfig, TokenLoss
from sekkei.objectives.sft import SFT, GateConfig, SFTConfig, pack_samples, packed_rows, sft_sample
from sekkei.parallel.ops import LocalOps
from sekkei.text.chat import Rendered
from sekkei.train.objective import Context

CTX = Context(models={}, ops=LocalOps(), device=torch.device("cpu"), seed=0, score=lambda *_: Output())


def test_loss_units_and_bits_per_byte_by_hand() -> None:
    batch = lay_out([[Sample(ids=[1, 2, 3, 4, 5], weights=[1.0, 1.0, 0.0, 0.5, 1.0])]], 6)
    batch = batch.with_extra(bytes=torch.tensor([[3.0, 0.0, 1.0, 4.0, 0.0, 0.0]]))
    out = Output(logprobs=torch.tensor([[-1.0, -50.0, -2.0, -4.0, -70.0, -70.0]]))
    terms, metrics = TokenLoss().terms(out, batch, LocalOps())
    assert terms["tokens"].item() == pytest.approx(1.0 + 0.5 * 2.0 + 4.0)
    assert TokenLoss().units(batch)["tokens"].item() == 2.5
    bits = metrics["bpb"].total / metrics["bpb"].weight
    assert bits.item() == pytest.approx(6.0 / math.log(2) / 8.0)
    assert "bpb" not in TokenLoss().terms(out, lay_out([[Sample(ids=range(7))]], 6), LocalOps())[1]


def test_what_the_template_frames_is_learned() -> None:
    sample = sft_sample(Rendered([1, 7, 8, 2, 9, 2], [False, False, True, True, False, True]))
    batch = lay_out([[sample]], 5)
    assert batch.labels.tolist() == [[-100, 8, 2, -100, 2]]
    assert batch.mask.tolist() == [[0, 1, 1, 0, 1]]


def test_rows_are_the_buckets_with_the_least_padding() -> None:
    alone = [packed_rows([n])[0] for n in (1, 32, 33, 128, 129, 257, 513, 4096, 5000)]
    assert alone == [32, 32, 64, 128, 160, 320, 640, 4096, 5000]
    # three of 90 tokens: one per row of 96 wastes 18, one per 128 wastes 114, two per 192 (the third alone) 114
    assert packed_rows([90] * 3) == (96, [[0], [1], [2]])
    # 100 and 28 fill a row of 128; in rows of 192 and 160 they would leave more
    assert packed_rows([100, 28, 100, 28]) == (128, [[0, 1], [2, 3]])
    # 60 and 36 alternate: (60 + 36) twice are rows of 96, not of 64
    assert packed_rows([60, 36, 60, 36])[0] == 96
    rng = random.Random(0)
    lengths = [rng.randrange(40, 120) for _ in range(64)]
    tokens, rows = packed_rows(lengths)
    assert sorted(i for row in rows for i in row) == list(range(64))
    assert all(sum(lengths[i] for i in row) <= tokens for row in rows)
    assert tokens * len(rows) < 1.1 * sum(lengths)  # buckets that double, the smallest that fits: 1.15


def samples(count: int, seed: int = 0) -> list[Sample]:
    rng = random.Random(derive_seed("sft of the test", seed))
    return [Sample(ids=[number] * rng.randrange(3, 100)) for number in range(1, count + 1)]


def test_packing_keeps_every_token_once_in_one_shape() -> None:
    given = samples(40)
    batches = pack_samples(given, 512)
    assert len(batches) > 1
    assert len({batch.ids.shape[1] for batch in batches}) == 1
    assert max(batch.ids.numel() for batch in batches) <= 512
    found: dict[int, int] = {}
    for batch in batches:
        for number in batch.labels[batch.labels >= 0].tolist():
            found[number] = found.get(number, 0) + 1
    assert found == {number: sample.length for number, sample in enumerate(given, start=1)}


def test_sft_reads_examples_in_order_and_goes_on() -> None:
    asked: list[int] = []

    def example(index: int) -> Sample:
        asked.append(index)
        return Sample(ids=[index % 7] * 5)

    first, second = SFT(example, 3, 512), SFT(example, 3, 512)
    first.next_step(CTX)
    second.load_state_dict(first.state_dict())
    (update,) = second.next_step(CTX)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert update.role == "policy"
    assert sum(int(batch.mask.sum()) for batch in update.micro_batches) == 3 * 4


def loader(context: int = 16) -> MixtureLoader:
    rng = np.random.Generator(np.random.PCG64(1))
    lengths = rng.integers(5, 60, size=25)
    ids = rng.integers(0, 50, size=int(lengths.sum())).astype(np.uint16)
    shard = Shard(ids, np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return MixtureLoader({"a": shard}, {"a": 1.0}, context, 60, 3, list(range(50)))


def rows_of(objective: Pretrain, steps: int) -> list[torch.Tensor]:
    rows = []
    for _ in range(steps):
        (update,) = objective.next_step(CTX)
        rows += [row for batch in update.micro_batches for row in batch.ids]
    return rows


def test_pretraining_reads_rows_in_order_whatever_the_micro_batch() -> None:
    whole = rows_of(Pretrain(loader(), 10, 10), 6)
    assert len(whole) == 60
    parts = Pretrain(loader(), 10, 4)
    (update,) = parts.next_step(CTX)
    assert [len(batch.ids) for batch in update.micro_batches] == [4, 4, 2]
    resumed = Pretrain(loader(), 10, 4)
    resumed.load_state_dict(parts.state_dict())
    found = [row for batch in update.micro_batches for row in batch.ids] + rows_of(resumed, 5)
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))
    distinct = {tuple(row.tolist()) for row in whole[:20]}
    assert len(distinct) == 20


def test_rows_are_read_ahead_and_a_failure_is_not_lost() -> None:
    source = loader()
    objective, read, direct = Pretrain(source, 10, 4), [], source.batch

    def watched(first: int, count: int) -> Batch:
        read.append((first, count, threading.current_thread() is threading.main_thread()))
        if first >= 20:
            raise OSError("the disk went away")
        return direct(first, count)

    source.batch = watched  # type: ignore[method-assign]
    objective.next_step(CTX)
    objective.next_step(CTX)
    assert [entry[:2] for entry in read[:6]] == [(0, 4), (4, 4), (8, 2), (10, 4), (14, 4), (18, 2)]
    assert [entry[2] for entry in read[:6]] == [True] * 3 + [False] * 3
    with pytest.raises(OSError, match="the disk went away"):
        objective.next_step(CTX)


def test_a_checkpoint_of_other_rows_is_refused() -> None:
    state = Pretrain(loader(), 10, 4).state_dict()
    for other in (Pretrain(loader(), 8, 4), Pretrain(loader(context=8), 10, 4)):
        with pytest.raises(UserError, match="cannot change within a stage"):
            other.load_state_dict(state)


def test_bytes_of_labels_travel_with_the_batch() -> None:
    batch: Batch = loader().batch(0, 5)
    expected = torch.where(batch.labels >= 0, batch.labels, 0).float()  # token i stands for i bytes here
    assert torch.equal(batch.extra["bytes"], expected)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: PretrainConfig(steps=0, context=8, rows=1, mixture={"a": 1.0}), "steps"),
        (lambda: PretrainConfig(steps=1, context=8, rows=1, mixture={"a": 0.9}), "mixture"),
        (lambda: PretrainConfig(steps=1, context=8, rows=1, mixture={}), "mixture"),
        (lambda: PretrainConfig(steps=1, context=8, rows=1, mixture={"a": 1.5, "b": -0.5}), "mixture"),
        (lambda: PretrainConfig(steps=1, context=8, rows=1, mixture={"a": 1.0}, rope_factor=0.5), "rope_factor"),
        (lambda: SFTConfig(steps=1, examples=0), "examples"),
        (lambda: SFTConfig(steps=1, everyday=1.1), "everyday"),
        (lambda: GateConfig(min_pass1_sampled=2.0), "min_pass1_sampled"),
        (lambda: GateConfig(extra_steps=0), "extra_steps"),
    ],
)
def test_bad_settings(make: object, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        make()  # type: ignore[operator]


def test_tokens_of_a_stage() -> None:
    assert PretrainConfig(steps=3, context=8, rows=5, mixture={"a": 1.0}).tokens == 120
