"""The reward model: a scalar for a whole answer, learned from pairs (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

    loss = -log σ(r_chosen - r_rejected - margin) + c (r_chosen + r_rejected)²        averaged over pairs

r is what the reward head gives where the answer's *last token* (its stop token, if it has one) is read; some train on
one token later. The margin is how much better a rater called the chosen answer (Touvron et al. 2023, section 3.2.2);
the second term pulls the mean reward to 0, which pairs leave open (Eisenstein et al. 2023, section 2).
A finished model judges: `score_answers` for best-of-n and pair making, `reward_groups` for RL below. It does not
handle rewards per step.

Shapes: `B` rows, `T` tokens, `S` segments per row, `P` pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.model.output import Output
from sekkei.objectives.pair_loss import by_pair
from sekkei.objectives.passes import Passes
from sekkei.objectives.preference import Pair, fingerprint, sound_pairs
from sekkei.objectives.ranges import check_ranges
from sekkei.objectives.rollout import Group
from sekkei.objectives.sft import pack_samples, packed_rows
from sekkei.parallel.ops import LocalOps, Ops
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Mean, Metrics, Update
from sekkei.train.optim import OptimConfig

BINS = 10  # of the calibration error, as in Guo et al. 2017, section 2 (they use 15 on 10,000 examples)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A reward model.

    Args:
        pairs: of the global batch. center: weight c of the centring term; 0 = none.
        unmatched: learn from right and wrong answers of different lengths too (stages/preferences.py). Without them it
            knows nothing about length, and what is trained against it goes where it knows nothing.
    """

    steps: int
    pairs: int = 32
    unmatched: bool = False
    center: float = 0.0
    micro_tokens: int = 8192
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        check_ranges(self, counts=("steps", "pairs", "micro_tokens"), not_negative=("center",))


@dataclass(frozen=True)
class RewardLoss:
    """Reads `extra`, [B, S]: sign and pair as in `DPOLoss`; margin of the pair on both sides, where pairs have one."""

    center: float = 0.0
    wants: frozenset[str] = frozenset({"values"})
    temperature: float = 1.0

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"pairs": (batch.extra["sign"] > 0).sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        rewards = segment_rewards(out, batch, ops)
        chosen, rejected = by_pair(rewards, batch)
        gap = chosen - rejected
        margin = by_pair(batch.extra["margin"], batch)[0] if "margin" in batch.extra else 0.0
        losses = -logsigmoid(gap - margin) + self.center * (chosen + rejected) ** 2
        count = torch.tensor(float(len(gap))).to(gap)
        wins = (gap > 0).to(gap) + 0.5 * (gap == 0).to(gap)
        named = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": gap, "accuracy": wins}
        return {"pairs": losses.sum()}, {name: Mean(x.detach().sum(), count) for name, x in named.items()}


def segment_rewards(out: Output, batch: Batch, ops: Ops) -> Tensor:
    """[B, S]: the head's value at each segment's last token, which `answer_sample` has marked."""
    assert out.values is not None
    return ops.sequence_sum(out.values * batch.mask, batch.segments, batch.extra["sign"].shape[1])


def answer_sample(ids: Sequence[int], **per_segment: float) -> Sample:
    """A prompt and its answer, read to the last token; that one's position weighs 1.

    A sample's last id is only ever a label, so one more follows; no reward depends on which.
    """
    weights = [0.0] * len(ids) + [1.0]
    return Sample(ids=[*ids, ids[-1]], weights=weights, per_segment={"sign": 1.0, **per_segment})


