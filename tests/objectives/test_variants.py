"""The GRPO family around its loss: advantages, rewards, dynamic sampling, minibatches, and what is refused."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.batch import Batch
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.output import Output
from sekkei.objectives.advantages import group_advantages, to_go, whitened
from sekkei.objectives.grpo import GRPO, GRPOConfig, group_samples, split
from sekkei.objectives.reward import reward_groups
from sekkei.objectives.rollout import (
    Group,
    Prompt,
    check_exact,
    group_figures,
    overlong_penalty,
    roll_out,
    weighted,
)
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Context
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
END = 2


def completion(*tokens: int, weights: str = "w") -> Completion:
    ended = tokens[-1] == END
    return Completion(
        token_ids=tokens,
        logprobs=tuple(-0.5 for _ in tokens),
        finish_reason="stop" if ended else "length",
        weights_hash=weights,
        seed=0,
    )


def first_token(answer: Completion) -> Mapping[str, float]:
    return {"reward": float(answer.token_ids[0])}


class Drawer:
    """An engine whose answers to prompt p are given; the requests are kept."""

    def __init__(self, answers: Callable[[int, int], Completion]) -> None:
        self.answers = answers
        self.requests: list[Request] = []

    def __call__(self, requests: list[Request]) -> list[list[Completion]]:
        self.requests += requests
        return [[self.answers(request.prompt_ids[0], i) for i in range(request.n)] for request in requests]


def fixed(role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
    """Log-probs by role: the reference finds every token .25 nats less likely."""
    base = -1.0 - 0.1 * (batch.labels % 3)
    return Output(logprobs=(base - 0.25 * (role == "reference")) * (batch.mask != 0))


def context(generate: Any, score: Any = fixed, **models: Any) -> Context:
    roles = {"policy": None, "reference": None, **models}
    return Context(models=roles, ops=LocalOps(), device=CPU, seed=1, score=score, generate=generate)  # type: ignore[arg-type]


def numbered(index: int) -> Prompt:
    return Prompt((index,), first_token)


def three_kinds(prompt: int, i: int) -> Completion:
    """Prompts 0, 3, 6 … have no spread; the others' answers start with 3, 4, 5 … and have 1 to 3 tokens more."""
    return completion(3 if prompt % 3 == 0 else 3 + i, *[7] * (i % 3 + 1), END)


def test_advantages_by_hand() -> None:
    rewards = [1.0, 2.0, 6.0]
    assert group_advantages(rewards, "group_mean") == pytest.approx([-2.0, -1.0, 3.0])
    assert group_advantages(rewards, "leave_one_out") == pytest.approx([1 - 4.0, 2 - 3.5, 6 - 1.5])
    assert group_advantages(rewards, "batch_std") == rewards
    for kind in ("group_std", "group_mean", "leave_one_out"):
        assert group_advantages([0.1] * 7, kind) == [0.0] * 7  # type: ignore[arg-type]
        assert group_advantages([2.0], kind) == [0.0]  # type: ignore[arg-type]
        assert group_advantages([], kind) == []  # type: ignore[arg-type]


def test_sums_to_go_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
    segments = torch.tensor([[0, 0, 0, 1, 1, -1]])
    assert to_go(x, mask, segments).tolist() == [[0.0, 6.0, 4.0, 0.0, 16.0, 0.0]]


def test_whitening_is_over_scored_tokens_of_all_batches() -> None:
    values = [torch.tensor([[1.0, 99.0, 3.0]]), torch.tensor([[5.0, 7.0, 99.0]])]
    masks = [torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0]])]
    done = whitened(values, masks, LocalOps(), eps=0.0)
    scale = statistics.pstdev([1, 3, 5, 7])
    assert done[0].tolist()[0] == pytest.approx([-3 / scale, 0.0, -1 / scale])
    assert done[1].tolist()[0] == pytest.approx([1 / scale, 3 / scale, 0.0])
    same = whitened([torch.ones(1, 3)], [torch.ones(1, 3)], LocalOps())
    assert same[0].abs().max() < 1e-3  # no spread: no advantage, no NaN


