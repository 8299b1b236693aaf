"""Proximal policy optimisation for language (Ouyang et al. 2022, section 3.5; Schulman et al. 2017, eq. 7 and 9).

    r_t     -β k1_t at every token of an answer, and its reward at the last
    A, R    GAE over values of the rollout (gae.py); A whitened over all tokens of the rollout
    policy  -mean min(ρ A, clip(ρ, 1 ± ε) A)                       ρ = π / π_old
    critic  ½ mean max((V - R)², (clip(V, V_old ± ε_v) - R)²)

with k1 = log π_old - log π_ref. Several epochs go over one rollout, in minibatches. β is fixed, or follows a target KL
per answer (Ziegler et al. 2019, section 2.2). The critic is a model of its own (role "critic"), or a value head on
the policy; then one update carries both losses. Rewards come from judges, a reward model, or both. With samples: 1
there is no group, and none is needed. It does not handle rewards per step.

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.batch import Batch, Sample
from sekkei.engine.request import Sampling
from sekkei.model.output import Output
from sekkei.objectives.advantages import whitened
from sekkei.objectives.gae import explained_variance, gae
from sekkei.objectives.grpo import split
from sekkei.objectives.judged import Judged, scored_figures, scored_groups
from sekkei.objectives.policy_loss import GRPOLoss, kl_estimate
from sekkei.objectives.ranges import check_ranges, check_used
from sekkei.objectives.rollout import Group, OnError, Prompt, check_policy, roll_out
from sekkei.objectives.sft import pack_samples
from sekkei.objectives.variants import check_clip
from sekkei.parallel.ops import Ops
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Loss, Mean, Metrics, Update
from sekkei.train.optim import OptimConfig

KL_STEP = 0.2  # the controller's error is clipped to it (Ziegler et al. 2019, section 2.2)


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """RLHF with a critic.

    Args:
        steps: rollouts. prompts: per step. samples: answers to each. epochs: passes over a rollout, each of
            `minibatches` optimizer steps. temperature: of sampling *and* of the loss.
        clip_low, clip_high: ε of the ratio. dual_clip: see `GRPOLoss`. value_clip: ε_v; 0 = none.
        gamma, lam: of GAE. whiten: advantages to zero mean and unit variance.
        kl: β, the first one where kl_target > 0 (nats per answer) makes it follow; kl_horizon: answers over which.
        missing_end_penalty: taken from the reward of an answer that was cut at max_tokens.
        critic: a model of its own, or a head on the policy, then with `value_weight` on its loss.
        reward_model: weight of the reward model's score beside the judge's. critic_optim: of a separate critic.
    """

    steps: int
    prompts: int = 64
    samples: int = 1
    temperature: float = 1.0
    max_tokens: int = 128
    epochs: int = 4
    minibatches: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    kl: float = 0.05
    kl_target: float = 0.0
    kl_horizon: int = 10_000
    missing_end_penalty: float = 1.0
    critic: Literal["separate", "shared"] = "separate"
    value_weight: float = 0.1
    reward_model: float = 0.0
    reward_errors: OnError = "stop"
    micro_tokens: int = 8192
    optim: OptimConfig = field(default_factory=OptimConfig)
    critic_optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        counts = ("steps", "prompts", "samples", "max_tokens", "epochs", "minibatches", "kl_horizon", "micro_tokens")
        weights = ("kl", "kl_target", "value_clip", "missing_end_penalty", "dual_clip", "reward_model")
        check_ranges(self, counts=counts, not_negative=weights, shares=("gamma", "lam"))
        if self.temperature <= 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be > 0: greedy answers explore nothing")
        Sampling(temperature=self.temperature)
        if self.kl_target and not self.kl:
            raise ConfigError("kl", f"got 0, but kl_target={self.kl_target} multiplies it: start at e.g. 0.05")
        check_clip(self.clip_low, self.clip_high)
        if self.value_weight <= 0:
            raise ConfigError("value_weight", f"got {self.value_weight}, must be > 0: the head would learn nothing")
        if self.minibatches > self.prompts:
            raise ConfigError("minibatches", f"got {self.minibatches}, must be <= prompts={self.prompts}")
        check_used(
            self,
            (self.critic == "shared", "critic: shared learns with the policy's optim", ("critic_optim",)),
            (self.critic == "separate", "a separate critic has its own update; take critic: shared", ("value_weight",)),
            (not self.kl_target, "kl_target: 0 leaves the coefficient as it is; set kl_target", ("kl_horizon",)),
        )
        self.make_policy_loss()

    @property
    def needs(self) -> frozenset[str]:
        """Which models and services this needs."""
        wanted = {
            "engine": True,
            "critic": self.critic == "separate",
            "reference": self.kl > 0,
            "reward": self.reward_model != 0,
        }
        return frozenset(name for name, here in wanted.items() if here)

    def make_policy_loss(self) -> GRPOLoss:
        """Token ratios, PPO's clip, mean over all tokens."""
        return GRPOLoss(self.clip_low, self.clip_high, self.temperature, dual_clip=self.dual_clip)


