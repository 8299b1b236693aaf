"""Preference optimisation: the reward model is the policy itself (Rafailov et al. 2023, eq. 7).

For a prompt with a chosen and a rejected answer, with s = Σ log p over the answer's tokens:

    margin = β [(s_chosen - s_chosen_ref) - (s_rejected - s_rejected_ref)]
    loss   = -log σ(margin) + α · NLL(chosen)            averaged over pairs; NLL over the chosen tokens

The NLL term (Pang et al. 2024, "Iterative Reasoning Preference Optimization") works against likelihood
displacement: plain DPO may lower the chosen answer too, as long as the rejected one falls faster. It is off (α = 0)
unless set. At step 0 the loss is log 2 + α · NLL. Its relatives (IPO, hinge, SimPO, …) are in pair_loss.py. A pair
stands in one row as two segments, so it never crosses a micro-batch. It does not handle unpaired feedback (kto.py).

Shapes: `B` rows, `T` tokens, `S` segments per row, `P` pairs of the micro-batch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.dist import Ranks
from sekkei.core.errors import ConfigError, UserError
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.engine.request import Sampling
from sekkei.objectives.pair_loss import DPOLoss, PairKind, by_pair, nll_weight, sequence_logprobs
from sekkei.objectives.passes import Passes
from sekkei.objectives.ranges import check_ranges
from sekkei.objectives.rollout import check_policy
from sekkei.objectives.sft import packed_rows
from sekkei.parallel.ops import LocalOps
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Update
from sekkei.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class PairingConfig:
    """How preference pairs are made from the model's own answers.

    Args:
        prompts: problems asked. samples: answers to each. per_prompt: pairs kept of each at most.
        held_out_prompts: problems of the held-out side, for preference accuracy.
        refusals: share of all pairs that prefer a refusal to compliance (harmful requests) or the reverse.
        path: pairs of one's own instead of all that, see preference_data.py. held_out_percent: of them.
    """

    prompts: int = 512
    samples: int = 8
    per_prompt: int = 2
    held_out_prompts: int = 128
    temperature: float = 1.0
    max_tokens: int = 128
    refusals: float = 0.3
    path: str | None = None
    held_out_percent: int = 10

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ConfigError("samples", f"got {self.samples}, must be >= 2: a pair has two answers")
        check_ranges(self, counts=("prompts", "per_prompt", "held_out_prompts", "max_tokens"))
        if self.temperature <= 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be > 0: greedy answers are all the same")
        Sampling(temperature=self.temperature)
        if not 1 <= self.held_out_percent <= 50:
            raise ConfigError("held_out_percent", f"got {self.held_out_percent}, must be between 1 and 50")
        if not 0 <= self.refusals < 1:
            raise ConfigError("refusals", f"got {self.refusals}, must be a share in 0 … 1")


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Preference optimisation. loss: which of pair_loss.py. beta: pull to the reference. nll: weight of the chosen
    answers' NLL; None: what the loss is published with. smoothing, gamma: see `DPOLoss`. pairs: of the global batch.
    micro_tokens: tokens per forward pass, about.
    """

    steps: int
    beta: float = 0.1
    nll: float | None = None
    pairs: int = 32
    micro_tokens: int = 8192
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    loss: PairKind = "sigmoid"
    smoothing: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, counts=("steps", "pairs", "micro_tokens"))
        self.make_loss()

    def make_loss(self) -> DPOLoss:
        """The loss that these settings name."""
        return DPOLoss(self.beta, nll_weight(self.loss, self.nll), self.loss, self.smoothing, self.gamma)


