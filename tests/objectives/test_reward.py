"""The reward model: parity with TRL's trainer, by hand, and a rule that it must learn."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sekkei.core import runlog
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.runlog import RunLog
from sekkei.data.batch import Batch
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.output import Output
from sekkei.objectives.preference import Pair
from sekkei.objectives.reward import (
    RewardConfig,
    RewardLoss,
    RewardModelling,
    answer_sample,
    calibration,
    pair_gaps,
    reward_batches,
    score_answers,
)
from sekkei.parallel.ops import LocalOps
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import Loop, LoopConfig, Trainee
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
LIMIT = 1e-5
CONFIG = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=19)


def pairs_of(golden: Any) -> list[Pair]:
    return [Pair(tuple(p["prompt"]), tuple(p["chosen"]), tuple(p["rejected"])) for p in golden.inputs["pairs"]]


CASES = ["reward", "reward_margin", "reward_center"]


@pytest.mark.parametrize("micro_tokens", [1, 1024])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_every_gradient_are_those_of_trl(golden: Any, case: str, micro_tokens: int) -> None:
    settings = golden.settings(case)
    margins = golden.inputs["margins"] if settings["margin"] else None
    loss = RewardLoss(settings["center_rewards_coefficient"] or 0.0)
    batches = reward_batches(pairs_of(golden), micro_tokens, margins)
    ctx = context({"policy": golden.model("reward")})
    assert golden.error(case, ctx, batches, loss) < LIMIT


def test_every_case_of_the_file_is_compared(golden: Any) -> None:
    assert {name for name in golden.results["cases"] if name.startswith("reward")} == set(CASES)


def one_later(batch: Batch) -> Batch:
    return replace(batch, mask=batch.mask.roll(1, 1))


def whole_answer(batch: Batch) -> Batch:
    return replace(batch, mask=(batch.segments >= 0).float())


@pytest.mark.parametrize("mutate", [one_later, whole_answer])
def test_a_reward_read_elsewhere_is_seen(golden: Any, mutate: Any) -> None:
    ctx = context({"policy": golden.model("reward")})
    batches = [mutate(batch) for batch in reward_batches(pairs_of(golden), 1024)]
    assert golden.error("reward", ctx, batches, RewardLoss()) > 100 * LIMIT
    plain = reward_batches(pairs_of(golden), 1024)
    assert golden.error("reward_margin", ctx, plain, RewardLoss()) > 100 * LIMIT  # the margin forgotten
    assert golden.error("reward_center", ctx, plain, RewardLoss()) > 100 * LIMIT


def context(models: dict[str, Any]) -> Context:
    ops = LocalOps()
    return Context(models=models, ops=ops, device=CPU, seed=0, score=PlainStep(models, ops, CPU, None).score)


def test_by_hand() -> None:
    """Rewards 2 and 1 at the answers' last tokens; margin .5, centring .1."""
    (batch,) = reward_batches([Pair((5,), (10, 1), (11,))], 8, [0.5])
    values = torch.full(batch.ids.shape, 9.0)
    values[0, 2], values[0, 4] = 2.0, 1.0  # 5 10 [1] 5 [11]
    assert batch.ids[0, :5].tolist() == [5, 10, 1, 5, 11]
    terms, metrics = RewardLoss(0.1).terms(Output(values=values), batch, LocalOps())
    assert float(terms["pairs"]) == pytest.approx(math.log(1 + math.exp(-0.5)) + 0.1 * 9)
    means = {name: float(m.total / m.weight) for name, m in metrics.items()}
    assert means == {"rewards/chosen": 2.0, "rewards/rejected": 1.0, "rewards/margins": 1.0, "accuracy": 1.0}
    assert list(answer_sample([3, 4]).weights or ()) == [0.0, 0.0, 1.0]


