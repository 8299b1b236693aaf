"""GRPO: advantages and clip by hand, the gradient written out, and a task that it must learn."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sekkei.core import runlog
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.runlog import RunLog
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.output import Output
from sekkei.model.transformer import Transformer
from sekkei.objectives.grpo import GRPO, GRPOConfig, GRPOLoss, group_advantages, group_samples
from sekkei.objectives.rollout import Group, Prompt, group_figures, roll_out
from sekkei.objectives.sft import pack_samples
from sekkei.objectives.teaching import taught
from sekkei.objectives.variants import Variant
from sekkei.parallel.ops import LocalOps
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import Loop, LoopConfig, Trainee
from sekkei.train.objective import Context, Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
END = 2
CONFIG = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=19, qk_norm=True
)


def nothing(completion: Completion) -> Mapping[str, float]:
    return {"reward": 0.0}


def completion(*tokens: int, logprobs: Sequence[float] | None = None) -> Completion:
    ended = tokens[-1] == END
    return Completion(
        token_ids=tokens,
        logprobs=tuple(logprobs or [-0.5] * len(tokens)),
        finish_reason="stop" if ended else "length",
        weights_hash="",
        seed=0,
    )


def group(prompt: Sequence[int], answers: Sequence[Completion], rewards: Sequence[float]) -> Group:
    return Group(Prompt(tuple(prompt), nothing), tuple(answers), tuple({"reward": reward} for reward in rewards))


def test_advantages_by_hand() -> None:
    up = 0.5 / 0.5001  # mean and standard deviation are .5
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == pytest.approx([up, -up, -up, up])
    # mean 2, population's standard deviation √((4 + 0 + 4) / 3)
    spread = math.sqrt(8 / 3)
    assert group_advantages([0.0, 2.0, 4.0]) == pytest.approx([-2 / (spread + 1e-4), 0.0, 2 / (spread + 1e-4)])
    assert group_advantages([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]
    assert group_advantages([1.0] * 8) == [0.0] * 8
    assert group_advantages([1e6 + 0.1] * 7) == [0.0] * 7  # the mean of equal floats may differ from them


def test_samples_score_the_answer_and_its_end() -> None:
    answers = [completion(7, 8, END, logprobs=[-0.1, -0.2, -0.3]), completion(9, logprobs=[-0.4])]
    first, second = group_samples([group((4, 5, 6), answers, [1.0, 0.0])])
    assert list(first.ids) == [4, 5, 6, 7, 8, END]
    batch = lay_out([[first, second]], 9)
    ignored = -100
    assert batch.labels.tolist() == [[ignored, ignored, 7, 8, END, ignored, ignored, 9, ignored]]
    assert batch.mask.tolist() == [[0, 0, 1, 1, 1, 0, 0, 1, 0]]
    up = 0.5 / 0.5001
    advantages = [0, 0, up, up, up, 0, 0, -up, 0]
    assert batch.extra["advantages"][0].tolist() == pytest.approx(advantages, abs=1e-6)
    assert batch.extra["sampled"][0].tolist() == pytest.approx([0, 0, -0.1, -0.2, -0.3, 0, 0, -0.4, 0])
    assert batch.ids[0, 2:5].tolist() == [6, 7, 8]  # a label's log-probability is that of the token after its input


def some_groups() -> list[Group]:
    rng = random.Random(derive_seed("groups of the test"))

    def some(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 19) for _ in range(rng.randrange(low, high))]

    groups = []
    for number in range(4):
        answers = [completion(*some(1, 12), *((END,) if rng.random() < 0.7 else ())) for _ in range(4)]
        rewards = [0.5] * 4 if number == 2 else [rng.random() for _ in range(4)]
        groups.append(group(some(1, 7), answers, rewards))
    return groups


def written_out(model: Transformer, groups: Sequence[Group], temperature: float) -> dict[str, Tensor]:
    """Gradient of - Σ A log p / Σ tokens, one answer at a time."""
    model.zero_grad(set_to_none=True)
    terms, tokens = [], 0
    for one in groups:
        mean = sum(one.rewards) / 4
        spread = math.sqrt(sum((r - mean) ** 2 for r in one.rewards) / 4)
        for answer, reward in zip(one.completions, one.rewards, strict=True):
            ids = torch.tensor([[*one.prompt.ids, *answer.token_ids]])
            hidden = model.hidden(ids[:, :-1], torch.arange(ids.shape[1] - 1)[None], DenseAttend(None))
            logprobs = (model.logits(hidden) / temperature).log_softmax(-1)[0]
            advantage = (reward - mean) / (spread + 1e-4)
            for i, token in enumerate(answer.token_ids):
                terms.append(-advantage * logprobs[len(one.prompt.ids) - 1 + i, token])
            tokens += len(answer.token_ids)
    (torch.stack(terms).sum() / tokens).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ours(model: Transformer, batches: list[Batch], temperature: float) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    step = PlainStep({"policy": model}, LocalOps(), CPU, None)
    step.backward(Update("policy", batches, GRPOLoss(0.2, 0.2, temperature)))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def error(found: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> float:
    assert set(found) == set(true)
    return max(float((found[name] - g).norm() / g.norm()) for name, g in true.items())


def test_the_gradient_as_written_out() -> None:
    model, groups = build(CONFIG, seed=1, dtype=torch.float64), some_groups()
    true = written_out(model, groups, 0.7)
    samples = group_samples(groups)
    batches = pack_samples(samples, 128)
    assert len(batches) > 1
    # advantages travel as float32, hence 1e-6 and not 1e-12
    assert error(ours(model, batches, 0.7), true) < 1e-6
    assert error(ours(model, [lay_out([[s] for s in samples], 20)], 0.7), true) < 1e-6
    assert error(ours(model, batches, 1.0), true) > 1e-2  # the temperature of sampling forgotten
    no_end = [
        Sample(ids=s.ids, weights=[w * (t != END) for w, t in zip(s.weights or (), s.ids)], per_token=s.per_token)
        for s in samples
    ]
    assert error(ours(model, pack_samples(no_end, 128), 0.7), true) > 1e-2
    means = [ours(model, [batch], 0.7) for batch in batches]
    averaged = {name: torch.stack([g[name] for g in means]).mean(0) for name in true}
    assert error(averaged, true) > 1e-2


def test_the_clip_by_hand() -> None:
    """Ratios 1.5 and .5, advantages +1 and -1: the two that would go on in their direction are cut."""
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1, 9.0]], dtype=torch.float64)
    logprobs = ratios.log().requires_grad_()
    batch = lay_out([[Sample(ids=range(7))]], 6)
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0, 1.0]])
    old = torch.zeros(1, 6, dtype=torch.float64)
    batch = Batch(
        ids=batch.ids,
        labels=batch.labels,
        mask=mask,
        positions=batch.positions,
        segments=batch.segments,
        extra={"advantages": advantages, "old": old, "sampled": old - 0.25},
    )
    loss = GRPOLoss(clip_low=0.2, clip_high=0.3, temperature=1.0)
    terms, metrics = loss.terms(Output(logprobs=logprobs, entropy=torch.full((1, 6), 2.0)), batch, LocalOps())
    #                        1.5 -> 1.3   kept   kept    .5 -> .8   kept
    assert terms["tokens"].item() == pytest.approx(-(1.3 - 1.5 + 0.5 - 0.8 + 2.2))
    terms["tokens"].backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0, -2.2, 0.0])
    means = {name: float(mean.total / mean.weight) for name, mean in metrics.items()}
    approx = sum(r - 1 - math.log(r) for r in (1.5, 1.5, 0.5, 0.5, 1.1)) / 5
    clips = {"clip_fraction": 0.4, "clip_fraction/low": 0.2, "clip_fraction/high": 0.2}
    assert means == pytest.approx({"entropy": 2.0, **clips, "engine_gap": 0.25, "approx_kl": approx})
    assert {kind: float(n) for kind, n in loss.units(batch).items()} == {"tokens": 5.0}


def test_without_old_logprobs_the_clip_is_idle() -> None:
    batch = lay_out([[Sample(ids=range(4), per_token={"advantages": [0, 1, -2, 3], "sampled": [0.0] * 4})]], 3)
    logprobs = torch.tensor([[-1.0, -5.0, -0.1]], requires_grad=True)
    out = Output(logprobs=logprobs, entropy=torch.zeros(1, 3))
    terms, metrics = GRPOLoss(0.2, 0.2, 1.0).terms(out, batch, LocalOps())
    terms["tokens"].backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1.0, 2.0, -3.0]]
    assert float(metrics["clip_fraction"].total) == 0.0


def test_figures_by_hand() -> None:
    first = Group(
        Prompt((1,), nothing),
        (completion(3, END), completion(3, 4, 5, 6)),
        ({"reward": 1.0, "steps": 4.0}, {"reward": 0.0, "steps": 2.0}),
    )
    second = Group(
        Prompt((1,), nothing),
        (completion(END), completion(3, 4, END)),
        ({"reward": 1.0, "steps": 0.0}, {"reward": 1.0, "steps": 0.0}),
    )
    assert group_figures([first, second]) == pytest.approx(
        {
            "reward": 0.75,
            "steps": 1.5,
            "reward_std": 0.25,
            "zero_spread": 0.5,
            "completion_tokens": 2.5,
            "ended": 0.75,
        }
    )


def test_rollout_seeds_and_rewards() -> None:
    seen: list[list[Request]] = []

    def generate(requests: list[Request]) -> list[list[Completion]]:
        seen.append(requests)
        return [[completion(3, END)] * request.n for request in requests]

    def context(step: int, seed: int = 8) -> Context:
        return Context(
            models={}, ops=LocalOps(), device=CPU, seed=seed, score=lambda *_: Output(), generate=generate, step=step
        )

    prompts = [Prompt((1, 2), nothing), Prompt((1, 2), nothing)]
    sampling = Sampling(max_tokens=3)
    groups = roll_out(context(0), prompts, sampling, 3)
    assert [len(g.completions) for g in groups] == [3, 3]
    roll_out(context(0), prompts, sampling, 3)
    roll_out(context(1), prompts, sampling, 3)
    roll_out(context(0, seed=9), prompts, sampling, 3)
    seeds = [[request.seed for request in requests] for requests in seen]
    assert seeds[0] == seeds[1]  # a resumed run draws the same
    assert len({seed for row in (seeds[0], *seeds[2:]) for seed in row}) == 6
    for reward in (math.nan, math.inf, None):
        figures = {} if reward is None else {"reward": reward}
        with pytest.raises(UserError, match="finite"):
            roll_out(context(0), [Prompt((1,), lambda _, f=figures: f)], sampling, 2)  # type: ignore[misc]
    blind = Context(models={}, ops=LocalOps(), device=CPU, seed=0, score=lambda *_: Output())
    with pytest.raises(RuntimeError, match="engine"):
        roll_out(blind, prompts, sampling, 2)


class Screen:
    def update(self, done: int, text: str = "") -> None:
        """Nobody looks."""


def wants_fives(answer: Completion) -> Mapping[str, float]:
    return {"reward": sum(token == 5 for token in answer.token_ids) / 4}


def learn(folder: Path, updates: int, steps: int = 30) -> list[runlog.Record]:
    """GRPO with a real engine on: write 5s, four tokens each."""
    model = build(CONFIG, seed=1)
    models = {"policy": model}
    step, engine = PlainStep(models, LocalOps(), CPU, None), Engine(model)

    def generate(requests: list[Request]) -> list[list[Completion]]:
        engine.refresh(None)
        return engine.generate(requests)

    config = GRPOConfig(steps=steps, prompts=4, samples=8, max_tokens=4, temperature=0.8, updates=updates)
    optim = OptimConfig(lr=0.02, schedule="constant", warmup=0.1)
    loop = Loop(
        stage="grpo",
        steps=steps,
        config=LoopConfig(checkpoint_every=0),
        objective=GRPO(lambda index: Prompt((1, 3 + index % 4), wants_fives), config, (END,)),
        trainees={"policy": Trainee(model, Optimizer(model, optim, steps))},
        step=step,
        ctx=Context(models=models, ops=step.ops, device=CPU, seed=3, score=step.score, generate=generate),
        log=RunLog(folder / "metrics.jsonl"),
        checkpoints=Checkpoints(folder / "checkpoints"),
    )
    loop.run(Screen())
    return runlog.read(folder / "metrics.jsonl")


@pytest.mark.parametrize("updates", [1, 2])
def test_a_task_is_learned(tmp_path: Path, updates: int) -> None:
    records = learn(tmp_path, updates)
    assert records[0]["reward"] < 0.2
    assert records[-1]["reward"] > 0.9
    # the engine's log-probabilities are those that the trainer recomputes, however far a second update moves it
    assert max(record["engine_gap"] for record in records) < 1e-4
    assert any(record["clip_fraction"] > 0 for record in records) == (updates == 2)
    assert records[0]["entropy"] > records[-1]["entropy"]


@pytest.mark.parametrize("variant", ["token", "grpo", "dr_grpo", "rloo", "cispo"])
def test_flat_groups_need_not_be_computed(variant: Variant) -> None:
    """The third of four groups has equal rewards: the gradient without it is that with it."""
    groups = some_groups()
    config = GRPOConfig(steps=1, max_tokens=12, variant=variant, kl=0.0)
    whole = group_samples(groups, config, config.point)
    part = taught(whole, config.point.aggregation)
    assert len(part) == len(whole) - 4
    found = []
    for samples in (whole, part):
        model = build(CONFIG, seed=1, dtype=torch.float64)
        PlainStep({"policy": model}, LocalOps(), CPU, None).backward(
            Update("policy", pack_samples(samples, 128), config.make_loss())
        )
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert error(found[1], found[0]) < 1e-6  # advantages travel as float32
    flat = group_samples(groups[2:3], config, config.point)
    assert taught(flat, "token") == flat[:1], "a step of gradient 0 is a step"


def test_state_is_the_next_prompt() -> None:
    asked: list[int] = []

    def prompt(index: int) -> Prompt:
        asked.append(index)
        return Prompt((1,), nothing)

    def generate(requests: list[Request]) -> list[list[Completion]]:
        return [[completion(3, END)] * request.n for request in requests]

    config = GRPOConfig(steps=2, prompts=3, samples=2)
    ctx = Context(models={}, ops=LocalOps(), device=CPU, seed=0, score=lambda *_: Output(), generate=generate)
    first, second = GRPO(prompt, config, (END,)), GRPO(prompt, config, (END,))
    (update,) = first.next_step(ctx)
    assert update.loss.temperature == config.temperature
    second.load_state_dict(first.state_dict())
    second.next_step(ctx)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert first.step_metrics()["zero_spread"] == 1.0
    assert first.sampling.stop_tokens == (END,)


@pytest.mark.parametrize(
    ("key", "value"),
    [("samples", 1), ("temperature", 0.0), ("prompts", 0), ("updates", 0), ("clip_low", 1.0), ("clip_low", 0.0)],
)
def test_bad_settings(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got {value}"):
        GRPOConfig(**{"steps": 1, key: value})  # type: ignore[arg-type]
