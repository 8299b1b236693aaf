"""One update gives one gradient, however its rows are cut into micro-batches or packed into rows."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer, run_recomputed
from sekkei.objectives.pretrain import TokenLoss
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Metrics, Update
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=37, qk_norm=True
)
EXACT = 1e-12

Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return build(CONFIG, seed=3, dtype=torch.float64)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Eight sequences of uneven lengths whose shares of scored tokens lie far apart, one with a single one."""
    rng = random.Random(derive_seed("uneven"))
    found = []
    for i, length in enumerate((30, 5, 17, 2, 24, 9, 11, 3)):
        ids = [rng.randrange(37) for _ in range(length)]
        weights = [float(rng.random() < (0.1, 0.5, 0.9)[i % 3]) for _ in ids]
        weights[-1] = 1.0
        found.append(Sample(ids=ids, weights=weights))
    return found


def run(model: Transformer, batches: list[Batch]) -> tuple[Gradients, Metrics]:
    model.zero_grad(set_to_none=True)
    metrics = PlainStep({"policy": model}, LocalOps(), CPU, None).backward(Update("policy", batches, TokenLoss()))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, metrics


def error(found: Gradients, true: Gradients) -> float:
    """The largest relative difference of any parameter's gradient."""
    assert set(found) == set(true)
    return max(float((found[name] - true[name]).norm() / true[name].norm()) for name in true)


def one_row(sample: Sample) -> Batch:
    return lay_out([[sample]], 30)


def test_accumulation_is_exact(model: Transformer, samples: list[Sample]) -> None:
    whole, whole_metrics = run(model, [lay_out([[s] for s in samples], 30)])
    assert set(whole) == {name for name, _ in model.named_parameters()}
    for size in (1, 3):
        batches = [lay_out([[s] for s in samples[i : i + size]], 30) for i in range(0, 8, size)]
        parts, metrics = run(model, batches)
        assert error(parts, whole) < EXACT
        assert float(metrics["loss"].total) == pytest.approx(float(whole_metrics["loss"].total), rel=EXACT)


def test_a_mean_of_means_would_be_seen(model: Transformer, samples: list[Sample]) -> None:
    whole, _ = run(model, [lay_out([[s] for s in samples], 30)])
    each = [run(model, [one_row(s)])[0] for s in samples]
    averaged = {name: torch.stack([g[name] for g in each]).mean(0) for name in whole}
    assert error(averaged, whole) > 0.1


def test_packed_rows_give_the_gradient_of_padded_rows(model: Transformer, samples: list[Sample]) -> None:
    whole, _ = run(model, [lay_out([[s] for s in samples], 30)])
    packed = pack_samples(samples, 10_000)
    assert len(packed) == 1
    assert packed[0].ids.shape == (3, 32), "the bucket with the least padding"
    assert sum(int(row.max()) + 1 for row in packed[0].segments) == 8
    assert error(run(model, packed)[0], whole) < EXACT
    batch = packed[0]
    blind = Batch(
        ids=batch.ids, labels=batch.labels, mask=batch.mask, positions=batch.positions, segments=batch.segments * 0
    )
    assert error(run(model, [blind])[0], whole) > 1e-3  # documents that see each other


def test_loss_and_gradient_as_written_out(model: Transformer, samples: list[Sample]) -> None:
    found, metrics = run(model, [one_row(s) for s in samples])
    model.zero_grad(set_to_none=True)
    total, tokens = torch.zeros((), dtype=torch.float64), 0.0
    for sample in samples:
        ids = torch.tensor([sample.ids])
        hidden = model.hidden(ids[:, :-1], torch.arange(sample.length)[None], DenseAttend(None))
        logprobs = model.logits(hidden).log_softmax(-1)[0]
        assert sample.weights is not None
        for t in range(sample.length):
            total = total - sample.weights[t + 1] * logprobs[t, sample.ids[t + 1]]
            tokens += sample.weights[t + 1]
    (total / tokens).backward()
    true = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert error(found, true) < EXACT
    assert float(metrics["loss"].total) == pytest.approx(float(total.detach()) / tokens, rel=EXACT)


def test_recomputation_gives_the_same_bits(samples: list[Sample]) -> None:
    plain, recomputed = build(CONFIG, seed=3), build(CONFIG, seed=3)
    recomputed.run_block = run_recomputed
    batches = pack_samples(samples, 10_000)
    first, second = run(plain, batches)[0], run(recomputed, batches)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_update_without_a_scored_token_has_no_gradient(model: Transformer) -> None:
    batch = lay_out([[Sample(ids=[1, 2, 3], weights=[0.0, 0.0, 0.0])]], 4)
    gradients, metrics = run(model, [batch])
    assert float(metrics["loss"].total) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in gradients.values())


def test_autocast_computes_in_bf16_and_keeps_float32_gradients(samples: list[Sample]) -> None:
    model = build(CONFIG, seed=3)
    exact = run(model, [one_row(s) for s in samples])[0]
    model.zero_grad(set_to_none=True)
    step = PlainStep({"policy": model}, LocalOps(), CPU, torch.bfloat16)
    step.backward(Update("policy", [one_row(s) for s in samples], TokenLoss()))
    rounded = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert {g.dtype for g in rounded.values()} == {torch.float32}
    assert 1e-4 < error(rounded, exact) < 0.1  # bf16 has 8 bits of mantissa


def test_score_gives_no_gradient_and_the_values_of_training(model: Transformer, samples: list[Sample]) -> None:
    step = PlainStep({"policy": model}, LocalOps(), CPU, None)
    batch = lay_out([[s] for s in samples], 30)
    out = step.score("policy", batch, frozenset({"logprobs"}), 1.0)
    assert out.logprobs is not None
    assert not out.logprobs.requires_grad
    loss = -(out.logprobs * batch.mask).sum() / batch.mask.sum()
    assert float(loss) == pytest.approx(float(run(model, [batch])[1]["loss"].total), rel=EXACT)
