"""The losses that every layout must reproduce, each with a batch that it is asked about.

    tokens         pretraining, SFT             weights that differ, many documents per row
    dpo            pairs, with the NLL term     per sequence and per token in one loss
    kto            single answers               per sequence, against a baseline
    reward         a reward head                per sequence, one position of each
    grpo, gspo     token and sequence ratios    mean over answers, KL to a reference, correction for the sampler
    ppo, critic    policy and value model       clipped; shared: both on one trunk

Numbers that a rollout would have brought (old log-probabilities, advantages, returns) are drawn at random, so wide of
the model's own that clips cut some tokens and leave others. Rows hold answers of uneven length and some padding.

Shapes: `B` rows, `T` tokens, `S` segments per row.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.model.transformer import Head
from sekkei.objectives.kto import KTOLoss
from sekkei.objectives.pair_loss import DPOLoss
from sekkei.objectives.policy_loss import GRPOLoss
from sekkei.objectives.ppo import SharedLoss, ValueLoss
from sekkei.objectives.pretrain import TokenLoss
from sekkei.objectives.reward import RewardLoss, answer_sample
from sekkei.train.objective import Loss

TOKENS, ROWS, VOCABULARY = 48, 2, 96
Objective = Literal["tokens", "dpo", "kto", "reward", "grpo", "gspo", "ppo", "critic", "shared"]
MakeBatch = Callable[[random.Random], Batch]


@dataclass(frozen=True)
class Asked:
    """A loss, the heads of the model that it trains, and what makes one micro-batch for it."""

    loss: Loss
    batch: MakeBatch
    heads: tuple[Head, ...] = ("lm",)


def documents(rng: random.Random) -> Batch:
    """Packed documents, every token with a weight of its own."""
    rows = []
    for _ in range(ROWS):
        row, left = [], TOKENS - rng.randint(0, 9)
        while left > 1:
            length = min(left, rng.choice((3, 7, 12, 30)))
            ids = _ids(rng, length + 1)
            row.append(Sample(ids=ids, weights=[rng.choice((0.0, 0.5, 1.0, 2.0)) for _ in ids]))
            left -= length
        rows.append(row)
    return lay_out(rows, TOKENS)


def pairs(rng: random.Random) -> Batch:
    """One or two pairs per row, for preferences."""
    rows, pair = [], 0
    for _ in range(ROWS):
        row = []
        for _ in range(rng.randint(1, 2)):
            prompt = _ids(rng, rng.randint(2, 5))
            for sign in (1.0, -1.0):
                extra = {"sign": sign, "pair": float(pair), "ref": rng.uniform(-30, -10)}
                row.append(_answer(rng, prompt, rng.randint(3, 6), extra))
            pair += 1
        rows.append(row)
    return lay_out(rows, TOKENS, 4)


def rated_pairs(rng: random.Random) -> Batch:
    """The same for a reward head, which reads the last token; with margins."""
    rows, pair = [], 0
    for _ in range(ROWS):
        row = []
        for _ in range(rng.randint(1, 2)):
            prompt, margin = _ids(rng, rng.randint(2, 5)), rng.random()
            for sign in (1.0, -1.0):
                answer = _ids(rng, rng.randint(3, 6))
                row.append(answer_sample([*prompt, *answer], sign=sign, pair=float(pair), margin=margin))
            pair += 1
        rows.append(row)
    return lay_out(rows, TOKENS, 4)


def rated_answers(rng: random.Random) -> Batch:
    """Answers that somebody liked or did not; the baseline is the same for all."""
    rows = []
    for _ in range(ROWS):
        row = []
        for _ in range(rng.randint(1, 4)):
            extra = {"sign": rng.choice((1.0, -1.0)), "ref": rng.uniform(-30, -10), "kl": 0.4}
            row.append(_answer(rng, _ids(rng, rng.randint(2, 5)), rng.randint(3, 6), extra))
        rows.append(row)
    return lay_out(rows, TOKENS, 4)


def rollouts(rng: random.Random) -> Batch:
    """Answers as reinforcement learning sees them, with all that a policy's or a critic's loss may read."""
    rows = []
    for _ in range(ROWS):
        row = []
        for _ in range(rng.randint(1, 4)):
            length, gain = rng.randint(2, 7), rng.uniform(-2, 2)
            ranges = {"sampled": (-6, -3), "old": (-6, -3), "reference": (-6, -3), "old_values": (-1, 1)}
            drawn = {name: [rng.uniform(*ends) for _ in range(length)] for name, ends in ranges.items()}
            drawn["returns"] = [value + rng.uniform(-1, 1) for value in drawn["old_values"]]
            drawn["advantages"] = [gain + rng.uniform(-1, 1) for _ in range(length)]
            extra = {"length": float(length)}
            row.append(_answer(rng, _ids(rng, rng.randint(2, 5)), length, extra, drawn))
        rows.append(row)
    return lay_out(rows, TOKENS, 4)


def _answer(
    rng: random.Random,
    prompt: list[int],
    length: int,
    per_segment: dict[str, float],
    per_token: dict[str, list[float]] | None = None,
) -> Sample:
    """A prompt with an answer of `length` tokens, which alone weigh."""
    before = [0.0] * len(prompt)
    return Sample(
        ids=prompt + _ids(rng, length),
        weights=before + [1.0] * length,
        per_token={name: before + values for name, values in (per_token or {}).items()},
        per_segment=per_segment,
    )


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(count)]


PPO = GRPOLoss(0.3, 0.3, temperature=1.0, dual_clip=3.0)
VALUES = ValueLoss(clip=0.3)
OBJECTIVES: dict[Objective, Asked] = {
    "tokens": Asked(TokenLoss(), documents),
    "dpo": Asked(DPOLoss(beta=0.3, nll=0.2), pairs),
    "kto": Asked(KTOLoss(beta=0.3, liked=1.0, disliked=1.3), rated_answers),
    "reward": Asked(RewardLoss(center=0.05), rated_pairs, ("reward",)),
    "grpo": Asked(
        GRPOLoss(0.5, 1.0, temperature=0.7, aggregation="sequence", kl=0.04, correction="token_truncate"), rollouts
    ),
    "gspo": Asked(
        GRPOLoss(0.5, 1.0, temperature=1.0, ratio="sequence", aggregation="sequence", correction="sequence_truncate"),
        rollouts,
    ),
    "ppo": Asked(PPO, rollouts),
    "critic": Asked(VALUES, rollouts, ("value",)),
    "shared": Asked(SharedLoss(PPO, VALUES, weight=0.1), rollouts, ("lm", "value")),
}
