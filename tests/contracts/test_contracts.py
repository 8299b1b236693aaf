"""The two sketches against the contracts run: PPO through the one loop, a pipeline with the plain step's gradient."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sekkei.core import runlog
from sekkei.core.runlog import RunLog
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch, Sample
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Head, Transformer
from sekkei.objectives.preference import DPOLoss, Pair, pair_batches, sequence_logprobs
from sekkei.objectives.pretrain import TokenLoss
from sekkei.objectives.rollout import Prompt
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import LocalOps
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import Loop, LoopConfig, Trainee
from sekkei.train.objective import Context, Loss, Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep, Step

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    hidden_size=16, num_layers=3, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=23, qk_norm=True
)


def sketch(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"contracts_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Screen:
    def update(self, done: int, text: str = "") -> None:
        """Nobody looks."""


def judge(completion: Completion) -> Mapping[str, float]:
    return {"reward": float(sum(token % 2 for token in completion.token_ids))}


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def test_ppo_runs_through_the_loop(tmp_path: Path) -> None:
    ppo = sketch("ppo")
    value: tuple[Head, ...] = ("value",)
    policy, critic = build(CONFIG, seed=1), build(CONFIG, seed=2, heads=value)
    reference = build(CONFIG, seed=1)
    models = {"policy": policy, "critic": critic, "reference": reference}
    before = {role: copy_of(model) for role, model in models.items()}
    step, engine = PlainStep(models, LocalOps(), CPU, None), Engine(policy, max_batch=16)

    def generate(requests: list) -> list:
        engine.refresh(None)
        return engine.generate(requests)

    objective = ppo.PPO([Prompt((1, 2, 3), judge), Prompt((4, 5), judge)], epochs=2, kl=0.1)
    optim = OptimConfig(lr=0.01)
    loop = Loop(
        stage="ppo",
        steps=2,
        config=LoopConfig(checkpoint_every=1),
        objective=objective,
        trainees={role: Trainee(models[role], Optimizer(models[role], optim, 2)) for role in ("policy", "critic")},
        step=step,
        ctx=Context(models=models, ops=step.ops, device=CPU, seed=3, score=step.score, generate=generate),
        log=RunLog(tmp_path / "metrics.jsonl"),
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
    )
    loop.run(Screen())
    assert changed(policy, before["policy"]) == set(before["policy"])
    assert changed(critic, before["critic"]) == set(before["critic"])
    assert changed(reference, before["reference"]) == set()
    records = runlog.read(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        assert {"loss", "critic/loss", "ratio", "kl_coefficient", "grad_norm", "critic/grad_norm"} <= set(record)
        assert record["ratio"] != 1.0  # the last of two epochs over one rollout
    found = loop.checkpoints.load()
    assert found is not None
    assert {name.partition("/")[0] for name in found[1]} == {"policy", "critic"}
    assert found[2]["objective"] == {"kl": objective.kl}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def cut(whole: Transformer, layers: int) -> tuple[Transformer, Transformer]:
    """The same weights as a first part of `layers` blocks and a last part."""
    first = Transformer(CONFIG, heads=(), layers=range(layers)).double()
    last = Transformer(CONFIG, layers=range(layers, CONFIG.num_layers), embedding=False).double()
    state = whole.state_dict()
    for part in (first, last):
        part.load_state_dict({name: state[name] for name in part.state_dict()})
    return first, last


def sft_batches() -> list[Batch]:
    rng = random.Random(derive_seed("contracts"))
    samples = []
    for _ in range(9):
        ids = [rng.randrange(23) for _ in range(rng.randrange(5, 60))]
        samples.append(Sample(ids=ids, weights=[float(rng.random() < 0.4) for _ in ids]))
    return pack_samples(samples, 128)


def dpo_batches(reference: Step) -> list[Batch]:
    rng = random.Random(derive_seed("contracts dpo"))

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(23) for _ in range(rng.randrange(low, high)))

    batches = pair_batches([Pair(some(2, 9), some(1, 20), some(1, 20)) for _ in range(9)], 128)
    done = []
    for batch in batches:
        out = reference.score("policy", batch, frozenset({"logprobs"}), 1.0)
        assert out.logprobs is not None
        done.append(batch.with_extra(ref=sequence_logprobs(out.logprobs, batch, LocalOps())))
    return done


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_pipeline_has_the_plain_steps_gradient(kind: str, layers: int) -> None:
    whole, other = (build(CONFIG, seed=seed, dtype=torch.float64) for seed in (1, 2))
    plain = PlainStep({"policy": whole}, LocalOps(), CPU, None)
    loss: Loss = TokenLoss() if kind == "sft" else DPOLoss(beta=0.3, nll=0.5)
    reference = PlainStep({"policy": other}, LocalOps(), CPU, None)
    batches = sft_batches() if kind == "sft" else dpo_batches(reference)
    assert len(batches) > 1
    update = Update("policy", batches, loss)
    metrics = plain.backward(update)
    first, last = cut(whole, layers)
    pipeline = sketch("pipeline").PipelineStep(first, last)
    piped = pipeline.backward(update)
    true, found = gradients(whole), {**gradients(first), **gradients(last)}
    assert set(true) == set(found) == {name for name, _ in whole.named_parameters()}
    for name, gradient in true.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) <= 1e-12, name
    assert float(piped["loss"].total) == pytest.approx(float(metrics["loss"].total), rel=1e-12)
    for batch in batches:
        once, twice = (step.score("policy", batch, frozenset({"logprobs"}), 1.0).logprobs for step in (plain, pipeline))
        assert once is not None
        assert twice is not None
        assert torch.allclose(once, twice, rtol=0, atol=1e-12)
