"""Group relative policy optimisation: several answers to one question, scored against each other.

No critic: an answer's advantage is how much better it did than its group (Shao et al. 2024, section 4.1),

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)
    loss = - Σ_tokens min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) / Σ tokens,     ρ = exp(logp - logp_old)

summed over all tokens of the batch (the token-level loss of DAPO, Yu et al. 2025, section 3.3), without
a KL term. With one update per rollout ρ is 1 and the clip is idle; the loss's *value* is then about 0 by
construction and says nothing about progress: read the reward. A group whose answers all score the same
has advantage 0. It does not handle rewards per step, or tools inside the rollout.

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch, Sample
from sekkei.engine.request import Sampling
from sekkei.model.output import Output
from sekkei.objectives.rollout import Group, Prompt, roll_out
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import Ops
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Mean, Metrics, Update
from sekkei.train.optim import OptimConfig

STD_FLOOR = 1e-4  # as in the reference pilot; keeps a lucky near-constant group from dominating


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Reinforcement learning with verifiable rewards.

    Args:
        steps: rollouts. prompts: groups per step. samples: answers per group. updates: optimizer steps per
            rollout. temperature: of sampling *and* of the loss. clip_low, clip_high: ε of the ratio.
            micro_tokens: tokens per forward pass, about.
    """

    steps: int
    prompts: int = 32
    samples: int = 8
    temperature: float = 1.0
    max_tokens: int = 128
    updates: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    micro_tokens: int = 8192
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ConfigError("samples", f"got {self.samples}, must be >= 2: an answer is judged against its group")
        if self.temperature <= 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be > 0: greedy answers have no spread")
        for key in ("steps", "prompts", "max_tokens", "updates", "micro_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if not 0 < self.clip_low < 1 or self.clip_high <= 0:
            raise ConfigError("clip_low", f"got {self.clip_low} and clip_high={self.clip_high}: 0 < low < 1, high > 0")


@dataclass(frozen=True)
class GRPOLoss:
    """The clipped policy gradient.

    Reads `extra`: advantages and sampled log-probs, [B, T], and old log-probs where a rollout serves several updates.
    """

    clip_low: float
    clip_high: float
    temperature: float
    wants: frozenset[str] = frozenset({"logprobs", "entropy"})

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": batch.mask.sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        assert out.entropy is not None
        advantages, mask, tokens = batch.extra["advantages"], batch.mask, batch.mask.sum()
        old = batch.extra["old"] if "old" in batch.extra else out.logprobs.detach()
        ratio = (out.logprobs - old).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages)
        cut = (clipped * advantages < ratio * advantages).float()
        gap = (out.logprobs.detach() - batch.extra["sampled"]).abs()
        metrics = {
            "entropy": Mean((out.entropy.detach() * mask).sum(), tokens),
            "clip_fraction": Mean((cut * mask).sum(), tokens),
            "engine_gap": Mean((gap * mask).sum(), tokens),
        }
        return {"tokens": -(surrogate * mask).sum()}, metrics


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / (std + 1e-4) with the population's standard deviation; all 0 where the group has no spread."""
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    if max(rewards) == min(rewards):  # never divide by the float noise of a constant group
        return [0.0] * len(rewards)
    return [(reward - mean) / (spread + STD_FLOOR) for reward in rewards]


class GRPO:
    """Rolls out, scores and returns updates.

    Args:
        prompt: index -> prompt, a pure function, endless. stop_tokens: that end an answer.
    """

    needs: frozenset[str] = frozenset({"engine"})

    def __init__(self, prompt: Callable[[int], Prompt], config: GRPOConfig, stop_tokens: tuple[int, ...]) -> None:
        self.prompt, self.config = prompt, config
        self.sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens, stop_tokens=stop_tokens)
        self.loss = GRPOLoss(config.clip_low, config.clip_high, config.temperature)
        self.next_prompt = 0
        self.figures: dict[str, float] = {}

    def next_step(self, ctx: Context) -> list[Update]:
        prompts = [self.prompt(self.next_prompt + i) for i in range(self.config.prompts)]
        self.next_prompt += len(prompts)
        groups = roll_out(ctx, prompts, self.sampling, self.config.samples)
        self.figures = group_figures(groups)
        batches = pack_samples(group_samples(groups), self.config.micro_tokens)
        if self.config.updates > 1:
            batches = [batch.with_extra(old=self._old(batch, ctx)) for batch in batches]
        return [Update("policy", batches, self.loss) for _ in range(self.config.updates)]

    def _old(self, batch: Batch, ctx: Context) -> Tensor:
        out = ctx.score("policy", batch, frozenset({"logprobs"}), self.config.temperature)
        assert out.logprobs is not None
        return out.logprobs

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return self.figures

    def state_dict(self) -> dict[str, Any]:
        return {"next_prompt": self.next_prompt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.next_prompt = state["next_prompt"]


def group_samples(groups: Sequence[Group]) -> list[Sample]:
    """Prompt + answer of every completion; only the answer's tokens, its stop token among them, weigh."""
    samples = []
    for group in groups:
        prompt = group.prompt.ids
        for completion, advantage in zip(group.completions, group_advantages(group.rewards), strict=True):
            n = len(completion.token_ids)
            before = [0.0] * len(prompt)
            samples.append(
                Sample(
                    ids=prompt + completion.token_ids,
                    weights=before + [1.0] * n,
                    per_token={
                        "advantages": before + [advantage] * n,
                        "sampled": before + list(completion.logprobs),
                    },
                )
            )
    return samples


def group_figures(groups: Sequence[Group]) -> dict[str, float]:
    """Means of every figure that the judges gave, over the answers that have it; spread of the groups, lengths."""
    answers = [figures for group in groups for figures in group.figures]
    names = sorted({name for figures in answers for name in figures})
    result = {name: statistics.fmean([figures[name] for figures in answers if name in figures]) for name in names}
    completions = [completion for group in groups for completion in group.completions]
    result["reward_std"] = statistics.fmean([statistics.pstdev(group.rewards) for group in groups])
    result["zero_spread"] = statistics.fmean([max(g.rewards) == min(g.rewards) for g in groups])
    result["completion_tokens"] = statistics.fmean([len(c.token_ids) for c in completions])
    result["ended"] = statistics.fmean([c.finish_reason == "stop" for c in completions])
    return result