@dataclass(frozen=True)
class Pair:
    """A prompt (token ids) with a better and a worse answer, each ending as it was generated."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    kind: str = ""

    def samples(self, index: int, ref: tuple[float, float] | None = None) -> tuple[Sample, Sample]:
        """Chosen and rejected as samples; only the answers' tokens weigh.

        Args:
            index: the pair's number in its batch. ref: the reference's log-probability of both, where it is known.
        """
        both = []
        for side, (answer, sign) in enumerate(((self.chosen, 1.0), (self.rejected, -1.0))):
            weights = [0.0] * len(self.prompt) + [1.0] * len(answer)
            known = {} if ref is None else {"ref": ref[side]}
            both.append(
                Sample(
                    ids=self.prompt + answer, weights=weights, per_segment={"sign": sign, "pair": float(index), **known}
                )
            )
        return both[0], both[1]


def sound_pairs(pairs: Sequence[Pair], longest: int | None = None) -> tuple[list[int], dict[str, float]]:
    """Leave out what teaches nothing: equal sides, an empty answer, more than `longest` tokens.

    Equal sides have gradient 0 and only pull the mean loss to log 2; an empty answer has no token to score (an answer
    that ends has its stop token at least).

    Returns:
        indices of the others, in order, and how many were left out for which reason (only reasons that occurred).
    """
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    for index, pair in enumerate(pairs):
        if not pair.chosen or not pair.rejected:
            dropped["pairs/dropped_empty"] += 1
        elif pair.chosen == pair.rejected:
            dropped["pairs/dropped_equal"] += 1
        elif longest is not None and len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) > longest:
            dropped["pairs/dropped_long"] += 1
        else:
            kept.append(index)
    return kept, {name: float(count) for name, count in dropped.items()}


def pair_batches(
    pairs: Sequence[Pair], micro_tokens: int, refs: Sequence[tuple[float, float]] | None = None
) -> list[Batch]:
    """Lay pairs into micro-batches; both answers of a pair stand in the same row."""
    samples = [pair.samples(i, None if refs is None else refs[i]) for i, pair in enumerate(pairs)]
    tokens, places = packed_rows([a.length + b.length for a, b in samples])
    rows = [[sample for i in row for sample in samples[i]] for row in places]
    width = max(len(row) for row in rows)
    size = max(1, micro_tokens // tokens)
    return [lay_out(rows[i : i + size], tokens, width) for i in range(0, len(rows), size)]


class Preference:
    """Preference optimisation over a fixed set of pairs, shuffled anew for every pass.

    Args:
        pairs_per_step: of the global batch. micro_tokens: tokens per forward pass, about.
        refs: the reference's log-probabilities of every pair's sides (`reference_logprobs`); then no reference model
            is needed while training. None: it scores every batch.
        longest: tokens that a prompt and an answer may have together; None: any.
    Raises:
        ConfigError: there are no pairs.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        loss: DPOLoss,
        pairs_per_step: int,
        micro_tokens: int,
        refs: Sequence[tuple[float, float]] | None = None,
        longest: int | None = None,
    ) -> None:
        if refs is not None and len(refs) != len(pairs):
            raise ValueError(f"{len(refs)} reference scores for {len(pairs)} pairs")
        kept, self.dropped = sound_pairs(pairs, longest)
        self.pairs = [pairs[i] for i in kept]
        if not self.pairs:
            left_out = ", ".join(f"{int(n)} {name.rpartition('_')[2]}" for name, n in self.dropped.items())
            raise ConfigError(
                "dpo",
                "there are no preference pairs: the policy never differs from itself"
                + (f" (left out: {left_out})" if left_out else ""),
            )
        self.refs = None if refs is None else [refs[i] for i in kept]
        self.loss = loss
        self.pairs_per_step, self.micro_tokens = pairs_per_step, micro_tokens
        self.next_pair = 0
        self.passes = Passes("pairs", len(self.pairs))

    @property
    def needs(self) -> frozenset[str]:
        scores = self.loss.needs_reference and self.refs is None
        return frozenset({"reference"}) if scores else frozenset()

    def next_step(self, ctx: Context) -> list[Update]:
        if self.loss.needs_reference:
            check_policy(ctx.models.get("policy"))
        taken = [self.passes.index(ctx.seed, self.next_pair + i) for i in range(self.pairs_per_step)]
        self.next_pair += self.pairs_per_step
        refs = None if self.refs is None else [self.refs[i] for i in taken]
        batches = pair_batches([self.pairs[i] for i in taken], self.micro_tokens, refs)
        if "reference" in self.needs:
            batches = with_reference(batches, ctx)
        return [Update("policy", batches, self.loss)]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return self.dropped

    def state_dict(self) -> dict[str, Any]:
        return {"next_pair": self.next_pair, "pairs": fingerprint(self.pairs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["pairs"] != fingerprint(self.pairs):
            raise ConfigError("dpo", "the checkpoint was trained on other pairs; run again with --force")
        self.next_pair = state["next_pair"]


def with_reference(batches: Sequence[Batch], ctx: Context) -> list[Batch]:
    """Add the reference model's log-probability of every segment as `extra["ref"]` [B, S].

    `score` gives whole rows on every rank, so the sum needs no other rank.
    """
    done = []
    for batch in batches:
        out = ctx.score("reference", batch, frozenset({"logprobs"}), 1.0)
        assert out.logprobs is not None
        done.append(batch.with_extra(ref=sequence_logprobs(out.logprobs, batch.to(ctx.device), LocalOps())))
    return done


def reference_logprobs(
    pairs: Sequence[Pair],
    ctx: Context,
    micro_tokens: int,
    weights: str,
    cache: Path | None = None,
    ranks: Ranks | None = None,
) -> list[tuple[float, float]]:
    """The reference's log-probability of both sides of every pair, computed once.

    The pairs are batched in their order, so the result does not depend on the order of training.

    Args:
        weights: a name for the reference's weights and the dtype that they are run in; with the pairs themselves it
            is the key under which `cache`, a JSON file, is used again.
        ranks: who scores together. The first one reads and writes the file, and all go by what it found: scoring is
            collective, so none may do it alone.
    Raises:
        UserError: a log-probability is not finite.
    """
    key = f"{weights} {fingerprint(pairs)}"
    kept = partial(_kept, cache, key)
    known = ranks.first_does(kept) if ranks is not None else kept()
    if known is not None:
        return [(chosen, rejected) for chosen, rejected in known]
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i].prompt) - len(pairs[i].chosen))
    scores: dict[int, tuple[float, float]] = {}
    for start in range(0, len(order), 64):  # rows of one length per chunk: short pairs do not pay for long ones
        chunk = order[start : start + 64]
        batches = with_reference(pair_batches([pairs[i] for i in chunk], micro_tokens), ctx)
        for batch in batches:
            sides = by_pair(batch.extra["ref"].cpu(), batch)
            numbers, _ = by_pair(batch.extra["pair"], batch)
            for number, chosen, rejected in zip(numbers.tolist(), *(side.tolist() for side in sides), strict=True):
                scores[chunk[int(number)]] = chosen, rejected
    result = [scores[i] for i in range(len(pairs))]
    if not all(abs(value) < float("inf") for both in result for value in both):
        raise UserError("the reference model gives a log-probability that is not finite; its weights are broken")
    if cache is not None and (ranks is None or ranks.first):
        atomic.write_text(cache, json.dumps({"key": key, "logprobs": result}) + "\n")
    return result


