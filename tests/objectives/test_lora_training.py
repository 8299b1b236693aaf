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
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.lora import LoRAConfig, add_lora, merge_lora
from sekkei.model.transformer import Transformer
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


def test_merged_it_has_the_same_loss(tmp_path: Path) -> None:
    model, _ = trained(tmp_path)
    step = PlainStep({"policy": model}, LocalOps(), CPU, None)
    ctx = Context(models={"policy": model}, ops=LocalOps(), device=CPU, seed=3, score=step.score)
    (update,) = SFT(example, 16, 256).next_step(ctx)
    before = float(step.backward(update)["loss"].total)
    merge_lora(model)
    assert float(step.backward(update)["loss"].total) == pytest.approx(before, rel=1e-5)
