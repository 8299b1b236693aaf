"""Which estimators are unbiased: every answer of a tabular policy, weighed by its probability, nothing sampled.

Three tokens (two words and a stop), at most three of them: 15 answers, 7 states. The expected gradient of our losses,
over all groups of two answers, is compared with the true gradient of expected reward, and of KL.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from sekkei.data.batch import Batch
from sekkei.model.output import Output
from sekkei.objectives.advantages import Advantage, group_advantages, to_go
from sekkei.objectives.policy_loss import Estimator, GRPOLoss, kl_estimate
from sekkei.parallel.ops import LocalOps

STOP, LONGEST = 2, 3
STATES = [prefix for n in range(LONGEST) for prefix in itertools.product((0, 1), repeat=n)]
ANSWERS = [(*s, STOP) for s in STATES] + list(itertools.product((0, 1), repeat=LONGEST))


def table(seed: int) -> Tensor:
    return torch.randn(len(STATES), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


POLICY, REFERENCE = table(1), table(2)
REWARDS = torch.rand(len(ANSWERS), dtype=torch.float64, generator=torch.Generator().manual_seed(3)).tolist()


def logprobs(logits: Tensor, answers: Sequence[tuple[int, ...]]) -> Tensor:
    """[answers, LONGEST], 0 behind the end."""
    scores = logits.log_softmax(-1)
    rows = [
        torch.stack([scores[STATES.index(a[:t]), a[t]] if t < len(a) else scores.sum() * 0 for t in range(LONGEST)])
        for a in answers
    ]
    return torch.stack(rows)


def chances(logits: Tensor) -> Tensor:
    return logprobs(logits, ANSWERS).sum(1).exp()


def batch_of(answers: Sequence[tuple[int, ...]], advantages: Sequence[float], now: Tensor) -> Batch:
    inside = torch.tensor([[t < len(a) for t in range(LONGEST)] for a in answers])
    zeros = torch.zeros(inside.shape, dtype=torch.int64)
    extra = {
        "advantages": torch.tensor(advantages, dtype=torch.float64)[:, None] * inside,
        "sampled": now.detach(),
        "reference": logprobs(REFERENCE, answers),
        "length": torch.tensor([[float(len(a))] for a in answers], dtype=torch.float64),
    }
    segments = torch.where(inside, 0, -1)
    return Batch(ids=zeros, labels=zeros, mask=inside.double(), positions=zeros, segments=segments, extra=extra)


def loss_value(loss: GRPOLoss, answers: Sequence[tuple[int, ...]], advantages: Sequence[float], now: Tensor) -> Tensor:
    batch = batch_of(answers, advantages, now)
    terms, _ = loss.terms(Output(logprobs=now, entropy=torch.zeros_like(now)), batch, LocalOps())
    return terms["tokens"] / loss.units(batch)["tokens"]


def expected_step(loss: GRPOLoss, kind: Advantage) -> Tensor:
    """Minus the expected gradient over all groups of two."""
    logits = POLICY.clone().requires_grad_()
    p = chances(POLICY)
    every = logprobs(logits, ANSWERS)
    total = torch.zeros((), dtype=torch.float64)
    for i, j in itertools.product(range(len(ANSWERS)), repeat=2):
        advantages = group_advantages([REWARDS[i], REWARDS[j]], kind)
        total = total + p[i] * p[j] * loss_value(loss, [ANSWERS[i], ANSWERS[j]], advantages, every[[i, j]])
    (gradient,) = torch.autograd.grad(total, logits)
    return -gradient


def gradient_of(value: Callable[[Tensor], Tensor]) -> Tensor:
    logits = POLICY.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(logits), logits)
    return gradient


TRUE = gradient_of(lambda logits: (chances(logits) * torch.tensor(REWARDS, dtype=torch.float64)).sum())


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_the_answers_are_all_there_are() -> None:
    assert float(chances(POLICY).sum()) == pytest.approx(1.0, abs=1e-14)


def test_rloo_is_unbiased() -> None:
    step = expected_step(GRPOLoss(0.2, 0.2, 1.0, ratio="sequence_sum", aggregation="sequence"), "leave_one_out")
    assert float((step - TRUE).norm() / TRUE.norm()) < 1e-12


def test_dr_grpo_has_the_right_direction() -> None:
    """Its length: a group's own answer in the mean costs 1/2 of it, and the divisor is a constant."""
    step = expected_step(GRPOLoss(0.2, 0.2, 1.0, aggregation="constant", max_tokens=5), "group_mean")
    assert float((step * 5 * 2 - TRUE).norm() / TRUE.norm()) < 1e-12