def reward_batches(pairs: Sequence[Pair], micro_tokens: int, margins: Sequence[float] | None = None) -> list[Batch]:
    """Lay pairs into micro-batches; both answers of a pair stand in the same row."""
    both = []
    for i, pair in enumerate(pairs):
        known = {} if margins is None else {"margin": margins[i]}
        both.append(
            (
                answer_sample(pair.prompt + pair.chosen, pair=float(i), **known),
                answer_sample(pair.prompt + pair.rejected, pair=float(i), **{**known, "sign": -1.0}),
            )
        )
    tokens, places = packed_rows([a.length + b.length for a, b in both])
    rows = [[sample for i in row for sample in both[i]] for row in places]
    width = max(len(row) for row in rows)
    size = max(1, micro_tokens // tokens)
    return [lay_out(rows[i : i + size], tokens, width) for i in range(0, len(rows), size)]


class RewardModelling:
    """Trains a model with a reward head, in role "policy", on a fixed set of pairs, shuffled anew for every pass.

    Args:
        margins: how much better each chosen answer is; None: not known.
        longest: tokens that a prompt and an answer may have together; None: any.
    Raises:
        ConfigError: there are no pairs.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        pairs: Sequence[Pair],
        config: RewardConfig,
        margins: Sequence[float] | None = None,
        longest: int | None = None,
    ) -> None:
        if margins is not None and len(margins) != len(pairs):
            raise ValueError(f"{len(margins)} margins for {len(pairs)} pairs")
        kept, self.dropped = sound_pairs(pairs, longest)
        self.pairs = [pairs[i] for i in kept]
        if not self.pairs:
            raise ConfigError("reward", "there are no pairs: a reward model learns from a better and a worse answer")
        self.margins = None if margins is None else [margins[i] for i in kept]
        self.config, self.loss = config, RewardLoss(config.center)
        self.next_pair = 0
        self.passes = Passes("reward pairs", len(self.pairs))

    def next_step(self, ctx: Context) -> list[Update]:
        taken = [self.passes.index(ctx.seed, self.next_pair + i) for i in range(self.config.pairs)]
        self.next_pair += self.config.pairs
        margins = None if self.margins is None else [self.margins[i] for i in taken]
        batches = reward_batches([self.pairs[i] for i in taken], self.config.micro_tokens, margins)
        return [Update("policy", batches, self.loss)]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return self.dropped

    def state_dict(self) -> dict[str, Any]:
        return {"next_pair": self.next_pair, "pairs": fingerprint(self.pairs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["pairs"] != fingerprint(self.pairs):
            raise ConfigError("reward", "the checkpoint was trained on other pairs; run again with --force")
        self.next_pair = state["next_pair"]


def score_answers(
    ctx: Context, sequences: Sequence[Sequence[int]], micro_tokens: int, role: str = "reward"
) -> list[float]:
    """The reward of every prompt-and-answer (token ids), in order.

    Raises:
        UserError: a reward is not finite.
    """
    samples = [answer_sample(ids, number=float(i)) for i, ids in enumerate(sequences)]
    found = [math.nan] * len(samples)
    for batch in pack_samples(samples, micro_tokens):
        out = ctx.score(role, batch, frozenset({"values"}), 1.0)
        rewards = segment_rewards(out, batch.to(ctx.device), LocalOps()).cpu()  # `score` gives whole rows
        here = batch.extra["sign"] != 0
        for number, reward in zip(batch.extra["number"][here].tolist(), rewards[here].tolist(), strict=True):
            found[int(number)] = reward
    if not all(math.isfinite(reward) for reward in found):
        raise UserError("the reward model gives a score that is not finite; its weights are broken")
    return found


def pair_gaps(ctx: Context, pairs: Sequence[Pair], micro_tokens: int, role: str = "policy") -> list[float]:
    """r_chosen - r_rejected of every pair, in order."""
    both = [pair.prompt + answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    scores = score_answers(ctx, both, micro_tokens, role)
    return [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]


def calibration(gaps: Sequence[float]) -> dict[str, float]:
    """How good, and how honest, a reward model is on held-out pairs.

    Args:
        gaps: r_chosen - r_rejected of each pair.
    Returns:
        accuracy (ties count half); log_loss, that of a coin is log 2; brier, (1 - p)² with p = σ(gap), that of a coin
        is .25; calibration_error: |confidence - accuracy| over bins of max(p, 1 - p), weighted by their size.
    """
    wins = [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]
    chances = [0.5 * (1 + math.tanh(gap / 2)) for gap in gaps]
    bins: dict[int, list[tuple[float, float]]] = {}
    for chance, win in zip(chances, wins, strict=True):
        sure = max(chance, 1 - chance)
        bins.setdefault(min(int((sure - 0.5) * 2 * BINS), BINS - 1), []).append((sure, win))
    error = sum(abs(sum(sure for sure, _ in b) - sum(win for _, win in b)) for b in bins.values())
    losses = [max(-gap, 0.0) + math.log1p(math.exp(-abs(gap))) for gap in gaps]
    count = len(gaps)
    return {
        "accuracy": sum(wins) / count,
        "log_loss": sum(losses) / count,
        "brier": sum((1 - chance) ** 2 for chance in chances) / count,
        "calibration_error": error / count,
    }


def reward_groups(ctx: Context, groups: Sequence[Group], weight: float, micro_tokens: int) -> list[Group]:
    """Add the reward model's score of every answer, times `weight`, to its reward; "rewards/model" is the score."""
    sequences = [group.prompt.ids + completion.token_ids for group in groups for completion in group.completions]
    scores = iter(score_answers(ctx, sequences, micro_tokens) if sequences else [])
    done = []
    for group in groups:
        figures = []
        for values in group.figures:
            score = next(scores)
            figures.append({**values, "reward": values["reward"] + weight * score, "rewards/model": score})
        done.append(replace(group, figures=tuple(figures)))
    return done
