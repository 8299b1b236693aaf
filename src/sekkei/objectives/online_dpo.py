"""Online DPO: pairs from the policy's answers of this step (Guo et al. 2024, "Direct Language Model Alignment from
Online AI Feedback", section 3; the judge is a verifier, a reward model, a model that reads, or a sum of them).

    prompts ─ engine ─► several answers each ─ judge ─► best against worst of each group ─► a loss of pair_loss.py

A group whose answers all score the same makes no pair; a step without any pair takes no optimizer step, and says so
("pairs": 0). Of equally good answers the first is taken. Both answers are samples of the policy, so that the loss sees
what the policy does now, not what another model did once. It does not keep pairs for later steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sekkei.core.errors import ConfigError
from sekkei.engine.request import Sampling
from sekkei.objectives.judged import Judged, scored_figures, scored_groups
from sekkei.objectives.pair_loss import DPOLoss, PairKind, nll_weight
from sekkei.objectives.preference import Pair, pair_batches, sound_pairs, with_reference
from sekkei.objectives.ranges import check_ranges
from sekkei.objectives.rollout import Group, OnError, Prompt, check_policy, roll_out
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Update
from sekkei.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class OnlineDPOConfig:
    """DPO on the policy's own answers.

    Args:
        steps: rollouts, each followed by one optimizer step. prompts: per step. samples: answers to each.
        loss, beta, nll, smoothing, gamma: see `DPOConfig`. reward_model, reward_errors: as for GRPO.
    """

    steps: int
    prompts: int = 32
    samples: int = 4
    temperature: float = 1.0
    max_tokens: int = 128
    loss: PairKind = "sigmoid"
    beta: float = 0.1
    nll: float | None = None
    smoothing: float = 0.0
    gamma: float = 0.0
    reward_model: float = 0.0
    reward_errors: OnError = "stop"
    micro_tokens: int = 8192
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ConfigError("samples", f"got {self.samples}, must be >= 2: a pair has two answers")
        if self.temperature <= 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be > 0: greedy answers are all the same")
        counts = ("steps", "prompts", "max_tokens", "micro_tokens")
        check_ranges(self, counts=counts, not_negative=("reward_model",))
        Sampling(temperature=self.temperature)
        self.make_loss()

    def make_loss(self) -> DPOLoss:
        """The loss that these settings name."""
        return DPOLoss(self.beta, nll_weight(self.loss, self.nll), self.loss, self.smoothing, self.gamma)

    @property
    def needs(self) -> frozenset[str]:
        """Which models and services this needs."""
        wanted = {"engine": True, "reference": self.make_loss().needs_reference, "reward": self.reward_model != 0}
        return frozenset(name for name, here in wanted.items() if here)


class OnlineDPO:
    """Rolls out, pairs and returns an update.

    Args:
        prompt: index -> prompt, a pure function, endless. stop_tokens: that end an answer. judged: see judged.py.
    """

    def __init__(
        self,
        prompt: Callable[[int], Prompt],
        config: OnlineDPOConfig,
        stop_tokens: tuple[int, ...],
        judged: Judged | None = None,
    ) -> None:
        self.prompt, self.config, self.judged = prompt, config, judged
        self.sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens, stop_tokens=stop_tokens)
        self.loss, self.needs = config.make_loss(), config.needs
        self.next_prompt = 0
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
        found = best_against_worst(groups)
        kept, dropped = sound_pairs(found)
        pairs = [found[i] for i in kept]
        self.figures = {**scored_figures(groups, self.judged), **dropped, "pairs": float(len(pairs))}
        if not pairs:
            return []
        batches = pair_batches(pairs, config.micro_tokens)
        if "reference" in self.needs:
            if "reference" not in ctx.models:
                raise ConfigError("loss", f"{config.loss} needs a reference model; simpo, cpo and orpo do not")
            batches = with_reference(batches, ctx)
        return [Update("policy", batches, self.loss)]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return self.figures

    def state_dict(self) -> dict[str, Any]:
        return {"next_prompt": self.next_prompt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.next_prompt = state["next_prompt"]


def best_against_worst(groups: Sequence[Group]) -> list[Pair]:
    """A pair of each group with spread."""
    pairs = []
    for group in groups:
        if group.has_spread:
            rewards = group.rewards
            best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
            answers = [group.completions[i].token_ids for i in (best, worst)]
            pairs.append(Pair(group.prompt.ids, answers[0], answers[1], "online"))
    return pairs
