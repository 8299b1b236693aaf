"""PPO against float64 computations written out answer by answer, planted mistakes, its controllers, and learning."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sekkei.core.errors import ConfigError
from sekkei.data.batch import IGNORED, Batch
from sekkei.engine.request import Completion, Request
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.heads import with_heads
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.ppo import PPO, PPOConfig
from sekkei.objectives.rollout import Prompt
from sekkei.parallel.ops import LocalOps
from sekkei.train import step as step_module
from sekkei.train.objective import Context, Update
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
END, TEMPERATURE = 2, 0.8
SIZES = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=31, qk_norm=True
)
CONFIG = PPOConfig(
    steps=1, prompts=3, samples=2, max_tokens=9, temperature=TEMPERATURE, epochs=2, gamma=0.97, lam=0.9,
    kl=0.3, missing_end_penalty=0.7, clip_high=0.3, value_clip=0.15, micro_tokens=64,
)  # fmt: skip


def answers(prompt: int, i: int) -> Completion:
    rng = random.Random(100 * prompt + i)
    n = rng.randrange(1, 8)
    ids = tuple(rng.randrange(3, 31) for _ in range(n)) + ((END,) if (prompt + i) % 3 else ())
    return Completion(
        token_ids=ids,
        logprobs=tuple(-1.0 for _ in ids),
        finish_reason="stop" if ids[-1] == END else "length",
        weights_hash="w",
        seed=0,
    )


def generate(requests: list[Request]) -> list[list[Completion]]:
    return [[answers(request.prompt_ids[0], i) for i in range(request.n)] for request in requests]


def judge(completion: Completion) -> Mapping[str, float]:
    return {"reward": (completion.token_ids[0] % 5) / 2}


def prompt(index: int) -> Prompt:
    return Prompt(tuple(range(4 + index, 6 + 2 * index)), judge)


def models_of(critic: str = "separate") -> dict[str, Transformer]:
    policy = build(SIZES, 1, dtype=torch.float64)
    made = {"policy": policy, "reference": build(SIZES, 2, dtype=torch.float64)}
    if critic == "separate":
        made["critic"] = with_heads(build(SIZES, 3, dtype=torch.float64), ("value",))
        valued = made["critic"]
    else:
        made["policy"] = valued = with_heads(policy, ("lm", "value"))
    assert valued.value_head is not None
    with torch.no_grad():
        valued.value_head.weight.copy_(torch.randn(1, 16, generator=torch.Generator().manual_seed(4)))
    return made


def context(models: Mapping[str, Any], sampler: Any = generate) -> Context:
    ops = LocalOps()
    step = PlainStep(models, ops, CPU, None)
    return Context(models=models, ops=ops, device=CPU, seed=1, score=step.score, generate=sampler)


def nudge(model: Transformer) -> None:
    """Move the weights, as earlier minibatches would have: ratios leave 1 and some are clipped."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def one_sequence(model: Transformer, ids: Sequence[int]) -> Tensor:
    x = torch.tensor([list(ids)])[:, :-1]
    return model.hidden(x, torch.arange(x.shape[1])[None], DenseAttend(None))


def token_logprobs(model: Transformer, question: Sequence[int], answer: Sequence[int]) -> Tensor:
    scores = (model.logits(one_sequence(model, (*question, *answer))) / TEMPERATURE).log_softmax(-1)[0]
    return torch.stack([scores[len(question) - 1 + i, token] for i, token in enumerate(answer)])


def token_values(model: Transformer, question: Sequence[int], answer: Sequence[int]) -> Tensor:
    assert model.value_head is not None
    values = model.value_head(one_sequence(model, (*question, *answer)))[0, :, 0]
    return values[len(question) - 1 :]


@dataclass
class Told:
    """One answer, with plain lists."""

    question: tuple[int, ...]
    answer: tuple[int, ...]
    old: list[float]
    values: list[float]
    advantages: list[float]
    returns: list[float]


def told_rollout(models: Mapping[str, Transformer], config: PPOConfig, valued: str) -> list[Told]:
    """Rewards, GAE and whitening in plain Python."""
    told = []
    for p in range(config.prompts):
        for i in range(config.samples):
            completion, question = answers(prompt(p).ids[0], i), prompt(p).ids
            answer = completion.token_ids
            with torch.no_grad():
                old = token_logprobs(models["policy"], question, answer).tolist()
                reference = token_logprobs(models["reference"], question, answer).tolist()
                values = token_values(models[valued], question, answer).tolist()
            rewards = [-config.kl * (a - b) for a, b in zip(old, reference, strict=True)]
            rewards[-1] += judge(completion)["reward"]
            if answer[-1] != END:
                rewards[-1] -= config.missing_end_penalty
            advantages, ahead, value_ahead = [0.0] * len(answer), 0.0, 0.0
            for t in reversed(range(len(answer))):
                ahead = rewards[t] + config.gamma * value_ahead - values[t] + config.gamma * config.lam * ahead
                advantages[t], value_ahead = ahead, values[t]
            returns = [a + v for a, v in zip(advantages, values, strict=True)]
            told.append(Told(question, answer, old, values, advantages, returns))
    if config.whiten:
        every = [a for one in told for a in one.advantages]
        mean, variance = statistics.fmean(every), statistics.pvariance(every)
        for one in told:
            one.advantages = [(a - mean) / math.sqrt(variance + 1e-8) for a in one.advantages]
    return told


