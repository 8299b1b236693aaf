"""PPO through the one loop: it learns, a resumed run has the same bits, and heads are exchanged between models."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sekkei.core import runlog
from sekkei.core.runlog import RunLog
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request
from sekkei.model.config import ModelConfig
from sekkei.model.heads import with_heads
from sekkei.model.init import build
from sekkei.objectives.ppo import PPO, PPOConfig
from sekkei.objectives.rollout import Prompt
from sekkei.parallel.ops import LocalOps
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import Loop, LoopConfig, Trainee
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
END = 2
SIZES = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=31, qk_norm=True
)


class Screen:
    def update(self, done: int, text: str = "") -> None:
        """Nobody looks."""


def third_is_first(completion: Completion) -> Mapping[str, float]:
    """The copy task: the answer has to be 5, 6 and the stop token."""
    wanted = (5, 6, END)
    right = sum(a == b for a, b in zip(completion.token_ids, wanted, strict=False))
    return {"reward": right / 3}


def learn(folder: Path, critic: str, steps: int, stop: int | None = None) -> tuple[list[dict], Loop]:
    sizes = replace(SIZES, vocab_size=11, hidden_size=32, intermediate_size=48)
    base = build(sizes, 1)
    policy = with_heads(base, ("lm", "value")) if critic == "shared" else base
    models = {"policy": policy, "reference": with_heads(base, ("lm",))}
    if critic == "separate":
        models["critic"] = with_heads(base, ("value",))
    step, engine = PlainStep(models, LocalOps(), CPU, None), Engine(policy, max_batch=32)

    def sample(requests: list[Request]) -> list[list[Completion]]:
        engine.refresh(None)
        return engine.generate(requests)

    config = PPOConfig(steps=steps, prompts=32, max_tokens=6, epochs=2, minibatches=2, kl=0.01, critic=critic)  # type: ignore[arg-type]
    optim = OptimConfig(lr=1e-3, schedule="constant")
    trained = [role for role in ("policy", "critic") if role in models]
    loop = Loop(
        stage="ppo",
        steps=steps if stop is None else stop,
        config=LoopConfig(checkpoint_every=5),
        objective=PPO(lambda i: Prompt((3, 4), third_is_first), config, (END,)),
        trainees={role: Trainee(models[role], Optimizer(models[role], optim, steps)) for role in trained},
        step=step,
        ctx=Context(models=models, ops=step.ops, device=CPU, seed=3, score=step.score, generate=sample),
        log=RunLog(folder / "metrics.jsonl"),
        checkpoints=Checkpoints(folder / "checkpoints"),
    )
    loop.run(Screen())
    return runlog.read(folder / "metrics.jsonl"), loop


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_it_learns(tmp_path: Path, critic: str) -> None:
    records, _ = learn(tmp_path, critic, 65)
    rewards = [record["reward"] for record in records]
    assert statistics.fmean(rewards[:3]) < 0.3  # chance is about .1
    assert statistics.fmean(rewards[-5:]) > 0.85
    last = records[-1]
    named = {"explained_variance", "approx_kl", "clip_fraction", "kl", "kl_answer", "kl_coefficient", "entropy",
             "reward_std", "completion_tokens", "ended", "engine_gap"}  # fmt: skip
    assert named <= set(last)
    values = {"value_error", "value_clip_fraction"}
    assert {name if critic == "shared" else f"critic/{name}" for name in values} <= set(last)
    if critic == "separate":  # a shared trunk serves the policy first: 0.1 of the loss is the value's
        assert statistics.fmean([r["explained_variance"] for r in records[-20:]]) > 0.3


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    _, whole = learn(tmp_path / "whole", "separate", 10)
    learn(tmp_path / "cut", "separate", 10, stop=5)
    _, again = learn(tmp_path / "cut", "separate", 10)
    for role in ("policy", "critic"):
        ours, theirs = (dict(loop.trainees[role].model.named_parameters()) for loop in (again, whole))
        for name, parameter in theirs.items():
            assert torch.equal(parameter, ours[name]), (role, name)


def test_heads_are_exchanged() -> None:
    base = build(SIZES, 1)
    reward = with_heads(base, ("reward",))
    assert reward.lm_head is None
    assert reward.reward_head is not None
    assert float(reward.reward_head.weight.detach().abs().max()) == 0.0
    with torch.no_grad():
        reward.reward_head.weight.fill_(0.5)
    critic = with_heads(reward, ("value",))
    assert critic.value_head is not None
    assert torch.equal(critic.value_head.weight, reward.reward_head.weight)
    with torch.no_grad():
        critic.value_head.weight.zero_()
        assert critic.embed is not None
        critic.embed.weight.zero_()
    assert float(reward.reward_head.weight.detach().min()) == 0.5  # a copy, not the same storage
    assert base.embed is not None
    assert float(base.embed.weight.detach().abs().max()) > 0
    both = with_heads(base, ("lm", "value"))
    assert base.lm_head is not None
    assert both.lm_head is not None
    assert torch.equal(both.lm_head.weight, base.lm_head.weight)
    tied = with_heads(build(replace(SIZES, tied_embeddings=True), 1), ("lm", "value"))
    assert tied.embed is not None
    assert tied.lm_head is not None
    assert tied.lm_head.weight is tied.embed.weight
    for wrong in ((), ("lm",)):
        with pytest.raises(ValueError, match=r"head"):
            with_heads(critic, wrong)  # type: ignore[arg-type]
