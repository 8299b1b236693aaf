"""A prompt computed once per micro-batch: outputs, loss and every gradient of rows that compute it each time."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sekkei.data.batch import Batch, Sample
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.policy_loss import GRPOLoss
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Update
from sekkei.train.shared_prompts import flat_batch
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=24, vocab_size=19, qk_norm=True
)
WANTS = frozenset({"logprobs", "entropy", "values"})


def answers(rng: random.Random, prompts: list[int], lengths: list[list[int]]) -> list[Sample]:
    """For each prompt's length, answers of these lengths, with advantages and the sampler's log-probs."""
    samples = []
    for size, own in zip(prompts, lengths, strict=True):
        prompt = [rng.randrange(19) for _ in range(size)]
        for length in own:
            samples.append(
                Sample(
                    ids=prompt + [rng.randrange(19) for _ in range(length)],
                    weights=[0.0] * size + [1.0] * length,
                    per_token={
                        "advantages": [0.0] * size + [rng.gauss(0, 1)] * length,
                        "sampled": [0.0] * size + [-3.0] * length,
                    },
                    per_segment={"length": float(length)},
                )
            )
    return samples


def model() -> Transformer:
    made = build(CONFIG, 0, heads=("lm", "value")).double()
    return made


def as_they_are(model: Transformer, batch: Batch) -> list[Tensor]:
    out = model(batch.ids, batch.positions, DenseAttend(batch.segments), batch.labels, WANTS, 0.7)
    return [out.logprobs, out.entropy, out.values]


@pytest.mark.parametrize("micro_tokens", [1000, 40])
def test_outputs_and_gradients_are_those_of_the_rows(micro_tokens: int) -> None:
    samples = answers(random.Random(1), [9, 7, 1, 5], [[4, 6, 5], [6, 5, 6, 4], [5, 6], [6]])
    policy, shared = model(), 0
    for batch in pack_samples(samples, micro_tokens):
        shared += flat_batch(batch, CPU) is not None
        step = PlainStep({"policy": policy}, LocalOps(), CPU, None)
        out = step._forward("policy", batch, flat_batch(batch, CPU), WANTS, 0.7)
        assert out.logprobs is not None
        assert out.entropy is not None
        assert out.values is not None
        real = batch.segments >= 0
        gradients: list[dict[str, Tensor]] = []
        for found in ([out.logprobs, out.entropy, out.values], as_they_are(policy, batch)):
            generator = torch.Generator().manual_seed(3)
            pulls = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in found]
            policy.zero_grad()
            torch.stack([(x * pull)[real].sum() for x, pull in zip(found, pulls, strict=True)]).sum().backward()
            gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        for one, other in zip([out.logprobs, out.entropy, out.values], as_they_are(policy, batch), strict=True):
            torch.testing.assert_close(one[real], other[real], rtol=0, atol=1e-12)
        for name, gradient in gradients[1].items():
            torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-10, atol=1e-12, msg=name)
    assert shared >= 1


def test_loss_and_gradients_of_grpo() -> None:
    samples = answers(random.Random(2), [12, 10], [[4, 6, 5, 3], [6, 5, 6, 4]])
    loss, found = GRPOLoss(0.2, 0.2, 0.9, aggregation="sequence", ratio="sequence_token"), []
    for width in (200, 1):  # all answers in one micro-batch, and each in its own, where nothing is shared
        policy = model()
        batches = pack_samples(samples, 200) if width == 200 else [b for s in samples for b in pack_samples([s], 200)]
        assert any(flat_batch(batch, CPU) is not None for batch in batches) == (width == 200)
        metrics = PlainStep({"policy": policy}, LocalOps(), CPU, None).backward(Update("policy", batches, loss))
        found.append((metrics["loss"].total, {name: p.grad for name, p in policy.named_parameters()}))
    (one, gradients), (other, expected) = found
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-10, atol=1e-11, msg=name)


def test_counts_by_hand() -> None:
    """Two answers to 9 tokens: 8 are shared, the ninth and all but the last of the answer are each one's own."""
    batch = pack_samples(answers(random.Random(3), [9], [[4, 6]]), 100)[0]
    flat = flat_batch(batch, CPU)
    assert flat is not None
    assert flat.ids.shape == (1, 8 + 4 + 6)
    assert flat.positions[0].tolist() == [*range(8), *range(8, 14), *range(8, 12)] or flat.positions[0].tolist() == [
        *range(8),
        *range(8, 12),
        *range(8, 14),
    ]
    assert (flat.labels[0, :8] == -100).all()
    assert (flat.labels[0, 8:] != -100).all()


def test_nothing_is_shared_where_nothing_is_equal_or_little_is_saved() -> None:
    rng = random.Random(4)
    assert flat_batch(pack_samples(answers(rng, [9, 9], [[4], [6]]), 100)[0], CPU) is None
    assert flat_batch(pack_samples(answers(rng, [3], [[30, 30]]), 100)[0], CPU) is None
    document = [Sample(ids=[1, 2, 3, 4, 5, 6])] * 2  # scored from its first token on: there is no prompt
    assert flat_batch(pack_samples(document, 100)[0], CPU) is None