def told_policy(model: Transformer, told: Sequence[Told], config: PPOConfig) -> Tensor:
    terms = []
    for one in told:
        now = token_logprobs(model, one.question, one.answer)
        for t, gain in enumerate(one.advantages):
            ratio = (now[t] - one.old[t]).exp()
            clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            term = torch.minimum(ratio * gain, clipped * gain)
            if config.dual_clip and gain < 0:
                term = torch.maximum(term, torch.tensor(config.dual_clip * gain, dtype=torch.float64))
            terms.append(-term)
    return torch.stack(terms).mean()


def told_value(model: Transformer, told: Sequence[Told], config: PPOConfig) -> Tensor:
    terms = []
    for one in told:
        now = token_values(model, one.question, one.answer)
        for t, target in enumerate(one.returns):
            error = (now[t] - target) ** 2
            if config.value_clip:
                near = one.values[t] + (now[t] - one.values[t]).clamp(-config.value_clip, config.value_clip)
                error = torch.maximum(error, (near - target) ** 2)
            terms.append(0.5 * error)
    return torch.stack(terms).mean()


def gradients(model: Transformer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gap(found: Mapping[str, Tensor], true: Mapping[str, Tensor], loss: float, true_loss: float) -> float:
    assert set(found) == set(true)
    whole = torch.stack([g.norm() for g in true.values()]).norm()
    errors = [abs(loss - true_loss) / max(abs(true_loss), 1e-6)]
    errors += [float((found[n] - g).norm() / torch.maximum(g.norm(), 1e-6 * whole)) for n, g in true.items()]
    return max(errors)


def wide(batch: Batch) -> Batch:
    """The reward is float32 in a batch; the sums made of it are already float64."""
    return replace(batch, mask=batch.mask.double())


def errors(config: PPOConfig, mutate: Callable[[Update], Update] = lambda update: update) -> dict[str, float]:
    """Relative errors of loss and gradients by role, against what is written out."""
    models = models_of(config.critic)
    valued = "critic" if config.critic == "separate" else "policy"
    told = told_rollout(models, config, valued)
    updates = PPO(prompt, config, (END,)).next_step(context(models))
    for role in {update.role for update in updates}:
        nudge(models[role])
    step, found = PlainStep(models, LocalOps(), CPU, None), {}
    for update in updates[: 1 if config.critic == "shared" else 2]:
        mutated = mutate(replace(update, micro_batches=[wide(batch) for batch in update.micro_batches]))
        model = models[update.role]
        model.zero_grad(set_to_none=True)
        loss = float(step.backward(mutated)["loss"].total)
        ours = gradients(model)
        model.zero_grad(set_to_none=True)
        if config.critic == "shared":
            true = told_policy(model, told, config) + config.value_weight * told_value(model, told, config)
        else:
            true = (told_value if update.role == "critic" else told_policy)(model, told, config)
        true.backward()
        found[update.role] = gap(ours, gradients(model), loss, true.item())
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"whiten": False},
        {"value_clip": 0.0},
        {"dual_clip": 1.35},
        {"gamma": 1.0, "lam": 1.0},
        {"lam": 0.0},
        {"critic": "shared", "value_weight": 0.4},
        {"micro_tokens": 4096},
    ],
)
def test_losses_and_every_gradient_as_written_out(settings: dict[str, Any]) -> None:
    for role, error in errors(replace(CONFIG, **settings)).items():
        assert error < 1e-6, role  # rewards are laid into rows in float32


def without_end(batch: Batch) -> Batch:
    last = batch.labels == END
    return replace(batch, mask=batch.mask.masked_fill(last, 0), labels=batch.labels.masked_fill(last, IGNORED))


def shifted_left(batch: Batch) -> Batch:
    return replace(batch, labels=torch.where(batch.labels != IGNORED, batch.ids, IGNORED))


def shifted_right(batch: Batch) -> Batch:
    labels = batch.labels.roll(-1, 1).clamp(min=0)
    return replace(batch, labels=torch.where(batch.labels != IGNORED, labels, IGNORED))


def values_shifted(batch: Batch) -> Batch:
    """The classic mistake: the return of token t is learned where t is already known."""
    moved = {name: batch.extra[name].roll(1, 1) for name in ("returns", "old_values")}
    return replace(batch.with_extra(**moved), mask=batch.mask.roll(1, 1))


def of_batch(mutate: Callable[[Batch], Batch]) -> Callable[[Update], Update]:
    return lambda update: replace(update, micro_batches=[mutate(batch) for batch in update.micro_batches])