def advantages(batches: Sequence[Batch]) -> dict[int, list[float]]:
    """By number of the answer: the advantages of its scored tokens."""
    found: dict[int, list[float]] = {}
    for batch in batches:
        for b, s in (batch.extra["length"] > 0).nonzero().tolist():
            here = (batch.segments[b] == s) & (batch.mask[b] != 0)
            found[int(batch.extra["number"][b, s])] = batch.extra["advantages"][b][here].tolist()
    return found


def test_a_kl_in_the_reward_of_whole_answers() -> None:
    """RLOO: each answer's reward less β Σ_t k1, then leave one out."""
    config = GRPOConfig(steps=1, prompts=2, samples=3, variant="rloo", kl=0.4, max_tokens=8)
    objective = GRPO(lambda i: numbered(i + 1), config, (END,))
    assert objective.needs == {"engine", "reference"}
    (update,) = objective.next_step(context(Drawer(three_kinds)))
    found = advantages(update.micro_batches)
    for start, _ in ((0, 1), (3, 2)):
        less = [3 + i - 0.4 * 0.25 * (i % 3 + 3) for i in range(3)]
        expected = group_advantages(less, "leave_one_out")
        for i in range(3):
            assert found[start + i] == pytest.approx([expected[i]] * (i % 3 + 3), rel=1e-5)


def test_a_kl_in_the_reward_of_tokens() -> None:
    """REINFORCE++: the KL still to come is taken off, then all tokens of the rollout are whitened together."""
    config = GRPOConfig(steps=1, prompts=2, samples=3, variant="reinforce_pp", kl=0.4, max_tokens=8, minibatches=2)
    objective = GRPO(lambda i: numbered(i + 1), config, (END,))
    updates = objective.next_step(context(Drawer(three_kinds)))
    assert len(updates) == 2
    raw = [[3 + i - 0.4 * 0.25 * left for left in range(i % 3 + 3, 0, -1)] for _ in range(2) for i in range(3)]
    flat = [value for row in raw for value in row]
    mean, scale = statistics.fmean(flat), statistics.pstdev(flat)
    for part, update in enumerate(updates):
        found = advantages(update.micro_batches)
        for i in range(3):
            assert found[i] == pytest.approx([(x - mean) / scale for x in raw[3 * part + i]], rel=1e-4)


def test_old_logprobs_are_those_before_the_first_update() -> None:
    for settings, there in (({}, False), ({"updates": 2}, True), ({"minibatches": 2}, True)):
        config = GRPOConfig(steps=1, prompts=2, samples=3, **settings)  # type: ignore[arg-type]
        updates = GRPO(numbered, config, (END,)).next_step(context(Drawer(three_kinds)))
        assert len(updates) == config.updates * config.minibatches
        for update in updates:
            for batch in update.micro_batches:
                assert ("old" in batch.extra) == there
                if there:
                    expected = fixed("policy", batch, frozenset(), 1.0).logprobs
                    assert torch.equal(batch.extra["old"], expected)  # type: ignore[arg-type]


def test_dynamic_sampling_refills_groups_without_spread() -> None:
    engine = Drawer(three_kinds)
    config = GRPOConfig(steps=1, prompts=4, samples=3, variant="dapo", max_tokens=8)
    objective = GRPO(numbered, config, (END,))
    objective.next_step(context(engine))
    assert [group.prompt.ids[0] for group in objective.groups] == [1, 2, 4, 5]  # 0 and 3 are drawn anew
    figures = objective.step_metrics()
    assert figures["refills"] == 1
    assert figures["groups_drawn"] == 6
    assert figures["zero_spread"] == pytest.approx(2 / 6)  # of all that were drawn
    assert objective.next_prompt == 6
    assert len({request.seed for request in engine.requests}) == 6
    plain = GRPO(numbered, replace(config, dynamic_sampling=False), (END,))
    plain.next_step(context(engine))
    assert [group.prompt.ids[0] for group in plain.groups] == [0, 1, 2, 3]


