"""Adapters through the one loop: only they move, a resume has the same bits, and merging keeps what was learned."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from sekkei.core import runlog
from sekkei.core.runlog import RunLog
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Sample
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.lora import LoRAConfig, add_lora, load_lora, merge_lora, save_lora
from sekkei.model.transformer import Transformer
from sekkei.objectives.grpo import GRPO, GRPOConfig
from sekkei.objectives.pair_loss import DPOLoss
from sekkei.objectives.preference import Pair, Preference
from sekkei.objectives.rollout import Prompt
from sekkei.objectives.sft import SFT
from sekkei.parallel.ops import LocalOps
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import Loop, LoopConfig, Trainee
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
SIZES = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=23, qk_norm=True
)
STEPS = 20


class Screen:
    def update(self, done: int, text: str = "") -> None:
        """Nobody looks."""


def example(index: int) -> Sample:
    """Counting up from a random start."""
    start = random.Random(derive_seed("lora test", index)).randrange(3, 15)
    return Sample(ids=list(range(start, start + 8)))


def trained(folder: Path, stop: int = STEPS) -> tuple[Transformer, list[float]]:
    model = add_lora(build(SIZES, 1), LoRAConfig(rank=4, alpha=8), seed=2)
    models = {"policy": model}
    step = PlainStep(models, LocalOps(), CPU, None)
    optimizer = Optimizer(model, OptimConfig(lr=1e-2), STEPS)
    loop = Loop(
        stage="sft",
        steps=stop,
        config=LoopConfig(checkpoint_every=10),
        objective=SFT(example, 16, 256),
        trainees={"policy": Trainee(model, optimizer)},
        step=step,
        ctx=Context(models=models, ops=step.ops, device=CPU, seed=3, score=step.score),
        log=RunLog(folder / "metrics.jsonl"),
        checkpoints=Checkpoints(folder / "checkpoints"),
    )
    loop.run(Screen())
    return model, [record["loss"] for record in runlog.read(folder / "metrics.jsonl")]


def test_only_adapters_move_and_a_resume_has_the_same_bits(tmp_path: Path) -> None:
    whole, losses = trained(tmp_path / "whole")
    assert losses[-1] < 0.8 * losses[0]
    base = dict(build(SIZES, 1).named_parameters())
    for name, parameter in whole.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name
        elif name.endswith("lora_b"):
            assert float(parameter.detach().abs().max()) > 0, name
    trained(tmp_path / "cut", stop=10)
    again, _ = trained(tmp_path / "cut")
    for (name, one), (_, other) in zip(whole.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def steps_of(objective: Preference | GRPO, model: Transformer, steps: int) -> list[dict[str, float]]:
    """Train the model's adapters; figures of each step."""
    models = {"policy": model, "reference": build(SIZES, 1).requires_grad_(False)}
    step, engine = PlainStep(models, LocalOps(), CPU, None), Engine(model)

    def generate(requests: list[Request]) -> list[list[Completion]]:
        engine.refresh(None)
        return engine.generate(requests)

    ctx = Context(models=models, ops=LocalOps(), device=CPU, seed=3, score=step.score, generate=generate)
    optimizer, log = Optimizer(model, OptimConfig(lr=2e-2, schedule="constant"), steps), []
    for ctx.step in range(steps):
        for update in objective.next_step(ctx):
            metrics = step.backward(update)
            log.append({name: float(mean.total / mean.weight) for name, mean in metrics.items()})
            assert all(
                (p.grad is not None) == name.endswith(("lora_a", "lora_b")) for name, p in model.named_parameters()
            )
            optimizer.step(ctx.step)
        log[-1] |= objective.step_metrics()
    return log


def only_adapters_differ(model: Transformer) -> bool:
    """From the model that they were put into: every base weight is as it was, every adapter has moved."""
    base = dict(build(SIZES, 1).named_parameters())
    kept = all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    moved = [bool(p.detach().any()) for name, p in model.named_parameters() if name.endswith("lora_b")]
    return kept and all(moved)


def test_preferences_are_learned_by_adapters(tmp_path: Path) -> None:
    model, config = build(SIZES, 1), LoRAConfig(rank=4, alpha=8)
    add_lora(model, config, seed=2)
    pairs = [Pair((3, 4), (5 + i, 6, 2), (9 + i, 8, 7, 2)) for i in range(8)]
    log = steps_of(Preference(pairs, DPOLoss(beta=0.5, nll=0.0), 8, 512), model, 10)
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # the adapter is 0 at first: the policy is the reference
    assert log[-1]["rewards/accuracies"] == 1.0
    assert log[-1]["loss"] < 0.5
    assert only_adapters_differ(model)
    save_lora(tmp_path / "adapter", model, config)
    again = build(SIZES, 1)
    assert load_lora(tmp_path / "adapter", again).scale == config.scale
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_reinforcement_trains_adapters_that_the_engine_samples_with() -> None:
    model = add_lora(build(SIZES, 1), LoRAConfig(rank=4, alpha=8), seed=2)
    hashes: list[str] = []

    def judge(completion: Completion) -> dict[str, float]:
        hashes.append(completion.weights_hash)
        return {"reward": sum(token == 5 for token in completion.token_ids) / 4}

    config = GRPOConfig(steps=25, prompts=4, samples=8, max_tokens=4)
    log = steps_of(GRPO(lambda index: Prompt((1, 3 + index % 4), judge), config, (2,)), model, 25)
    assert log[0]["reward"] < 0.3
    assert log[-1]["reward"] > 0.8
    assert max(figures["engine_gap"] for figures in log) < 1e-4
    assert len(set(hashes)) == 25  # every rollout was drawn with new weights
    assert only_adapters_differ(model)


def test_merged_it_has_the_same_loss(tmp_path: Path) -> None:
    model, _ = trained(tmp_path)
    step = PlainStep({"policy": model}, LocalOps(), CPU, None)
    ctx = Context(models={"policy": model}, ops=LocalOps(), device=CPU, seed=3, score=step.score)
    (update,) = SFT(example, 16, 256).next_step(ctx)
    before = float(step.backward(update)["loss"].total)
    merge_lora(model)
    assert float(step.backward(update)["loss"].total) == pytest.approx(before, rel=1e-5)
