"""Group relative policy optimisation: several answers to one question, scored against each other.

No critic: an answer's advantage is how much better it did than its group (Shao et al. 2024, section 4.1),

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)
    loss = - Σ_tokens min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) / Σ tokens,     ρ = exp(logp - logp_old)

summed over all tokens of the batch (the token-level loss of DAPO, Yu et al. 2025, section 3.3), without a KL term:
the variant "token". The others are named points of the same algebra (variants.py: GRPO, Dr.GRPO, DAPO, GSPO, CISPO,
RLOO, REINFORCE++; policy_loss.py and advantages.py: the formulas). A group whose answers all score the same has
advantage 0 and, without a KL term, is not computed (teaching.py; the loss's own metrics are then of the others); where
all groups do, the step's gradient is that of the KL term alone, and `zero_spread` says so. A tool may write inside an
answer (tool_use.py), and rollouts may be drawn one step ahead (ahead.py). It does not handle rewards per step.

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sekkei.core.config import ABSENT
from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch, Sample
from sekkei.engine.request import Sampling
from sekkei.objectives.advantages import group_advantages
from sekkei.objectives.ahead import Ahead, Pending, plainly
from sekkei.objectives.judged import Judged, scored_figures, scored_groups
from sekkei.objectives.late import late_advantages
from sekkei.objectives.policy_loss import Correction, GRPOLoss
from sekkei.objectives.ranges import check_ranges, check_used
from sekkei.objectives.rollout import (
    Group,
    OnError,
    Prompt,
    check_exact,
    check_policy,
    judged_groups,
    overlong_penalty,
    roll_out,
    rollout_requests,
)
from sekkei.objectives.sft import pack_samples
from sekkei.objectives.teaching import taught
from sekkei.objectives.tool_use import Tool, own_tokens, play
from sekkei.objectives.variants import Algebra, Point, Variant, check_point, point_of
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Update
from sekkei.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Reinforcement learning with verifiable rewards.

    Args:
        steps: rollouts. prompts: groups per step. samples: answers per group. updates: passes over a rollout, each of
            `minibatches` optimizer steps. temperature: of sampling *and* of the loss. micro_tokens: tokens per
            forward pass, about.
        variant: a named point of variants.py, from which the following take what is not given: clip_low, clip_high
            (ε of the ratio), kl (β; 0 = none), dynamic_sampling (groups without spread are drawn anew, from the next
            prompts, up to `max_refills` times). algebra: factors in place of the variant's, see `Algebra`.
        dual_clip, correction…: see `GRPOLoss`. overlong_buffer: tokens before max_tokens over which an answer's
            reward falls by up to overlong_penalty; 0 = off. mask_truncated: answers cut at max_tokens are not learned.
        reward_model: weight of the reward model's score beside the judge's. reward_errors: see `roll_out`.
        off_by: 1 = answers are drawn by the weights of one step ago, while that step trains (ahead.py); it wants a
            correction. tool: that the policy may call at most `max_calls` times in an answer (tool_use.py).
    """

    steps: int
    prompts: int = 32
    samples: int = 8
    temperature: float = 1.0
    max_tokens: int = 128
    updates: int = 1
    minibatches: int = 1
    variant: Variant = "token"
    clip_low: float | None = None
    clip_high: float | None = None
    kl: float | None = None
    dynamic_sampling: bool | None = None
    max_refills: int = 4
    dual_clip: float = 0.0
    correction: Correction = "none"
    correction_low: float = 0.5
    correction_high: float = 2.0
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    mask_truncated: bool = False
    reward_model: float = 0.0
    reward_errors: OnError = "stop"
    off_by: int = 0
    tool: Literal["none", "calculator"] = "none"
    max_calls: int = 4
    algebra: Algebra | None = field(default=None, metadata=ABSENT)
    micro_tokens: int = 8192
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ConfigError("samples", f"got {self.samples}, must be >= 2: an answer is judged against its group")
        if self.temperature <= 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be > 0: greedy answers have no spread")
        counts = (
            "steps",
            "prompts",
            "max_tokens",
            "updates",
            "minibatches",
            "micro_tokens",
            "max_refills",
            "max_calls",
        )
        check_ranges(self, counts=counts, not_negative=("dual_clip", "overlong_penalty", "reward_model"))
        Sampling(temperature=self.temperature)
        if not 0 <= self.overlong_buffer <= self.max_tokens:
            raise ConfigError("overlong_buffer", f"got {self.overlong_buffer}, must be in 0 … max_tokens")
        if self.minibatches > self.prompts:
            raise ConfigError("minibatches", f"got {self.minibatches}, must be <= prompts={self.prompts}")
        check_point(self.point, self.variant, self.updates * self.minibatches)
        self._check_algebra()
        self._check_ahead()
        self.make_loss()

    def _check_ahead(self) -> None:
        if self.off_by not in (0, 1):
            raise ConfigError("off_by", f"got {self.off_by}, must be 0 (draw, then train) or 1 (both at once)")
        if self.off_by and self.correction == "none":
            raise ConfigError(
                "correction",
                "got 'none' with off_by=1: the answers are those of an older policy, and without a correction the "
                "loss takes them for its own; take token_truncate (the others: see policy_loss.py)",
            )
        if self.off_by and self.point.dynamic_sampling:
            raise ConfigError(
                "off_by",
                "got 1 with dynamic_sampling: groups are drawn anew after judging, when the weights that drew the "
                "first ones are gone; set dynamic_sampling: false or off_by: 0",
            )

    def _check_algebra(self) -> None:
        """What is set must do something."""
        point, cut = self.point, self.correction
        check_used(
            self,
            (cut == "none", "correction: none has no bounds; set a correction", ("correction_low", "correction_high")),
            (cut.endswith("truncate"), f"correction: {cut} has an upper bound only; take a mask", ("correction_low",)),
            (not self.overlong_buffer, "overlong_buffer: 0 shapes nothing; set a buffer", ("overlong_penalty",)),
            (not point.dynamic_sampling, "nothing is drawn anew; set dynamic_sampling: true", ("max_refills",)),
            (self.tool == "none", "tool: none is never called; set a tool", ("max_calls",)),
        )
        if point.clip == "none" and (self.clip_low is not None or self.clip_high is not None):
            raise ConfigError(
                "clip_low" if self.clip_high is None else "clip_high", "set, but clip: none has no bounds"
            )
        if point.clip == "cispo" and self.clip_low is not None:
            raise ConfigError("clip_low", f"got {self.clip_low}, but CISPO bounds the weight above only: set clip_high")
        chosen = self.algebra
        if chosen is not None and not point.kl and (chosen.estimator is not None or chosen.kl_place is not None):
            raise ConfigError(
                "kl", f"got 0, so the algebra's {chosen.estimator or chosen.kl_place} does nothing: set β"
            )

    @property
    def point(self) -> Point:
        """The variant, with what this config sets itself."""
        own = {key: getattr(self, key) for key in ("clip_low", "clip_high", "kl", "dynamic_sampling")}
        point = point_of(self.variant) if self.algebra is None else self.algebra.of(point_of(self.variant))
        return replace(point, **{key: value for key, value in own.items() if value is not None})

    @property
    def needs(self) -> frozenset[str]:
        """Which models and services this needs."""
        wanted = {"engine": True, "reference": self.point.kl > 0, "reward": self.reward_model != 0}
        return frozenset(name for name, here in wanted.items() if here)

    def make_loss(self) -> GRPOLoss:
        """The loss of the point."""
        point = self.point
        return GRPOLoss(
            point.clip_low,
            point.clip_high,
            self.temperature,
            ratio=point.ratio,
            clip=point.clip,
            aggregation=point.aggregation,
            dual_clip=self.dual_clip,
            max_tokens=self.max_tokens,
            kl=point.kl if point.kl_place == "loss" else 0.0,
            estimator=point.estimator,
            correction=self.correction,
            correction_low=self.correction_low,
            correction_high=self.correction_high,
        )


