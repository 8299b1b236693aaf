"""Rollouts one step ahead: exactly one step stale, the same bits whatever the timing and after a resume, corrected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from sekkei.core import runlog
from sekkei.core.errors import ConfigError
from sekkei.core.runlog import RunLog
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.ahead import OwnCopy, Pending, Play, from_json, plainly, to_json
from sekkei.objectives.grpo import GRPO, GRPOConfig
from sekkei.objectives.rollout import Prompt
from sekkei.objectives.tool_use import Played
from sekkei.parallel.ops import LocalOps
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import Loop, LoopConfig, Trainee
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
END = 2
SIZES = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=19, qk_norm=True
)
STEPS = 12


class Screen:
    def update(self, done: int, text: str = "") -> None:
        """Nobody looks."""


def wants_fives(answer: Completion) -> Mapping[str, float]:
    return {"reward": sum(token == 5 for token in answer.token_ids) / 4}


class Slow(OwnCopy):
    """Sleeps in the thread that draws, or in the one that trains."""

    def __init__(self, policy: Transformer, drawing: float, training: float) -> None:
        super().__init__(policy, CPU, None)
        self.drawing, self.training = drawing, training

    def begin(self, requests: list[Request], play: Play = plainly) -> Callable[[], list[list[Completion]]]:
        def slowly(
            generate: Callable[[list[Request]], list[list[Completion]]], asked: list[Request]
        ) -> list[list[Completion]]:
            time.sleep(self.drawing)
            return play(generate, asked)

        wait = super().begin(requests, slowly)
        time.sleep(self.training)
        return wait


def settings(**more: object) -> GRPOConfig:
    known = {"steps": STEPS, "prompts": 4, "samples": 8, "max_tokens": 4, "temperature": 0.8}
    known |= {"off_by": 1, "correction": "token_truncate"}
    return GRPOConfig(**{**known, **more})  # type: ignore[arg-type]


def trained(
    folder: Path, config: GRPOConfig, stop: int = STEPS, lr: float = 0.02, drawing: float = 0, training: float = 0
) -> tuple[Transformer, list[runlog.Record]]:
    """A run of `stop` steps; it goes on where the folder's checkpoint stands."""
    model = build(SIZES, seed=1)
    models = {"policy": model}
    step = PlainStep(models, LocalOps(), CPU, None)
    engine = Slow(model, drawing, training)
    loop = Loop(
        stage="grpo",
        steps=stop,
        config=LoopConfig(checkpoint_every=0),
        objective=GRPO(lambda index: Prompt((1, 3 + index % 4), wants_fives), config, (END,)),
        trainees={"policy": Trainee(model, Optimizer(model, OptimConfig(lr=lr, schedule="constant"), STEPS))},
        step=step,
        ctx=Context(models=models, ops=step.ops, device=CPU, seed=3, score=step.score, generate=engine),
        log=RunLog(folder / "metrics.jsonl"),
        checkpoints=Checkpoints(folder / "checkpoints"),
    )
    loop.run(Screen())
    return model, [{k: v for k, v in r.items() if k != "machine"} for r in runlog.read(folder / "metrics.jsonl")]


def same(one: Transformer, other: Transformer) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_the_same_bits_whoever_is_slow_and_after_a_resume(tmp_path: Path) -> None:
    whole, log = trained(tmp_path / "whole", settings())
    for name, times in {"drawing": (0.05, 0.0), "training": (0.0, 0.05)}.items():
        model, again = trained(tmp_path / name, settings(), 6, drawing=times[0], training=times[1])
        assert again == log[:6], name
        model, again = trained(tmp_path / name, settings())  # goes on at step 6
        assert again == log, name
        assert same(model, whole), name
    assert [record["staleness"] for record in log] == [0.0] + [1.0] * (STEPS - 1)


def test_each_rollout_is_drawn_by_the_weights_before_the_last_step() -> None:
    """By hand: the answers of step t are what an engine with the weights at the start of step t - 1 says."""
    model = build(SIZES, seed=1)
    config = settings(steps=3)
    objective = GRPO(lambda index: Prompt((1, 3 + index % 4), wants_fives), config, (END,))
    models = {"policy": model}
    ctx = Context(
        models=models, ops=LocalOps(), device=CPU, seed=3, score=lambda *_: None, generate=OwnCopy(model, CPU, None)
    )  # type: ignore[arg-type]
    starts, seen = [], []
    for step in range(3):
        starts.append({name: p.detach().clone() for name, p in model.named_parameters()})
        ctx.step = step
        objective.next_step(ctx)
        seen.append([group.completions for group in objective.groups])
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
    assert objective.pending is None  # nothing is drawn for a step that never comes
    fresh = GRPO(lambda index: Prompt((1, 3 + index % 4), wants_fives), config, (END,))
    for step, drawn_by in enumerate((0, 0, 1)):
        own = build(SIZES, seed=1)
        own.load_state_dict(starts[drawn_by])
        engine = Engine(own)
        plain = Context(
            models={"policy": own}, ops=LocalOps(), device=CPU, seed=3, score=lambda *_: None,
            generate=engine.generate, step=step,
        )  # type: ignore[arg-type]  # fmt: skip
        fresh.config = settings(steps=3, off_by=0)
        fresh.next_step(plain)
        assert [group.completions for group in fresh.groups] == seen[step]
        assert fresh.groups[0].completions[0].weights_hash == engine.weights_hash