@dataclass(frozen=True)
class ValueLoss:
    """Reads `extra`, [B, T]: returns; old_values. clip: how far a value may move before its gain stops counting; 0 =
    any.
    """

    clip: float
    wants: frozenset[str] = frozenset({"values"})
    temperature: float = 1.0

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": (batch.mask != 0).sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.values is not None
        values, old, returns = out.values, batch.extra["old_values"], batch.extra["returns"]
        scored = (batch.mask != 0).to(values)
        errors = (values - returns) ** 2
        cut = torch.zeros_like(errors)
        if self.clip:
            clipped = (old + (values - old).clamp(-self.clip, self.clip) - returns) ** 2
            cut = (clipped > errors).to(errors)
            errors = torch.maximum(errors, clipped)
        metrics = {
            "value_error": Mean(((values - returns) ** 2 * scored).detach().sum(), scored.sum()),
            "value_clip_fraction": Mean((cut * scored).sum(), scored.sum()),
        }
        return {"tokens": (0.5 * errors * scored).sum()}, metrics


@dataclass(frozen=True)
class SharedLoss:
    """Policy and value head of one model in one update: policy + weight · value."""

    policy: GRPOLoss
    value: ValueLoss
    weight: float

    @property
    def wants(self) -> frozenset[str]:
        return self.policy.wants | self.value.wants

    @property
    def temperature(self) -> float:
        return self.policy.temperature

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return self.policy.units(batch)

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        policy, figures = self.policy.terms(out, batch, ops)
        value, more = self.value.terms(out, batch, ops)
        return {"tokens": policy["tokens"] + self.weight * value["tokens"]}, {**figures, **more}


