"""Answers that somebody reads: the judge's part of the reward, what is left out, and all three kinds that roll out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from sekkei.core.errors import UserError
from sekkei.engine.request import Completion, Request
from sekkei.model.config import ModelConfig
from sekkei.model.heads import with_heads
from sekkei.model.init import build
from sekkei.objectives.grpo import GRPO, GRPOConfig
from sekkei.objectives.judged import UNREAD, Asked, Judged, Verdict
from sekkei.objectives.online_dpo import OnlineDPO, OnlineDPOConfig
from sekkei.objectives.ppo import PPO, PPOConfig
from sekkei.objectives.preference import Pair, pair_batches, with_reference
from sekkei.objectives.rollout import Group, OnError, Prompt
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Context
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
END = 2
SIZES = ModelConfig(
    hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=11, qk_norm=True
)
SCORES: dict[str, Verdict] = {
    "3": Verdict(0.25),
    "9": Verdict(1.0),
    "4": Verdict(0.0),
    "5": Verdict(None, UNREAD),
    "6": Verdict(None, "timed out"),
}


def completion(first: int, ended: bool = True) -> Completion:
    tokens = (first, 7, END) if ended else (first, 7, 7)
    return Completion(token_ids=tokens, logprobs=(-1.0,) * 3, finish_reason="stop" if ended else "length",
                      weights_hash="w", seed=0)  # fmt: skip


def read(answer: Completion) -> str | None:
    return str(answer.token_ids[0]) if answer.finish_reason == "stop" else None


def grade(asked: Asked) -> tuple[list[list[Verdict]], dict[str, int]]:
    """By the answer's text; 0 for one that nobody reads."""
    found = [[Verdict(0.0) if text is None else SCORES[text] for text in answers] for _, answers in asked]
    return found, {"asked": sum(text is not None for _, answers in asked for text in answers), "unread": 0}


def plain(answer: Completion) -> Mapping[str, float]:
    return {"reward": 1.0, "rewards/right": 1.0}


def group(answers: Sequence[Completion], text: str = "which?") -> Group:
    return Group(Prompt((1,), plain, text), tuple(answers), tuple(plain(a) for a in answers))


def judged(on_error: OnError = "stop") -> Judged:
    return Judged(grade, read, 2.0, on_error)


def test_what_has_no_score_is_left_out_and_counted() -> None:
    panel = judged("skip")
    firsts = [completion(n) for n in (3, 5, 9, 6)]
    (found,) = panel([group([*firsts, completion(3, ended=False)])])
    assert [answer.token_ids[0] for answer in found.completions] == [3, 9, 3]
    assert found.rewards == [1.5, 3.0, 1.0], "1 of the prompt's own judge and twice the score"
    assert [values["rewards/judge"] for values in found.figures] == [0.25, 1.0, 0.0]
    assert (found.failed, found.failures) == (2, ("judge_unread", "judge"))
    panel([group([completion(9)])])
    assert panel.figures() == {"judge/asked": 5.0, "judge/unread": 0.0}
    assert panel.figures() == {}, "they begin anew"


def test_a_failed_call_stops_the_run_and_an_unread_reply_does_not() -> None:
    with pytest.raises(UserError, match="the reward function 'judge' failed: timed out"):
        judged()([group([completion(6)])])
    (found,) = judged()([group([completion(5)])])
    assert (found.completions, found.failures) == ((), ("judge_unread",))


def test_verdicts_may_come_as_json() -> None:
    """Rank 0 has asked, and sends them."""
    panel = Judged(lambda asked: ([[[0.5, ""], [None, UNREAD]]], {}), read, 1.0, "stop")  # type: ignore[arg-type, return-value]
    (found,) = panel([group([completion(3), completion(4)])])
    assert found.rewards == [1.5]
    with pytest.raises(RuntimeError, match="has no text"):
        panel([group([completion(3)], text="")])


def context(answers: list[list[Completion]], heads: tuple[str, ...] = ("lm",)) -> Context:
    policy = with_heads(build(SIZES, 1), heads)
    models = {"policy": policy, "reference": build(SIZES, 2)}

    def generate(requests: list[Request]) -> list[list[Completion]]:
        return answers

    score = PlainStep(models, LocalOps(), CPU, None).score
    return Context(models=models, ops=LocalOps(), device=CPU, seed=1, score=score, generate=generate, step=0)


ANSWERS = [[completion(3), completion(9), completion(5)], [completion(4), completion(4), completion(5)]]


def prompt(index: int) -> Prompt:
    return Prompt((1, 3), plain, f"question {index}")


def test_grpo_learns_from_what_the_judge_says() -> None:
    config = GRPOConfig(steps=1, prompts=2, samples=3, max_tokens=4, variant="rloo", kl=0.0)
    objective = GRPO(prompt, config, (END,), judged=judged())
    (update,) = objective.next_step(context(ANSWERS))
    figures = objective.step_metrics()
    assert figures["rewards/judge"] == pytest.approx(1.25 / 4)
    assert figures["rewards/right"] == 1.0
    assert figures["reward"] == pytest.approx(1 + 2 * 1.25 / 4)
    assert figures["reward_errors"] == figures["reward_errors/judge_unread"] == 2
    assert figures["judge/asked"] == 6
    assert figures["zero_spread"] == 0.5
    gains = torch.cat([batch.extra["advantages"][batch.mask != 0] for batch in update.micro_batches])
    assert sorted({round(float(gain), 6) for gain in gains}) == [-0.75, 0.75], "1.5 against 3.0, in two of four answers"


def test_groups_without_spread_are_drawn_anew_by_the_judge_too() -> None:
    config = GRPOConfig(steps=1, prompts=2, samples=3, max_tokens=4, variant="dapo", max_refills=1)
    objective = GRPO(prompt, config, (END,), judged=judged())
    ctx = context(ANSWERS)
    assert ctx.generate is not None
    drawn = iter([ANSWERS, ANSWERS[:1]])
    object.__setattr__(ctx, "generate", lambda requests: next(drawn))
    objective.next_step(ctx)
    figures = objective.step_metrics()
    assert figures["refills"] == 1
    assert figures["judge/asked"] == 9
    assert all(one.has_spread for one in objective.groups)


def test_ppo_and_online_dpo_take_it_too() -> None:
    ppo = PPO(prompt, PPOConfig(steps=1, prompts=2, samples=3, max_tokens=4, critic="shared", kl=0, epochs=1), (END,),
              judged=judged())  # fmt: skip
    ppo.next_step(context(ANSWERS, ("lm", "value")))
    assert ppo.step_metrics()["rewards/judge"] == pytest.approx(1.25 / 4)
    online = OnlineDPO(prompt, OnlineDPOConfig(steps=1, prompts=2, samples=3, max_tokens=4), (END,), judged=judged())
    ctx = context(ANSWERS)
    (update,) = online.next_step(ctx)
    assert online.step_metrics()["pairs"] == 1
    (pair,) = [p for p in [online.groups[0]] if p.has_spread]
    best, worst = pair.completions[1], pair.completions[0]
    assert (best.token_ids[0], worst.token_ids[0]) == (9, 3)
    expected = with_reference(pair_batches([Pair((1, 3), best.token_ids, worst.token_ids, "online")], 8192), ctx)
    assert torch.equal(update.micro_batches[0].ids, expected[0].ids)
