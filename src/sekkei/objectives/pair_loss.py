"""Losses of a preferred and a rejected answer: DPO and its relatives as named points.

With s = Σ log p over an answer's tokens, n their number, and Δ = s - s_ref (the reference model's):

    name       reward r of an answer    loss of a pair, m = r_chosen - r_rejected      source
    sigmoid    β Δ                      -log σ(m)                                      Rafailov et al. 2023, eq. 7
    cdpo       β Δ                      -(1-ε) log σ(m) - ε log σ(-m)                  Mitchell 2023, eq. 3
    robust     β Δ                      (-(1-ε) log σ(m) + ε log σ(-m)) / (1 - 2ε)     Chowdhury et al. 2024, eq. 10
    ipo_mean   β Δ / n                  ((m - 1/2) / β)²                               Azar et al. 2023, eq. 17; TRL
    ipo_sum    β Δ                      ((m - 1/2) / β)²                               the same, as printed
    hinge      β Δ                      max(0, 1 - m)                                  Zhao et al. 2023 (SLiC), eq. 8
    simpo      β s / n                  -log σ(m - γ)                                  Meng et al. 2024, eq. 6
    cpo        β s                      -log σ(m)                                      Xu et al. 2024, eq. 3
    orpo       odds of e^(s/n)          -β log σ(log odds_chosen - log odds_rejected)  Hong et al. 2024, eq. 6-7

Each may add `nll` · NLL(chosen) per chosen token, the term against likelihood displacement (Pang et al. 2024); CPO and
ORPO are published with it (weight 1), the others without, and so they are here unless a weight is set. What the last
three need no reference for is that term. It does not handle unpaired feedback (kto.py), nor lists of more than two
answers.

Shapes: `B` rows, `T` tokens, `S` segments per row, `P` pairs of the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch
from sekkei.model.output import Output
from sekkei.objectives.ranges import check_ranges
from sekkei.parallel.ops import Ops
from sekkei.train.objective import Mean, Metrics

PairKind = Literal["sigmoid", "cdpo", "robust", "ipo_mean", "ipo_sum", "hinge", "simpo", "cpo", "orpo"]
REFERENCE_FREE = frozenset({"simpo", "cpo", "orpo"})
PER_TOKEN_REWARD = frozenset({"ipo_mean", "simpo", "orpo"})
SMOOTHED = frozenset({"cdpo", "robust"})
PUBLISHED_NLL: dict[str, float] = {"cpo": 1.0, "orpo": 1.0}  # the others: 0
CERTAIN = -1e-7  # a mean log-probability above it would have infinite odds


def nll_weight(kind: PairKind, nll: float | None) -> float:
    """The weight of the chosen answers' NLL: the one that is set, else what the loss is published with.

    Raises:
        ConfigError: nothing would hold the loss: without a reference or a length norm likelihood runs away.
    """
    if kind in PUBLISHED_NLL and nll == 0:
        raise ConfigError("nll", f"got 0, but {kind} has no reference: this term (1 in the paper) holds it")
    return PUBLISHED_NLL.get(kind, 0.0) if nll is None else nll


@dataclass(frozen=True)
class DPOLoss:
    """One point of the table above.

    Reads `extra`: sign (+1 chosen, -1 rejected, 0 no segment) and pair, [B, S]; ref [B, S], the reference's s, where
    the loss has a reference. Pairs with equal sides have gradient 0 without the NLL term; they are dropped, with empty
    answers, before they come here (`preference.sound_pairs`).

    Args:
        beta: strength of the pull to the reference (ORPO: λ). nll: weight of the chosen answers' NLL.
        smoothing: ε, the share of labels thought wrong, cdpo and robust only. gamma: SimPO's target margin γ.
    Raises:
        ConfigError: a value out of its range, or one that this loss does not have.
    """

    beta: float
    nll: float
    kind: PairKind = "sigmoid"
    smoothing: float = 0.0
    gamma: float = 0.0
    wants: frozenset[str] = frozenset({"logprobs"})
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, positive=("beta",), not_negative=("nll", "gamma"))
        if self.kind in SMOOTHED and not 0 < self.smoothing < 0.5:
            raise ConfigError("smoothing", f"got {self.smoothing}, must be in 0 … 0.5 for {self.kind}: both ends out")
        if self.kind not in SMOOTHED and self.smoothing:
            raise ConfigError("smoothing", f"got {self.smoothing}, but {self.kind} has none: take cdpo or robust")
        if self.gamma and self.kind != "simpo":
            raise ConfigError("gamma", f"got {self.gamma}, but {self.kind} has no target margin: take simpo")

    @property
    def needs_reference(self) -> bool:
        return self.kind not in REFERENCE_FREE

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"pairs": (batch.extra["sign"] > 0).sum(), "tokens": (batch.mask * chosen_tokens(batch)).sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        sums = sequence_logprobs(out.logprobs, batch, ops)
        measured = sums - batch.extra["ref"] if self.needs_reference else sums
        if self.kind in PER_TOKEN_REWARD:
            measured = measured / segment_tokens(batch, ops)
        rewards = self.beta * measured
        chosen, rejected = by_pair(rewards, batch)
        nll = -(out.logprobs * batch.mask * chosen_tokens(batch)).sum()
        losses = self._orpo(*by_pair(measured, batch)) if self.kind == "orpo" else self._losses(chosen - rejected)
        terms = {"pairs": losses.sum(), "tokens": self.nll * nll}
        held = Mean(nll.detach(), (batch.mask * chosen_tokens(batch)).sum().to(nll))
        return terms, {**preference_metrics(chosen, rejected, *by_pair(sums, batch)), "nll": held}

    def _losses(self, margin: Tensor) -> Tensor:
        """[P] margins -> [P] losses."""
        if self.kind == "cdpo":
            return -(1 - self.smoothing) * logsigmoid(margin) - self.smoothing * logsigmoid(-margin)
        if self.kind == "robust":
            clean, flipped = -logsigmoid(margin), -logsigmoid(-margin)
            return ((1 - self.smoothing) * clean - self.smoothing * flipped) / (1 - 2 * self.smoothing)
        if self.kind in ("ipo_mean", "ipo_sum"):
            return ((margin - 0.5) / self.beta) ** 2
        if self.kind == "hinge":
            return (1 - margin).relu()
        return -logsigmoid(margin - self.gamma if self.gamma else margin)

    def _orpo(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """[P] mean log-probabilities -> [P] losses."""
        return -self.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of a log-probability, finite also where p rounds to 1."""
    bounded = logprob.clamp(max=CERTAIN)
    return bounded - (-bounded.expm1()).log()