class PPO:
    """Rolls out, scores, estimates advantages and returns updates of policy and critic.

    Args:
        prompt: index -> prompt, a pure function, endless. stop_tokens: that end an answer. judged: see judged.py.
    """

    def __init__(
        self,
        prompt: Callable[[int], Prompt],
        config: PPOConfig,
        stop_tokens: tuple[int, ...],
        judged: Judged | None = None,
    ) -> None:
        self.prompt, self.config, self.judged = prompt, config, judged
        self.sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens, stop_tokens=stop_tokens)
        self.needs = config.needs
        self.policy_loss, self.value_loss = config.make_policy_loss(), ValueLoss(config.value_clip)
        self.next_prompt = 0
        self.kl = config.kl
        self.figures: dict[str, float] = {}
        self.groups: list[Group] = []
        """The last rollout, for tables of samples."""

    def next_step(self, ctx: Context) -> list[Update]:
        config = self.config
        check_policy(ctx.models.get("policy"))
        prompts = [self.prompt(self.next_prompt + i) for i in range(config.prompts)]
        self.next_prompt += len(prompts)
        groups = roll_out(ctx, prompts, self.sampling, config.samples, on_error=config.reward_errors)
        self.groups = groups = scored_groups(ctx, groups, config, self.judged)
        figures = scored_figures(groups, self.judged)
        groups, dropped = sound_groups(groups)
        parts = [
            pack_samples(answer_samples(part, config.missing_end_penalty), config.micro_tokens)
            for part in split(groups, config.minibatches)
        ]
        scored = [[self._scored(batch, ctx) for batch in part] for part in parts]
        flat = [batch for part in scored for batch in part]
        self.figures = {**figures, **dropped, **self._measured(flat, groups)}
        if config.whiten:
            gains = [batch.extra["advantages"] for batch in flat]
            white = iter(whitened(gains, [batch.mask.to(g.device) for batch, g in zip(flat, gains, strict=True)],
                                  ctx.ops))  # fmt: skip
            scored = [[batch.with_extra(advantages=next(white)) for batch in part] for part in scored]
        return [update for _ in range(config.epochs) for part in scored for update in self._updates(part)]

    def _updates(self, batches: list[Batch]) -> list[Update]:
        if self.config.critic == "shared":
            loss: Loss = SharedLoss(self.policy_loss, self.value_loss, self.config.value_weight)
            return [Update("policy", batches, loss)]
        return [Update("critic", batches, self.value_loss), Update("policy", batches, self.policy_loss)]

    def _scored(self, batch: Batch, ctx: Context) -> Batch:
        """With old log-probs, old values, the reference's log-probs, advantages and returns."""
        config = self.config
        old = self._logprobs("policy", batch, ctx)
        critic = "critic" if config.critic == "separate" else "policy"
        values = ctx.score(critic, batch, frozenset({"values"}), 1.0).values
        assert values is not None
        extra = {"old": old, "old_values": values}
        here = batch.to(ctx.device)
        rewards = here.extra["reward"].to(values)
        if config.kl:
            if "reference" not in ctx.models:
                raise ConfigError("kl", f"got {config.kl}, but there is no reference model to stay near to")
            extra["reference"] = self._logprobs("reference", batch, ctx)
            rewards = rewards - self.kl * kl_estimate(old, extra["reference"], "k1") * (here.mask != 0)
        advantages, returns = gae(rewards, values, here.mask, here.segments, config.gamma, config.lam)
        return batch.with_extra(**extra, advantages=advantages, returns=returns)

    def _logprobs(self, role: str, batch: Batch, ctx: Context) -> Tensor:
        out = ctx.score(role, batch, frozenset({"logprobs"}), self.config.temperature)
        assert out.logprobs is not None
        return out.logprobs

    def _measured(self, batches: Sequence[Batch], groups: Sequence[Group]) -> dict[str, float]:
        """Figures of the rollout itself. `kl_answer`: nats per answer; the loss logs `kl` per token."""
        rewards = [reward for group in groups for reward in group.rewards]
        masks = [batch.mask.to(batch.extra["returns"].device) for batch in batches]
        returns = [batch.extra["returns"] for batch in batches]
        values = [batch.extra["old_values"] for batch in batches]
        tokens = sum(float((mask != 0).sum()) for mask in masks)
        found = {
            "reward_std": statistics.pstdev(rewards),
            "explained_variance": explained_variance(values, returns, masks),
            "value_mean": sum(float((v * (m != 0)).sum()) for v, m in zip(values, masks, strict=True)) / tokens,
            "return_mean": sum(float(r.sum()) for r in returns) / tokens,
            "kl_coefficient": self.kl,
        }
        if self.config.kl:
            moved = [
                float(((b.extra["old"] - b.extra["reference"]) * (m != 0)).sum())
                for b, m in zip(batches, masks, strict=True)
            ]
            found["kl_answer"] = sum(moved) / len(rewards)
        return found

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Adapt β: it grows where answers are further from the reference than the target, by KL_STEP · n/h at most."""
        if self.config.kl_target:
            answers = sum(len(group.completions) for group in self.groups)
            error = self.figures["kl_answer"] / self.config.kl_target - 1
            self.kl *= 1 + max(-KL_STEP, min(KL_STEP, error)) * answers / self.config.kl_horizon

    def step_metrics(self) -> Mapping[str, float]:
        return self.figures

    def state_dict(self) -> dict[str, Any]:
        return {"next_prompt": self.next_prompt, "kl": self.kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.next_prompt, self.kl = state["next_prompt"], state["kl"]


def sound_groups(groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """Leave out answers without a token, where no reward has a place, and groups without an answer.

    Returns:
        the other groups, and how many answers were empty (only if there were any).
    Raises:
        UserError: nothing is left.
    """
    kept, empty = [], 0
    for group in groups:
        here = [i for i, completion in enumerate(group.completions) if completion.token_ids]
        empty += len(group.completions) - len(here)
        if here:
            answers, figures = [group.completions[i] for i in here], [group.figures[i] for i in here]
            kept.append(replace(group, completions=tuple(answers), figures=tuple(figures)))
    if not kept:
        raise UserError(f"all {empty} answers of a rollout are empty: the engine ends them before their first token")
    return kept, {"answers/dropped_empty": float(empty)} if empty else {}


def answer_samples(groups: Sequence[Group], missing_end_penalty: float) -> list[Sample]:
    """Prompt + answer of every completion, its reward on the last token; only the answer's tokens weigh."""
    samples: list[Sample] = []
    for group in groups:
        before = [0.0] * len(group.prompt.ids)
        for completion, reward in zip(group.completions, group.rewards, strict=True):
            n = len(completion.token_ids)
            less = missing_end_penalty if completion.finish_reason == "length" else 0.0
            samples.append(
                Sample(
                    ids=group.prompt.ids + completion.token_ids,
                    weights=before + [1.0] * n,
                    per_token={
                        "sampled": before + list(completion.logprobs),
                        "reward": before + [0.0] * (n - 1) + [reward - less],
                    },
                    per_segment={"length": float(n), "number": float(len(samples))},
                )
            )
    return samples
