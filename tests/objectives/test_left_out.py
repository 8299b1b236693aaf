"""What a rollout leaves out: groups that nobody could judge (GRPO), answers without a token (PPO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from sekkei.core.errors import UserError
from sekkei.data.batch import Batch
from sekkei.engine.request import Completion, Request
from sekkei.model.output import Output
from sekkei.objectives.grpo import GRPO, GRPOConfig
from sekkei.objectives.ppo import PPO, PPOConfig
from sekkei.objectives.rollout import Prompt
from sekkei.objectives.variants import Variant
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Context, Update

END = 2


def completion(*tokens: int) -> Completion:
    return Completion(token_ids=tokens, logprobs=(-0.5,) * len(tokens), finish_reason="stop", weights_hash="w", seed=0)


def different(prompt: int, i: int) -> Completion:
    """One to three tokens and the stop token."""
    return completion(3 + i, *[7] * (i % 3), END)


def fixed(role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
    shape = batch.mask.shape
    return Output(logprobs=torch.full(shape, -1.0), values=torch.zeros(shape))


def context(answer: object = different) -> Context:
    def generate(requests: list[Request]) -> list[list[Completion]]:
        return [[answer(request.prompt_ids[0], i) for i in range(request.n)] for request in requests]  # type: ignore[operator]

    roles = dict.fromkeys(("policy", "reference", "critic"))
    return Context(models=roles, ops=LocalOps(), device=torch.device("cpu"), seed=1, score=fixed, generate=generate)  # type: ignore[arg-type]


def first_token(answer: Completion) -> Mapping[str, float]:
    return {"reward": float(answer.token_ids[0])}


def one(answer: Completion) -> Mapping[str, float]:
    return {"reward": 1.0}


def fails(answer: Completion) -> Mapping[str, float]:
    raise RuntimeError("out of order")


def tokens(updates: Sequence[Update]) -> list[list[int]]:
    """Scored tokens of the answers of each update, in the order of their numbers."""
    found = []
    for update in updates:
        sizes: dict[int, int] = {}
        for batch in update.micro_batches:
            for b, s in (batch.extra["length"] > 0).nonzero().tolist():
                sizes[int(batch.extra["number"][b, s])] = int(batch.mask[b][batch.segments[b] == s].sum())
        found.append([size for _, size in sorted(sizes.items())])
    return found


@pytest.mark.parametrize("variant", ["token", "rloo", "reinforce_pp"])
def test_a_group_that_could_not_be_judged_is_no_minibatch(variant: Variant) -> None:
    """Of four groups the last two fail as a whole: the minibatches are of the first two."""
    config = GRPOConfig(steps=1, prompts=4, samples=2, variant=variant, minibatches=2, reward_errors="skip")
    objective = GRPO(lambda index: Prompt((index,), first_token if index < 2 else fails), config, (END,))
    assert tokens(objective.next_step(context())) == [[2, 3], [2, 3]]
    assert objective.step_metrics()["reward_errors"] == 4


def test_a_refill_takes_what_could_be_judged() -> None:
    """Nothing has a spread: groups that are flat fill the rollout, those without an answer do not."""
    config = GRPOConfig(steps=1, prompts=1, samples=2, variant="dapo", reward_errors="skip", max_refills=1)
    objective = GRPO(lambda index: Prompt((index,), one if index else fails), config, (END,))
    assert tokens(objective.next_step(context())) == [[2]]  # one answer of gradient 0 stands for all


def test_an_answer_without_a_token_is_left_out_and_counted() -> None:
    """The first answer of every prompt, and all of the last one."""

    def some_empty(prompt: int, i: int) -> Completion:
        return completion() if i == 0 or prompt == 2 else different(prompt, i)

    config = PPOConfig(steps=1, prompts=3, samples=3, epochs=1, minibatches=2)
    objective = PPO(lambda index: Prompt((index,), one), config, (END,))
    critic, policy, *others = objective.next_step(context(some_empty))
    assert tokens([critic, policy, *others]) == [[3, 4]] * 4
    assert objective.step_metrics()["answers/dropped_empty"] == 5
    assert [len(group.completions) for group in objective.groups] == [3, 3, 3]  # the table shows what was drawn
    objective.next_step(context())
    assert "answers/dropped_empty" not in objective.step_metrics()
    with pytest.raises(UserError, match="all 9 answers of a rollout are empty"):
        objective.next_step(context(lambda prompt, i: completion()))
