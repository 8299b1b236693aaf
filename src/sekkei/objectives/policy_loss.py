"""The policy gradient of the whole GRPO family and of PPO: ratio level × clip × aggregation × KL × correction.

    ρ          token: π(x_t)/π_old(x_t)       sequence: the geometric mean over the answer (GSPO, Zheng et al. 2025)
               sequence_token: the same value with each token's own gradient (GSPO, eq. 14)
               sequence_sum: their product, the ratio of whole answers (RLOO as TRL has it)
    surrogate  ppo: min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A), with dual_clip c ≥ c A for A < 0 (Ye et al. 2020)
               cispo: sg(min(ρ, 1 + ε_high)) A log π (MiniMax-M1 2025, eq. 4)      none: ρ A
    loss       -Σ w_t surrogate_t + β Σ w_t KL_t
    w_t        token: 1 / all tokens (DAPO)    sequence: 1 / (answers · own length) (GRPO)
               constant: 1 / (answers · max_tokens) (Dr.GRPO, Liu et al. 2025)
    KL_t       of d = log π - log π_ref:  k1 = d,  k2 = d²/2,  k3 = e^-d - 1 + d (Schulman 2020),  k3_ratio = ρ k3
    correction a factor on the surrogate for what the sampler's log-probs differ from the trainer's, per token or
               sequence, truncated above or masked outside of its bounds (Yao et al. 2025; IcePop)

Which of the estimators are unbiased, and which gradient they give, is in docs/alignment.md. With one update per rollout
ρ is 1, the clip is idle and the loss's *value* says nothing about progress. It does not compute advantages.

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch
from sekkei.model.output import Output
from sekkei.parallel.ops import Ops
from sekkei.train.objective import Mean, Metrics

Ratio = Literal["token", "sequence", "sequence_token", "sequence_sum"]
Clip = Literal["ppo", "cispo", "none"]
Aggregation = Literal["token", "sequence", "constant"]
Estimator = Literal["k1", "k2", "k3", "k3_ratio"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class GRPOLoss:
    """One point of the algebra above.

    Reads `extra`, per token [B, T]: advantages; sampled, the sampler's log-probs; old, the trainer's log-probs before
    the first update, where a rollout serves several; reference, where there is a KL term (measured wherever it is
    there). Per segment [B, S]: length, scored tokens of the answer (unless ratio and aggregation are both "token").

    Args:
        clip_low, clip_high: ε of the ratio. dual_clip: c; 0 = none. max_tokens: the divisor of "constant".
        kl: β. correction_low, correction_high: bounds of the correction's factor; truncation has the upper one only.
    """

    clip_low: float
    clip_high: float
    temperature: float
    ratio: Ratio = "token"
    clip: Clip = "ppo"
    aggregation: Aggregation = "token"
    dual_clip: float = 0.0
    max_tokens: int = 0
    kl: float = 0.0
    estimator: Estimator = "k3"
    correction: Correction = "none"
    correction_low: float = 0.5
    correction_high: float = 2.0
    wants: frozenset[str] = frozenset({"logprobs", "entropy"})

    def __post_init__(self) -> None:
        if self.dual_clip and (self.clip != "ppo" or self.dual_clip <= 1 + self.clip_high):
            raise ConfigError(
                "dual_clip",
                f"got {self.dual_clip}, must be > 1 + clip_high={self.clip_high}, with clip: ppo (0 = none)",
            )
        if self.aggregation == "constant" and self.max_tokens < 1:
            raise ConfigError(
                "max_tokens", f"got {self.max_tokens}, must be >= 1: aggregation 'constant' divides by it"
            )
        if not 0 <= self.correction_low < 1 < self.correction_high:
            raise ConfigError(
                "correction_low",
                f"{self.correction_low} and correction_high={self.correction_high}: 0 <= low < 1 < high",
            )

    def units(self, batch: Batch) -> dict[str, Tensor]:
        if self.aggregation == "token":
            return {"tokens": batch.mask.sum()}
        answers = (batch.extra["length"] > 0).sum()
        return {"tokens": answers * self.max_tokens if self.aggregation == "constant" else answers}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        assert out.entropy is not None
        advantages, mask, tokens = batch.extra["advantages"], batch.mask, batch.mask.sum()
        old = batch.extra["old"] if "old" in batch.extra else out.logprobs.detach()
        ratio = self._ratio(out.logprobs, old, batch, ops)
        surrogate, cut = self._surrogate(ratio, advantages, out.logprobs)
        measured = {
            "entropy": out.entropy.detach(),
            "clip_fraction": cut,
            "clip_fraction/low": cut * (advantages < 0),
            "clip_fraction/high": cut * (advantages > 0),
            "engine_gap": (old - batch.extra["sampled"]).abs(),  # the trainer at rollout time, not what it became
        }
        if "old" in batch.extra:
            moved = (out.logprobs - old).detach()
            measured["approx_kl"] = moved.exp() - 1 - moved  # k3 of KL(old || now): the tokens are old's
        if self.correction != "none":
            factor, raw = self._correction(old, batch, ops)
            surrogate = surrogate * factor
            measured |= {"correction/ratio": raw, "correction/cut": (factor != raw).to(raw)}
        if "reference" in batch.extra:
            measured["kl"] = kl_estimate(out.logprobs.detach(), batch.extra["reference"], "k3")
        weights = self._weights(batch)
        loss = -(surrogate * weights).sum()
        if self.kl:
            kl = kl_estimate(out.logprobs, batch.extra["reference"], self.estimator, ratio)
            loss = loss + self.kl * (kl * weights).sum()
        return {"tokens": loss}, {name: Mean((x * mask).sum(), tokens) for name, x in measured.items()}

    def _ratio(self, logprobs: Tensor, old: Tensor, batch: Batch, ops: Ops) -> Tensor:
        """[B, T]: ρ of each token."""
        if self.ratio == "token":
            return (logprobs - old).exp()
        length = batch.extra["length"]
        scored = (batch.mask != 0).to(logprobs)
        total = ops.sequence_sum((logprobs - old) * scored, batch.segments, length.shape[1])
        if self.ratio == "sequence_sum":
            return spread(total.exp(), batch.segments)
        whole = spread(total / length.clamp(min=1), batch.segments)
        if self.ratio == "sequence_token":
            whole = whole.detach() + logprobs - logprobs.detach()
        return whole.exp()

    def _surrogate(self, ratio: Tensor, advantages: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """What each token gains, [B, T], and 1 where the clip has cut."""
        if self.clip == "none":
            return ratio * advantages, torch.zeros_like(ratio)
        if self.clip == "cispo":
            capped = ratio.detach().clamp(max=1 + self.clip_high)
            return capped * advantages * logprobs, (ratio.detach() > 1 + self.clip_high).float()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages)
        cut = (clipped * advantages < ratio * advantages).float()
        if self.dual_clip:
            floor = self.dual_clip * advantages
            low = (advantages < 0) & (surrogate < floor)
            surrogate, cut = torch.where(low, floor, surrogate), torch.maximum(cut, low.float())
        return surrogate, cut

    def _weights(self, batch: Batch) -> Tensor:
        """[B, T]: w_t times the unit."""
        if self.aggregation != "sequence":
            return batch.mask
        return batch.mask * spread(1 / batch.extra["length"].clamp(min=1), batch.segments).to(batch.mask)

    def _correction(self, old: Tensor, batch: Batch, ops: Ops) -> tuple[Tensor, Tensor]:
        """[B, T]: the factor, and what it was before its bounds."""
        gap = (old - batch.extra["sampled"]).detach() * (batch.mask != 0)
        if self.correction.startswith("sequence"):
            gap = spread(ops.sequence_sum(gap, batch.segments, batch.extra["length"].shape[1]), batch.segments)
        raw = gap.exp()
        if self.correction.endswith("truncate"):
            return raw.clamp(max=self.correction_high), raw
        outside = (raw < self.correction_low) | (raw > self.correction_high)
        return raw.masked_fill(outside, 0.0), raw


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: Estimator, ratio: Tensor | None = None) -> Tensor:
    """Per token, an estimate of KL(π || π_ref) from tokens drawn from π; the same shape as both."""
    gap = logprobs - reference
    if estimator == "k1":
        return gap
    if estimator == "k2":
        return 0.5 * gap**2
    k3 = (-gap).exp() - 1 + gap
    if estimator == "k3":
        return k3
    assert ratio is not None
    return k3 * ratio


def spread(values: Tensor, segments: Tensor) -> Tensor:
    """[B, S] -> [B, T]: each segment's value on its tokens, 0 on padding."""
    padded = torch.nn.functional.pad(values, (1, 0))  # column 0 serves the padding, segment -1
    return padded.gather(1, segments + 1)