def of_loss(**changes: Any) -> Callable[[Update], Update]:
    return lambda update: replace(update, loss=replace(update.loss, **changes))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("role", "mutate"),
    [
        ("policy", of_batch(without_end)),
        ("critic", of_batch(without_end)),
        ("policy", of_batch(shifted_left)),
        ("policy", of_batch(shifted_right)),
        ("critic", of_batch(values_shifted)),
    ],
)
def test_a_mutant_of_the_batch_is_seen(role: str, mutate: Callable[[Update], Update]) -> None:
    assert errors(CONFIG, mutate)[role] > 1e-3


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("policy", {"temperature": 1.0}),
        ("policy", {"clip": "none"}),
        ("policy", {"clip_high": 0.2}),
        ("policy", {"aggregation": "sequence"}),
        ("critic", {"clip": 0.0}),
    ],
)
def test_a_mutant_of_the_loss_is_seen(role: str, changes: dict[str, Any]) -> None:
    def mutate(update: Update) -> Update:
        return of_loss(**changes)(update) if update.role == role else update

    assert errors(CONFIG, mutate)[role] > 1e-3


@pytest.mark.parametrize(
    "settings",
    [{"kl": 0.0}, {"kl": 0.31}, {"missing_end_penalty": 0.0}, {"gamma": 1.0}, {"lam": 1.0}, {"whiten": False}],
)
def test_a_mutant_of_the_rewards_is_seen(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO runs with other settings than those written out."""
    real = PPO.__init__
    monkeypatch.setattr(PPO, "__init__", lambda self, p, config, stop: real(self, p, replace(config, **settings), stop))
    assert errors(CONFIG)["policy"] > 1e-3


def test_the_kl_sign_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import sekkei.objectives.ppo as module

    right = module.kl_estimate
    monkeypatch.setattr(module, "kl_estimate", lambda a, b, kind: right(b, a, kind))
    assert errors(CONFIG)["policy"] > 1e-3


def test_a_missing_document_mask_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "flat_batch", lambda *_: None)  # which has no use for the mask
    monkeypatch.setattr(step_module, "DenseAttend", lambda segments: DenseAttend(None))
    found = errors(CONFIG)
    assert found["policy"] > 1e-3
    assert found["critic"] > 1e-3


def test_step_zero_has_ratio_one_and_no_kl() -> None:
    models = models_of()
    models["reference"] = models["policy"]
    objective = PPO(prompt, CONFIG, (END,))
    updates = objective.next_step(context(models))
    assert [update.role for update in updates] == ["critic", "policy"] * 2
    metrics = PlainStep(models, LocalOps(), CPU, None).backward(updates[1])
    means = {name: float(m.total / m.weight) for name, m in metrics.items()}
    assert means["clip_fraction"] == means["kl"] == means["approx_kl"] == 0.0
    assert means["loss"] == pytest.approx(0.0, abs=1e-6)  # whitened advantages sum to 0
    assert objective.step_metrics()["kl_answer"] == 0.0


def test_the_kl_coefficient_follows_its_target() -> None:
    config = replace(CONFIG, kl_target=2.0, kl_horizon=60)
    objective = PPO(prompt, config, (END,))
    objective.next_step(context(models_of()))
    for measured, factor in ((2.0, 1.0), (2.2, 1 + 0.1 * 6 / 60), (50.0, 1 + 0.2 * 6 / 60), (0.0, 1 - 0.2 * 6 / 60)):
        objective.kl, objective.figures["kl_answer"] = 0.3, measured
        objective.observe({})
        assert objective.kl == pytest.approx(0.3 * factor)
    state = json.loads(json.dumps(objective.state_dict()))
    again = PPO(prompt, config, (END,))
    again.load_state_dict(state)
    assert (again.kl, again.next_prompt) == (objective.kl, objective.next_prompt)
    fixed = PPO(prompt, CONFIG, (END,))
    fixed.next_step(context(models_of()))
    fixed.observe({})
    assert fixed.kl == CONFIG.kl


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("kl", {"kl": 0.0, "kl_target": 1.0}),
        ("gamma", {"gamma": 1.1}),
        ("lam", {"lam": -0.1}),
        ("epochs", {"epochs": 0}),
        ("temperature", {"temperature": 0.0}),
        ("clip_low", {"clip_low": 0.0}),
        ("value_weight", {"value_weight": 0.0}),
        ("minibatches", {"minibatches": 65}),
        ("dual_clip", {"dual_clip": 1.1}),
        ("dual_clip", {"dual_clip": -3.0}),
        ("clip_high", {"clip_high": -0.2}),
        ("kl", {"kl": math.nan}),
        ("missing_end_penalty", {"missing_end_penalty": -1.0}),
        ("reward_model", {"reward_model": -1.0}),
        ("temperature", {"temperature": 1e9}),
    ],
)
def test_wrong_settings_are_refused(key: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        PPOConfig(steps=1, **settings)


def test_a_kl_without_a_reference_is_refused() -> None:
    models = models_of()
    del models["reference"]
    with pytest.raises(ConfigError, match="no reference model"):
        PPO(prompt, CONFIG, (END,)).next_step(context(models))
    PPO(prompt, replace(CONFIG, kl=0.0), (END,)).next_step(context(models))