class GRPO:
    """Rolls out, scores and returns updates.

    Args:
        prompt: index -> prompt, a pure function, endless. stop_tokens: that end an answer (with a tool: a turn).
        tool: what `config.tool` names. judged: a judge that reads answers (judged.py).
    """

    def __init__(
        self,
        prompt: Callable[[int], Prompt],
        config: GRPOConfig,
        stop_tokens: tuple[int, ...],
        tool: Tool | None = None,
        judged: Judged | None = None,
    ) -> None:
        if (config.tool == "none") != (tool is None):
            raise RuntimeError(f"config.tool={config.tool!r}, and the stage has {'no' if tool is None else 'a'} tool")
        self.prompt, self.config, self.tool, self.judged = prompt, config, tool, judged
        self.pending: Pending | None = None
        self.sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens, stop_tokens=stop_tokens)
        self.loss, self.point = config.make_loss(), config.point
        self.needs = config.needs
        self.next_prompt = 0
        self.figures: dict[str, float] = {}
        self.groups: list[Group] = []
        """The last rollout, for tables of samples."""

    def next_step(self, ctx: Context) -> list[Update]:
        check_policy(ctx.models.get("policy"))
        config = self.config
        self.groups, self.figures = self._one_ahead(ctx) if config.off_by else self._roll_out(ctx)
        judged = [group for group in self.groups if group.completions]  # where no answer could be, there is no group
        parts = split(judged, config.minibatches)
        samples = [group_samples(part, config, self.point) for part in parts]
        if self.point.kl == 0 and self.point.advantage != "batch_std":
            samples = [taught(part, self.point.aggregation) for part in samples]
        packed = [pack_samples(part, config.micro_tokens, in_order=True) for part in samples]
        steps = config.updates * config.minibatches
        in_reward = self.point.kl > 0 and self.point.kl_place == "reward"
        scored = [[self._scored(batch, ctx, steps > 1 or in_reward) for batch in batches] for batches in packed]
        if in_reward or self.point.advantage == "batch_std":
            scored = late_advantages(scored, parts, self.point, ctx)
        return [Update("policy", batches, self.loss) for _ in range(config.updates) for batches in scored]

    def _roll_out(self, ctx: Context) -> tuple[list[Group], dict[str, float]]:
        """The groups to learn from, and the figures of all that were drawn."""
        kept: list[Group] = []
        drawn: list[Group] = []
        rounds, wanted = 0, self.config.prompts
        while True:
            prompts = self._take_prompts(wanted - len(kept))
            new = roll_out(
                *(ctx, prompts, self.sampling, self.config.samples, len(drawn)),
                on_error=self.config.reward_errors,
                tool=self.tool,
            )
            new = self._rewarded(ctx, new)
            drawn += new
            if not self.point.dynamic_sampling:
                return drawn, scored_figures(drawn, self.judged)
            kept += [group for group in new if group.has_spread]
            missing = torch.tensor(float(wanted - len(kept)), device=ctx.device)
            if float(ctx.ops.all_sum(missing)) == 0 or rounds == self.config.max_refills:  # the same on every rank
                break
            rounds += 1
        figures = {**scored_figures(drawn, self.judged), "refills": float(rounds), "groups_drawn": float(len(drawn))}
        flat = [group for group in drawn if group.completions and not group.has_spread]
        return kept + flat[: wanted - len(kept)], figures

    def _one_ahead(self, ctx: Context) -> tuple[list[Group], dict[str, float]]:
        """The groups that were drawn while the step before trained; those of the next step are drawn from here on."""
        engine = ctx.generate
        if not isinstance(engine, Ahead):
            raise RuntimeError("grpo.off_by=1 needs an engine with its own copy of the weights (ahead.OwnCopy)")
        if self.pending is None:
            engine.take()
            self.pending = self._begin(ctx, engine, ctx.step)
        drawn = self.pending
        assert drawn.step == ctx.step, (drawn.step, ctx.step)
        prompts = [self.prompt(drawn.first_prompt + i) for i in range(self.config.prompts)]
        answered = drawn.answers()
        now = engine.take()
        last = ctx.step + 1 >= self.config.steps
        self.pending = None if last else self._begin(ctx, engine, ctx.step + 1)
        groups = self._rewarded(ctx, judged_groups(prompts, answered, self.config.reward_errors))
        stale = any(completion.weights_hash != now for group in groups for completion in group.completions)
        return groups, {**scored_figures(groups, self.judged), "staleness": float(stale)}

    def _begin(self, ctx: Context, engine: Ahead, step: int) -> Pending:
        check_exact(self.sampling)
        first, prompts = self.next_prompt, self._take_prompts(self.config.prompts)
        requests = rollout_requests(ctx.seed, step, prompts, self.sampling, self.config.samples)
        return Pending(
            step, first, engine.begin(requests, plainly if self.tool is None else partial(play, tool=self.tool))
        )

    def _take_prompts(self, count: int) -> list[Prompt]:
        prompts = [self.prompt(self.next_prompt + i) for i in range(count)]
        self.next_prompt += count
        return prompts

    def _rewarded(self, ctx: Context, groups: list[Group]) -> list[Group]:
        """With the reward model's part, the judge's, and the overlong penalty."""
        groups = scored_groups(ctx, groups, self.config, self.judged)
        return [shaped(group, self.config) for group in groups]

    def _scored(self, batch: Batch, ctx: Context, with_old: bool) -> Batch:
        """With the log-probs of the trainer before the first update, and of the reference, where they are needed."""
        extra = {}
        if with_old:
            extra["old"] = self._logprobs("policy", batch, ctx)
        if "reference" in self.needs:
            if "reference" not in ctx.models:
                raise ConfigError("kl", f"got {self.point.kl}, but there is no reference model to stay near to")
            extra["reference"] = self._logprobs("reference", batch, ctx)
        return batch.with_extra(**extra)

    def _logprobs(self, role: str, batch: Batch, ctx: Context) -> Tensor:
        out = ctx.score(role, batch, frozenset({"logprobs"}), self.config.temperature)
        assert out.logprobs is not None
        return out.logprobs

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return self.figures

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"next_prompt": self.next_prompt}
        return state if self.pending is None else {**state, "pending": self.pending.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.next_prompt = state["next_prompt"]
        self.pending = Pending.of(state["pending"]) if "pending" in state else None


def split(groups: Sequence[Group], parts: int) -> list[list[Group]]:
    """Contiguous parts of about equally many groups; never an empty one."""
    bounds = [round(i * len(groups) / parts) for i in range(parts + 1)]
    return [list(groups[a:b]) for a, b in itertools.pairwise(bounds) if b > a]


def shaped(group: Group, config: GRPOConfig) -> Group:
    """With the overlong penalty in the reward, logged by its own name."""
    if not config.overlong_buffer:
        return group
    figures = []
    for completion, values in zip(group.completions, group.figures, strict=True):
        penalty = overlong_penalty(len(completion.token_ids), config.max_tokens, config.overlong_buffer)
        penalty *= config.overlong_penalty
        figures.append({**values, "reward": values["reward"] + penalty, "overlong_penalty": penalty})
    return replace(group, figures=tuple(figures))


def group_samples(
    groups: Sequence[Group], config: GRPOConfig | None = None, point: Point | None = None
) -> list[Sample]:
    """Prompt + answer of every completion; only tokens that the policy wrote, its stop token among them, weigh.

    length: scored tokens of the answer; number: of the answer in this list.
    """
    samples: list[Sample] = []
    for group in groups:
        prompt = group.prompt.ids
        advantages = group_advantages(group.rewards, point.advantage if point is not None else "group_std")
        for completion, advantage in zip(group.completions, advantages, strict=True):
            own = own_tokens(completion)
            before = [0.0] * len(prompt)
            cut = config is not None and config.mask_truncated and completion.finish_reason == "length"
            samples.append(
                Sample(
                    ids=prompt + completion.token_ids,
                    weights=before + [0.0 if cut else float(mine) for mine in own],
                    per_token={
                        "advantages": before + [advantage] * len(own),
                        "sampled": before + list(completion.logprobs),
                    },
                    per_segment={"length": float(sum(own)), "number": float(len(samples))},
                )
            )
    return samples