def test_calibration_by_hand() -> None:
    coin = calibration([0.0, 0.0])
    assert coin == pytest.approx({"accuracy": 0.5, "log_loss": math.log(2), "brier": 0.25, "calibration_error": 0.0})
    gap = math.log(3)  # p = .75: right three times of four is honest
    honest = calibration([gap, gap, gap, -gap])
    assert honest["accuracy"] == 0.75
    assert honest["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    assert honest["brier"] == pytest.approx((3 * 0.0625 + 0.5625) / 4)
    assert calibration([gap, -gap])["calibration_error"] == pytest.approx(0.25)
    assert calibration([1000.0, -1000.0])["log_loss"] == pytest.approx(500.0)  # no overflow


def some_pairs(count: int, seed: int) -> list[Pair]:
    """The answer with more 5s is better."""
    rng, pairs = random.Random(seed), []
    while len(pairs) < count:
        prompt = tuple(rng.randrange(3, 19) for _ in range(rng.randrange(1, 4)))
        a, b = (tuple(rng.choice((5, 6, 7)) for _ in range(rng.randrange(2, 6))) for _ in range(2))
        if a.count(5) != b.count(5):
            pairs.append(Pair(prompt, *((a, b) if a.count(5) > b.count(5) else (b, a))))
    return pairs


class Screen:
    def update(self, done: int, text: str = "") -> None:
        """Nobody looks."""


def test_a_rule_is_learned_and_judges(tmp_path: Path) -> None:
    model = build(CONFIG, seed=1, heads=("reward",))
    models = {"policy": model, "reward": model}
    ctx, held_out = context(models), some_pairs(100, 2)
    before = calibration(pair_gaps(ctx, held_out, 512))["accuracy"]
    config = RewardConfig(steps=40, pairs=16, center=0.01, micro_tokens=1024)
    optim = OptimConfig(kind="adamw", lr=0.03, schedule="constant")
    loop = Loop(
        stage="reward",
        steps=40,
        config=LoopConfig(checkpoint_every=0),
        objective=RewardModelling(some_pairs(300, 1), config),
        trainees={"policy": Trainee(model, Optimizer(model, optim, 40))},
        step=PlainStep(models, LocalOps(), CPU, None),
        ctx=ctx,
        log=RunLog(tmp_path / "metrics.jsonl"),
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
    )
    loop.run(Screen())
    after = calibration(pair_gaps(ctx, held_out, 512))
    assert before == 0.5  # the head starts at 0: every pair is a tie
    assert after["accuracy"] > 0.9
    assert after["log_loss"] < math.log(2)
    records = runlog.read(tmp_path / "metrics.jsonl")
    assert {"accuracy", "rewards/margins", "rewards/chosen", "loss"} <= set(records[-1])
    best, worst = score_answers(ctx, [[4, 5, 5, 5, 5], [4, 6, 6, 6, 6]], 64)
    assert best > worst
    one_by_one = [score_answers(ctx, [ids], 64)[0] for ids in ([4, 5, 5, 5, 5], [4, 6, 6, 6, 6])]
    assert [best, worst] == pytest.approx(one_by_one, abs=1e-5)


def test_state_and_degenerate_pairs() -> None:
    pairs = [Pair((1,), (2,), (2,)), Pair((1,), (3,), (4,)), Pair((1,), (5,), (6,))]
    objective = RewardModelling(pairs, RewardConfig(steps=1, pairs=2), margins=[9.0, 1.0, 2.0])
    assert objective.margins == [1.0, 2.0]  # the margins stay with their pairs
    assert objective.step_metrics() == {"pairs/dropped_equal": 1}
    objective.next_step(context({}))
    other = RewardModelling(pairs, RewardConfig(steps=1, pairs=2))
    other.load_state_dict(objective.state_dict())
    assert other.next_pair == 2
    with pytest.raises(ConfigError, match="other pairs"):
        RewardModelling(pairs[1:2], RewardConfig(steps=1)).load_state_dict(objective.state_dict())
    with pytest.raises(ConfigError, match="no pairs"):
        RewardModelling(pairs[:1], RewardConfig(steps=1))
    for key, value in (("steps", 0), ("pairs", 0), ("center", -1.0), ("center", math.nan)):
        with pytest.raises(ConfigError, match=f"^{key}: "):
            RewardConfig(**{"steps": 1, key: value})  # type: ignore[arg-type]


def test_a_broken_model_is_named() -> None:
    def score(role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        values: Tensor = torch.full(batch.ids.shape, math.nan)
        return Output(values=values)

    with pytest.raises(UserError, match="not finite"):
        score_answers(replace(context({}), score=score), [[1, 2]], 64)