def _kept(cache: Path | None, key: str) -> list[list[float]] | None:
    """What an earlier attempt has computed."""
    if cache is None or not cache.exists():
        return None
    found = json.loads(cache.read_text(encoding="utf-8"))
    logprobs: list[list[float]] | None = found["logprobs"] if found.get("key") == key else None
    return logprobs


def fingerprint(pairs: Sequence[Pair]) -> str:
    """A digest of the pairs, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr((pair.prompt, pair.chosen, pair.rejected)).encode())
    return digest.hexdigest()


def preference_accuracy(batches: Sequence[Batch], ctx: Context) -> dict[str, float]:
    """On held-out pairs (with `extra["ref"]`): how often the policy prefers the chosen answer.

    Returns:
        preference_accuracy: the implicit reward of the chosen answer is higher than that of the rejected
        one; ties count half, so it is .5 while the policy equals the reference.
        ranking_accuracy: the chosen answer is more probable. Both over pairs.
    """
    rewarded, ranked, pairs = 0.0, 0.0, 0
    for cpu_batch in batches:
        batch = cpu_batch.to(ctx.device)
        out = ctx.score("policy", batch, frozenset({"logprobs"}), 1.0)
        assert out.logprobs is not None
        sums = sequence_logprobs(out.logprobs, batch, LocalOps())
        chosen, rejected = by_pair(sums - batch.extra["ref"], batch)
        rewarded += float((chosen > rejected).sum() + 0.5 * (chosen == rejected).sum())
        chosen, rejected = by_pair(sums, batch)
        ranked += float((chosen > rejected).sum())
        pairs += len(chosen)
    return {"preference_accuracy": rewarded / pairs, "ranking_accuracy": ranked / pairs}
