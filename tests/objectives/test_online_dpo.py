"""Online DPO: the pairs of a rollout by hand, the update they make, a rollout without pairs, and learning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from sekkei.core.errors import ConfigError
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request
from sekkei.model.config import ModelConfig
from sekkei.model.heads import with_heads
from sekkei.model.init import build
from sekkei.objectives.online_dpo import OnlineDPO, OnlineDPOConfig, best_against_worst
from sekkei.objectives.preference import Pair, pair_batches, with_reference
from sekkei.objectives.rollout import Group, Prompt
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
END = 2
SIZES = ModelConfig(
    hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48, vocab_size=11, qk_norm=True
)


def completion(*tokens: int) -> Completion:
    return Completion(token_ids=tokens, logprobs=(-1.0,) * len(tokens), finish_reason="stop", weights_hash="w", seed=0)


def first_token(answer: Completion) -> Mapping[str, float]:
    return {"reward": float(answer.token_ids[0])}


def group(*firsts: int, prompt: int = 1) -> Group:
    answers = tuple(completion(first, 5 + i, END) for i, first in enumerate(firsts))
    return Group(Prompt((prompt,), first_token), answers, tuple(first_token(a) for a in answers))


def test_pairs_by_hand() -> None:
    pairs = best_against_worst([group(3, 9, 4, 9), group(4, 4), group(7), group(8, 3, 3, prompt=6)])
    assert pairs == [
        Pair((1,), (9, 6, END), (3, 5, END), "online"),
        Pair((6,), (8, 5, END), (3, 6, END), "online"),
    ]


def context(models: Mapping[str, Any], generate: Any, step: int = 0) -> Context:
    score = PlainStep(models, LocalOps(), CPU, None).score
    return Context(models=models, ops=LocalOps(), device=CPU, seed=1, score=score, generate=generate, step=step)


def test_the_update_is_dpo_on_those_pairs() -> None:
    models = {"policy": build(SIZES, 1), "reference": build(SIZES, 2)}
    drawn = [group(3, 9), group(4, 4), group(8, 3, prompt=6)]
    config = OnlineDPOConfig(steps=1, prompts=3, samples=2, beta=0.3)
    ctx = context(models, lambda requests: [list(g.completions) for g in drawn])
    objective = OnlineDPO(lambda i: drawn[i].prompt, config, (END,))
    (update,) = objective.next_step(ctx)
    figures = objective.step_metrics()
    assert figures["pairs"] == 2
    assert figures["zero_spread"] == pytest.approx(1 / 3)
    found = PlainStep(models, LocalOps(), CPU, None).backward(update)["loss"].total
    batches = with_reference(pair_batches(best_against_worst(drawn), 8192), ctx)
    expected = PlainStep(models, LocalOps(), CPU, None).backward(replace(update, micro_batches=batches))["loss"].total
    assert float(found) == float(expected)


def test_a_rollout_without_pairs_takes_no_step() -> None:
    models = {"policy": build(SIZES, 1), "reference": build(SIZES, 2)}
    drawn = [group(4, 4), group(3, 3)]
    objective = OnlineDPO(lambda i: drawn[i].prompt, OnlineDPOConfig(steps=1, prompts=2, samples=2), (END,))
    assert objective.next_step(context(models, lambda requests: [list(g.completions) for g in drawn])) == []
    assert objective.step_metrics()["pairs"] == 0
    assert objective.step_metrics()["zero_spread"] == 1.0


def test_what_it_needs() -> None:
    assert OnlineDPOConfig(steps=1).needs == {"engine", "reference"}
    assert OnlineDPOConfig(steps=1, loss="simpo", reward_model=1.0).needs == {"engine", "reward"}
    drawn = [group(3, 9)]
    objective = OnlineDPO(lambda i: drawn[0].prompt, OnlineDPOConfig(steps=1, prompts=1, samples=2), (END,))
    with pytest.raises(ConfigError, match="needs a reference model"):
        objective.next_step(context({"policy": build(SIZES, 1)}, lambda requests: [list(drawn[0].completions)]))
    wrong = {"samples": 1, "temperature": 0.0, "prompts": 0, "smoothing": 0.1, "reward_model": -1.0, "beta": math.inf}
    for key, value in wrong.items():
        with pytest.raises(ConfigError, match=f"^{key}: "):
            OnlineDPOConfig(steps=1, **{key: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^nll: got 0, but orpo"):
        OnlineDPOConfig(steps=1, loss="orpo", nll=0.0)


def copied(answer: Completion) -> Mapping[str, float]:
    """The answer has to be 5, 6 and the stop token."""
    return {"reward": sum(a == b for a, b in zip(answer.token_ids, (5, 6, END), strict=False)) / 3}


def test_it_learns() -> None:
    policy = build(SIZES, 1)
    models = {"policy": policy, "reference": with_heads(policy, ("lm",))}
    step, engine = PlainStep(models, LocalOps(), CPU, None), Engine(policy, max_batch=64)

    def generate(requests: list[Request]) -> list[list[Completion]]:
        engine.refresh(None)
        return engine.generate(requests)

    config = OnlineDPOConfig(steps=60, prompts=16, samples=4, max_tokens=6, beta=0.1)
    objective = OnlineDPO(lambda i: Prompt((3, 4), copied), config, (END,))
    optimizer = Optimizer(policy, OptimConfig(lr=2e-3, schedule="constant"), 60)
    rewards = []
    for number in range(60):
        for update in objective.next_step(context(models, generate, number)):
            step.backward(update)
            optimizer.step(number)
        rewards.append(objective.step_metrics()["reward"])
    assert statistics.fmean(rewards[:3]) < 0.3
    assert statistics.fmean(rewards[-5:]) > 0.85