def test_a_pending_rollout_survives_json_to_the_bit() -> None:
    engine = OwnCopy(build(SIZES, seed=1), CPU, None)
    digest = engine.take()
    sampling = Sampling(max_tokens=5, stop_tokens=(END,), top_logprobs=2, prompt_logprobs=True)
    request = Request(prompt_ids=(1, 4, 7), sampling=sampling, n=3, seed=5)
    pending = Pending(4, 12, engine.begin([request]))
    again = Pending.of(json.loads(json.dumps(pending.state_dict())))
    assert (again.step, again.first_prompt, again.answers()) == (4, 12, pending.answers())
    assert {completion.weights_hash for completion in again.answers()[0]} == {digest}
    played = Played(
        token_ids=(3, 4), logprobs=(-0.1, 0.0), finish_reason="stop", weights_hash="x", seed=1, own=(True, False),
        calls=1,
    )  # fmt: skip
    assert from_json(json.loads(json.dumps(to_json([[played]])))) == [[played]]


def test_weights_are_not_taken_while_answers_are_drawn() -> None:
    model = build(SIZES, seed=1)
    engine = Slow(model, drawing=0.3, training=0.0)
    before = engine.take()
    wait = engine.begin([Request(prompt_ids=(1,), sampling=Sampling(max_tokens=40), n=4)])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    answers = wait()
    assert {completion.weights_hash for group in answers for completion in group} == {before}
    assert engine.take() != before


def test_it_learns_and_the_correction_sees_the_staleness(tmp_path: Path) -> None:
    _, log = trained(tmp_path, settings(steps=40), 40)
    assert log[0]["reward"] < 0.2
    assert log[-1]["reward"] > 0.9
    assert log[0]["engine_gap"] < 1e-4  # step 0 is on policy
    assert log[0]["correction/ratio"] == pytest.approx(1, abs=1e-4)
    assert max(record["engine_gap"] for record in log[1:20]) > 1e-3
    assert all(0.5 < record["correction/ratio"] < 2 for record in log)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^correction: got 'none' with off_by=1"):
        settings(correction="none")
    with pytest.raises(ConfigError, match=r"^off_by: got 1 with dynamic_sampling"):
        settings(variant="dapo")
    with pytest.raises(ConfigError, match=r"^off_by: got 2"):
        settings(off_by=2)
    model = build(SIZES, seed=1)
    ctx = Context(
        models={"policy": model}, ops=LocalOps(), device=CPU, seed=0, score=lambda *_: None,
        generate=Engine(model).generate,
    )  # type: ignore[arg-type]  # fmt: skip
    with pytest.raises(RuntimeError, match="its own copy"):
        GRPO(lambda index: Prompt((1,), wants_fives), settings(), (END,)).next_step(ctx)


def test_two_ranks_draw_what_one_process_draws(tmp_path: Path) -> None:
    """dp2 with ZeRO-3: each rank draws its share in its own thread; both have all answers, those of one process."""
    worker = Path(__file__).with_name("ahead_worker.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    places = [(0, 1, "alone"), (0, 2, "first"), (1, 2, "second")]
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(world), str(tmp_path / "store"), str(tmp_path / name)],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, world, name in places
    ]
    for process in processes:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors[-2000:]
    alone, first, second = (json.loads((tmp_path / name).read_text()) for _, _, name in places)
    assert first == second
    assert [record["staleness"] for record in first] == [0.0, 1.0, 1.0, 1.0]
    assert [record["pending"] is None for record in first] == [False, False, False, True]
    for ours, theirs in zip(first, alone, strict=True):
        for group, other in zip(ours["answers"], theirs["answers"], strict=True):
            assert [tokens for tokens, _, _ in group] == [tokens for tokens, _, _ in other]
            for (_, one, _), (_, two, _) in zip(group, other, strict=True):
                assert one == pytest.approx(two, abs=1e-4)