def sequence_logprobs(logprobs: Tensor, batch: Batch, ops: Ops) -> Tensor:
    """[B, T] -> [B, S]: log-probability of each segment's scored tokens."""
    return ops.sequence_sum(logprobs * batch.mask, batch.segments, batch.extra["sign"].shape[1])


def segment_tokens(batch: Batch, ops: Ops) -> Tensor:
    """[B, S]: scored tokens of each segment, 1 where it has none."""
    scored = (batch.mask != 0).to(batch.mask)
    return ops.sequence_sum(scored, batch.segments, batch.extra["sign"].shape[1]).clamp(min=1)


def by_pair(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """[B, S] -> values of chosen and rejected, each [P], in the order of the pairs' numbers."""
    sign, pair = batch.extra["sign"], batch.extra["pair"]
    both = []
    for wanted in (1.0, -1.0):
        here = sign == wanted
        order = pair[here].argsort(stable=True)
        both.append(values[here][order])
    return both[0], both[1]


def preference_metrics(chosen: Tensor, rejected: Tensor, logps_chosen: Tensor, logps_rejected: Tensor) -> Metrics:
    """The figures that practitioners read: rewards, margins, accuracies (ties count half), log-probs."""
    count = torch.tensor(float(len(chosen)))
    margin = (chosen - rejected).detach()
    wins = (margin > 0).float() + 0.5 * (margin == 0).float()
    ranked = (logps_chosen > logps_rejected).float()
    named = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": wins,
        "logps/chosen": logps_chosen,
        "logps/rejected": logps_rejected,
        "logps/accuracies": ranked,
    }
    return {name: Mean(value.detach().sum(), count.to(value)) for name, value in named.items()}


def chosen_tokens(batch: Batch) -> Tensor:
    """[B, T]: 1 on tokens of chosen segments."""
    signs = torch.nn.functional.pad(batch.extra["sign"], (1, 0))  # column 0 serves the padding, segment -1
    return (signs.gather(1, batch.segments + 1) > 0).float()