def test_means_over_lengths_are_biased() -> None:
    """Per-sequence means (GRPO) lean away most, one mean over all tokens (DAPO) less; neither is the gradient."""
    sequence = cosine(expected_step(GRPOLoss(0.2, 0.2, 1.0, aggregation="sequence"), "group_mean"), TRUE)
    token = cosine(expected_step(GRPOLoss(0.2, 0.2, 1.0), "group_mean"), TRUE)
    assert 0.8 < sequence < token < 0.9999


def test_a_standard_deviation_in_the_advantage_is_another_objective() -> None:
    """With two answers (r - mean) / std only tells which was better: sizes of rewards are lost."""
    loss = GRPOLoss(0.2, 0.2, 1.0, aggregation="constant", max_tokens=5)
    assert cosine(expected_step(loss, "group_std"), TRUE) < 0.999


def kl_step(estimator: Estimator) -> Tensor:
    """The expected gradient of β = 1 times the KL term in the loss, summed over an answer's tokens."""
    loss = GRPOLoss(0.2, 0.2, 1.0, aggregation="constant", max_tokens=1, kl=1.0, estimator=estimator)
    logits = POLICY.clone().requires_grad_()
    every, p = logprobs(logits, ANSWERS), chances(POLICY)
    values = [loss_value(loss, [a], [0.0], every[[i]]) * p[i] for i, a in enumerate(ANSWERS)]
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), logits)
    return gradient


def whole_kl(logits: Tensor) -> Tensor:
    gap = (logprobs(logits, ANSWERS) - logprobs(REFERENCE, ANSWERS)).sum(1)
    return (chances(logits) * gap).sum()


def kl_of_frozen_states(logits: Tensor) -> Tensor:
    """Σ over states of (how often the policy is there, a constant) · KL there."""
    p = chances(POLICY)
    reached = [sum(p[i] for i, a in enumerate(ANSWERS) if len(a) > len(s) and a[: len(s)] == s) for s in STATES]
    now, then = logits.log_softmax(-1), REFERENCE.log_softmax(-1)
    return (torch.stack(reached) * (now.exp() * (now - then)).sum(-1)).sum()


KL, FROZEN = gradient_of(whole_kl), gradient_of(kl_of_frozen_states)


def test_k1_in_the_loss_does_nothing() -> None:
    assert float(kl_step("k1").norm() / KL.norm()) < 1e-12


@pytest.mark.parametrize("estimator", ["k2", "k3_ratio"])
def test_k2_and_k3_times_the_ratio_follow_the_kl_of_frozen_states(estimator: Estimator) -> None:
    assert float((kl_step(estimator) - FROZEN).norm() / FROZEN.norm()) < 1e-12
    assert float((KL - FROZEN).norm() / KL.norm()) > 0.01


def test_k3_in_the_loss_is_biased() -> None:
    """Its gradient is that of the other divergence, KL(ref || policy), of frozen states."""
    step = kl_step("k3")
    assert float((step - FROZEN).norm() / FROZEN.norm()) > 0.05

    def reverse(logits: Tensor) -> Tensor:
        p = chances(POLICY)
        reached = [sum(p[i] for i, a in enumerate(ANSWERS) if len(a) > len(s) and a[: len(s)] == s) for s in STATES]
        now, then = logits.log_softmax(-1), REFERENCE.log_softmax(-1)
        return (torch.stack(reached) * (then.exp() * (then - now)).sum(-1)).sum()

    assert float((step - gradient_of(reverse)).norm() / step.norm()) < 1e-12


@pytest.mark.parametrize("per_token", [False, True])
def test_k1_in_the_reward_is_unbiased(per_token: bool) -> None:
    """Taken from the whole answer's reward (RLOO) or as what is still to come of it (REINFORCE++, PPO)."""
    logits = POLICY.clone().requires_grad_()
    every, p = logprobs(logits, ANSWERS), chances(POLICY)
    batch = batch_of(ANSWERS, [0.0] * len(ANSWERS), every)
    k1 = kl_estimate(every.detach(), batch.extra["reference"], "k1") * batch.mask
    penalty = to_go(k1, batch.mask, batch.segments) if per_token else k1.sum(1, keepdim=True).expand_as(k1)
    (gradient,) = torch.autograd.grad((p[:, None] * penalty * every * batch.mask).sum(), logits)
    assert float((gradient - KL).norm() / KL.norm()) < 1e-12
