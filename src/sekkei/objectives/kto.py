"""KTO: preference optimisation from single answers that somebody liked or did not (Ethayarajh et al. 2024, eq. 7-8).

With Δ = log π(y|x) - log π_ref(y|x), summed over the answer's tokens, and z the KL of policy from reference:

    liked      λ_D (1 - σ(β (Δ - z)))
    disliked   λ_U (1 - σ(β (z - Δ)))          averaged over all answers of the global batch

z is estimated as the paper does: Δ of *mismatched* prompts and answers (each prompt with the next one's answer),
averaged over the global batch, not below 0, and without gradient; it is scored just before the update by the weights
that the update starts from. It does not handle pairs (preference.py).

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sekkei.core.atomic import sha256_json
from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch, Sample
from sekkei.model.output import Output
from sekkei.objectives.pair_loss import sequence_logprobs
from sekkei.objectives.passes import Passes
from sekkei.objectives.preference import with_reference
from sekkei.objectives.ranges import check_ranges
from sekkei.objectives.rollout import check_policy
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import LocalOps, Ops
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Mean, Metrics, Update
from sekkei.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class KTOConfig:
    """Unpaired preferences. beta: pull to the reference. liked, disliked: weights λ_D and λ_U; the paper wants
    λ_D · (liked answers) : λ_U · (disliked) between 1:1 and 4:3. answers: of the global batch, at least 2.
    """

    steps: int
    beta: float = 0.1
    liked: float = 1.0
    disliked: float = 1.0
    answers: int = 32
    micro_tokens: int = 8192
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        check_ranges(self, counts=("steps", "micro_tokens"), positive=("beta", "liked", "disliked"))
        if self.answers < 2:
            raise ConfigError("answers", f"got {self.answers}, must be >= 2: a mismatched answer is another prompt's")


@dataclass(frozen=True)
class Feedback:
    """A prompt (token ids), one answer as it was generated, and whether it is good."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    desirable: bool

    def sample(self) -> Sample:
        """Only the answer's tokens weigh. sign: +1 liked, -1 disliked."""
        weights = [0.0] * len(self.prompt) + [1.0] * len(self.answer)
        return Sample(
            ids=self.prompt + self.answer, weights=weights, per_segment={"sign": 1.0 if self.desirable else -1.0}
        )


@dataclass(frozen=True)
class KTOLoss:
    """Reads `extra`: sign and ref, [B, S] as in `DPOLoss`; kl [B, S], z, the same everywhere."""

    beta: float
    liked: float = 1.0
    disliked: float = 1.0
    wants: frozenset[str] = frozenset({"logprobs"})
    temperature: float = 1.0

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"answers": (batch.extra["sign"] != 0).sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        sign = batch.extra["sign"]
        sums = sequence_logprobs(out.logprobs, batch, ops)
        gain = sums - batch.extra["ref"]
        losses = 1 - (self.beta * sign * (gain - batch.extra["kl"])).sigmoid()
        weights = self.liked * (sign > 0) + self.disliked * (sign < 0)
        metrics: Metrics = {"kl": Mean((batch.extra["kl"] * (sign != 0)).sum(), (sign != 0).sum().to(gain))}
        for name, here in (("chosen", sign > 0), ("rejected", sign < 0)):
            count = here.sum().to(gain)
            metrics[f"rewards/{name}"] = Mean((self.beta * gain.detach() * here).sum(), count)
            metrics[f"logps/{name}"] = Mean((sums.detach() * here).sum(), count)
        return {"answers": (weights * losses).sum()}, metrics


def sound_feedback(feedback: Sequence[Feedback], longest: int | None = None) -> tuple[list[Feedback], dict[str, float]]:
    """Leave out empty answers and what is longer than `longest` tokens; the counts say how many."""
    kept: list[Feedback] = []
    dropped: Counter[str] = Counter()
    for one in feedback:
        if not one.answer:
            dropped["answers/dropped_empty"] += 1
        elif longest is not None and len(one.prompt) + len(one.answer) > longest:
            dropped["answers/dropped_long"] += 1
        else:
            kept.append(one)
    return kept, {name: float(count) for name, count in dropped.items()}


class KTO:
    """KTO over a fixed set of answers, shuffled anew for every pass.

    Args:
        longest: tokens that a prompt and an answer may have together; None: any.
    Raises:
        ConfigError: nobody liked anything, or nobody disliked anything.
    """

    needs: frozenset[str] = frozenset({"reference"})

    def __init__(self, feedback: Sequence[Feedback], config: KTOConfig, longest: int | None = None) -> None:
        self.feedback, self.dropped = sound_feedback(feedback, longest)
        if len({one.desirable for one in self.feedback}) < 2:
            raise ConfigError("kto", "needs both liked and disliked answers; with one kind alone use sft")
        self.config = config
        self.loss = KTOLoss(config.beta, config.liked, config.disliked)
        self.next_answer = 0
        self.passes = Passes("feedback", len(self.feedback))

    def next_step(self, ctx: Context) -> list[Update]:
        check_policy(ctx.models.get("policy"))
        count = self.config.answers
        taken = [self.feedback[self.passes.index(ctx.seed, self.next_answer + i)] for i in range(count)]
        self.next_answer += count
        batches = with_reference(pack_samples([one.sample() for one in taken], self.config.micro_tokens), ctx)
        kl = mismatched_kl(taken, ctx, self.config.micro_tokens)
        batches = [batch.with_extra(kl=torch.full_like(batch.extra["sign"], kl)) for batch in batches]
        return [Update("policy", batches, self.loss)]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return self.dropped

    def state_dict(self) -> dict[str, Any]:
        return {"next_answer": self.next_answer, "feedback": self._digest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["feedback"] != self._digest():
            raise ConfigError("kto", "the checkpoint was trained on other answers; run again with --force")
        self.next_answer = state["next_answer"]

    def _digest(self) -> str:
        return sha256_json([[one.prompt, one.answer, one.desirable] for one in self.feedback])


def mismatched_kl(feedback: Sequence[Feedback], ctx: Context, micro_tokens: int) -> float:
    """z: the mean of Δ over each prompt with the next one's answer, over all data ranks, at least 0."""
    moved = [*feedback[1:], feedback[0]]
    samples = [Feedback(one.prompt, other.answer, True).sample() for one, other in zip(feedback, moved, strict=True)]
    total = torch.zeros(2, dtype=torch.float64, device=ctx.device)
    for batch in with_reference(pack_samples(samples, micro_tokens), ctx):
        out = ctx.score("policy", batch, frozenset({"logprobs"}), 1.0)
        assert out.logprobs is not None
        here = batch.to(ctx.device)
        gain = sequence_logprobs(out.logprobs, here, LocalOps()) - here.extra["ref"]
        total += torch.stack([gain.sum(), here.extra["sign"].sum()]).to(total)
    total = ctx.ops.all_sum(total)
    return max(float(total[0] / total[1]), 0.0)