def test_dynamic_sampling_gives_up() -> None:
    """All groups without spread: after the last refill they are taken as they are, with advantage 0."""
    config = GRPOConfig(steps=1, prompts=2, samples=3, variant="dapo", max_refills=3)
    objective = GRPO(lambda i: numbered(0), config, (END,))
    (update,) = objective.next_step(context(Drawer(three_kinds)))
    figures = objective.step_metrics()
    assert figures["refills"] == 3
    assert figures["groups_drawn"] == 8
    assert figures["zero_spread"] == 1.0
    assert len(objective.groups) == 2
    assert all(value == 0.0 for row in advantages(update.micro_batches).values() for value in row)


@pytest.mark.parametrize("variant", ["token", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp"])
def test_a_rollout_without_spread_is_no_nan(variant: Any) -> None:
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=19)
    models = {"policy": build(config, 1), "reference": build(config, 2)}
    step = PlainStep(models, LocalOps(), CPU, None)
    ctx = context(Drawer(three_kinds), step.score, **models)
    point = GRPOConfig(steps=1, prompts=2, samples=3, variant=variant, minibatches=2)
    updates = GRPO(lambda i: numbered(0), point, (END,)).next_step(ctx)
    for update in updates:
        metrics = step.backward(update)
        assert math.isfinite(float(metrics["loss"].total))
        for parameter in models["policy"].parameters():
            assert parameter.grad is not None
            assert bool(torch.isfinite(parameter.grad).all())
            if point.point.kl == 0:
                assert float(parameter.grad.abs().max()) == 0.0


def test_overlong_answers_by_hand() -> None:
    assert [overlong_penalty(n, 20, 4) for n in (1, 16, 17, 18, 20, 25)] == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    config = GRPOConfig(steps=1, prompts=1, samples=3, max_tokens=6, overlong_buffer=4, overlong_penalty=2.0)
    objective = GRPO(lambda i: numbered(1), config, (END,))
    objective.next_step(context(Drawer(three_kinds)))
    assert objective.groups[0].rewards == [3 - 0.5, 4 - 1.0, 5 - 1.5]  # 3, 4 and 5 tokens
    assert objective.step_metrics()["overlong_penalty"] == pytest.approx(-1.0)


def test_truncated_answers_may_be_left_out() -> None:
    answers = (completion(3, 4, END), completion(3, 4, 5))
    group = Group(Prompt((1,), first_token), answers, ({"reward": 1.0}, {"reward": 0.0}))
    config = GRPOConfig(steps=1, prompts=1, samples=2, mask_truncated=True)
    kept, cut = group_samples([group], config, config.point)
    assert list(kept.weights or ()) == [0.0, 1.0, 1.0, 1.0]
    assert list(cut.weights or ()) == [0.0] * 4
    (batch,) = pack_samples([kept, cut], 64)
    counts = {a: float(replace(config.make_loss(), aggregation=a, max_tokens=10).units(batch)["tokens"])
              for a in ("token", "sequence", "constant")}  # fmt: skip
    assert counts == {"token": 3.0, "sequence": 2.0, "constant": 20.0}  # an answer left out still is one of the group


def test_several_rewards_with_weights() -> None:
    judge = weighted({"right": (lambda c: 1.0 if c.token_ids[0] == 3 else 0.0, 1.0), "short": (len_of, -0.1)})
    assert judge(completion(3, 4, END)) == pytest.approx({"reward": 0.7, "rewards/right": 1.0, "rewards/short": 3.0})
    groups = [
        Group(Prompt((1,), judge), answers, tuple(judge(c) for c in answers))
        for answers in [(completion(3, END), completion(4, 5, 6, END))]
    ]
    figures = group_figures(groups)
    assert figures["rewards/right"] == 0.5
    assert figures["rewards/right/std"] == 0.5
    assert figures["rewards/short/std"] == 1.0
    assert figures["reward_std"] == pytest.approx(statistics.pstdev([0.8, -0.4]))


def len_of(answer: Completion) -> float:
    return float(len(answer.token_ids))


def failing(answer: Completion) -> Mapping[str, float]:
    if answer.token_ids[0] == 4:
        raise ValueError("no number in the answer")
    return {"reward": math.nan if answer.token_ids[0] == 5 else 1.0}


def test_a_reward_that_fails() -> None:
    ctx = context(Drawer(three_kinds))
    with pytest.raises(UserError, match="ValueError: no number"):
        roll_out(ctx, [Prompt((1,), failing)], Sampling(max_tokens=8), 2)
    with pytest.raises(UserError, match="nan: rewards must be finite"):
        roll_out(ctx, [Prompt((1,), lambda c: {"reward": math.nan})], Sampling(max_tokens=8), 2)
    (group,) = roll_out(ctx, [Prompt((1,), failing)], Sampling(max_tokens=8), 5, on_error="skip")
    assert group.failed == 2
    assert len(group.completions) == len(group.figures) == 3
    assert group_figures([group])["reward_errors"] == 2
    with pytest.raises(UserError, match="could be judged"):
        group_figures([replace(group, completions=(), figures=(), failed=5)])
    config = GRPOConfig(steps=1, prompts=2, samples=2, reward_errors="skip")
    objective = GRPO(lambda i: Prompt((i,), failing), config, (END,))
    (update,) = objective.next_step(context(Drawer(three_kinds)))
    assert objective.step_metrics()["reward_errors"] == 1  # prompt 1's second answer; its first stands alone
    assert all(math.isfinite(x) for row in advantages(update.micro_batches).values() for x in row)


def test_a_rollout_of_two_weights_is_refused() -> None:
    mixed = Drawer(lambda prompt, i: completion(3, END, weights="ab"[i]))
    with pytest.raises(UserError, match="different weights"):
        roll_out(context(mixed), [numbered(1)], Sampling(max_tokens=8), 2)


def test_a_reward_models_score_is_added() -> None:
    def score(role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        assert role == "reward"
        values: Tensor = batch.ids.double() * 0.5
        return Output(values=values)

    groups = roll_out(context(Drawer(three_kinds)), [numbered(1), numbered(2)], Sampling(max_tokens=8), 2)
    (group, _) = reward_groups(context(None, score), groups, 0.25, 64)
    assert group.rewards == pytest.approx([3 + 0.25 * END / 2, 4 + 0.25 * END / 2])  # read at the stop token
    assert group.figures[0]["rewards/model"] == END / 2
    config = GRPOConfig(steps=1, prompts=1, samples=2, reward_model=0.25)
    assert GRPO(numbered, config, (END,)).needs == {"engine", "reward"}


def test_groups_are_split_without_rest() -> None:
    groups = [Group(numbered(i), (), ()) for i in range(7)]
    assert [[g.prompt.ids[0] for g in part] for part in split(groups, 3)] == [[0, 1], [2, 3, 4], [5, 6]]
    assert [len(part) for part in split(groups[:2], 3)] == [1, 1]
    rng = random.Random(1)
    for _ in range(20):
        n, parts = rng.randrange(1, 30), rng.randrange(1, 9)
        assert sum(len(part) for part in split(groups * 5, parts)) == 35
        assert all(split(groups[:n], parts))


def test_a_kl_without_a_reference_is_refused() -> None:
    ctx = context(Drawer(three_kinds))
    bare = replace(ctx, models={"policy": None})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="no reference model"):
        GRPO(numbered, GRPOConfig(steps=1, prompts=1, samples=2, variant="grpo"), (END,)).next_step(bare)


def test_sampling_that_a_loss_cannot_use_is_refused() -> None:
    for key, sampling in (("top_p", Sampling(top_p=0.9)), ("top_k", Sampling(top_k=5)),
                          ("temperature", Sampling(temperature=0))):  # fmt: skip
        with pytest.raises(ConfigError, match=f"^{key}: "):
            check_exact(sampling)
        with pytest.raises(ConfigError, match=f"^{key}: "):
            roll_out(context(Drawer(three_kinds)), [numbered(1)], sampling, 2)
    roll_out(context(Drawer(three_kinds)), [numbered(1)], Sampling(top_p=0.9), 2, exact=False)  # pairs may
