"""Direct preference optimisation: the reward model is the policy itself (Rafailov et al. 2023, eq. 7).

For a prompt with a chosen and a rejected answer, with s = Σ log p over the answer's tokens:

    margin = β [(s_chosen - s_chosen_ref) - (s_rejected - s_rejected_ref)]
    loss   = -log σ(margin) + α · NLL(chosen)            averaged over pairs; NLL over the chosen tokens

The NLL term (Pang et al. 2024, "Iterative Reasoning Preference Optimization") works against likelihood
displacement: plain DPO may lower the chosen answer too, as long as the rejected one falls faster. At
step 0 the loss is log 2 + α · NLL. A pair stands in one row as two segments, so it never crosses a
micro-batch. It does not handle unpaired feedback.

Shapes: `B` rows, `T` tokens, `S` segments per row, `P` pairs of the micro-batch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.data.packing import pack
from sekkei.model.output import Output
from sekkei.objectives.sft import row_length
from sekkei.parallel.ops import Ops
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Mean, Metrics, Update
from sekkei.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class PairingConfig:
    """How preference pairs are made from the model's own answers.

    Args:
        prompts: problems asked. samples: answers to each. per_prompt: pairs kept of each at most.
        held_out_prompts: problems of the held-out side, for preference accuracy.
        refusals: share of all pairs that prefer a refusal to compliance (harmful requests) or the reverse.
    """

    prompts: int = 512
    samples: int = 8
    per_prompt: int = 2
    held_out_prompts: int = 128
    temperature: float = 1.0
    max_tokens: int = 128
    refusals: float = 0.3

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ConfigError("samples", f"got {self.samples}, must be >= 2: a pair has two answers")
        for key in ("prompts", "per_prompt", "held_out_prompts", "max_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if self.temperature <= 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be > 0: greedy answers are all the same")
        if not 0 <= self.refusals < 1:
            raise ConfigError("refusals", f"got {self.refusals}, must be a share in 0 … 1")


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Preference optimisation. beta: pull to the reference. nll: weight of the chosen answers' NLL.
    pairs: of the global batch. micro_tokens: tokens per forward pass, about.
    """

    steps: int
    pairing: PairingConfig = field(default_factory=PairingConfig)
    beta: float = 0.1
    nll: float = 0.2
    pairs: int = 32
    micro_tokens: int = 8192
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        for key in ("steps", "pairs", "micro_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if self.beta <= 0 or self.nll < 0:
            raise ConfigError("beta", f"beta={self.beta} must be > 0 and nll={self.nll} >= 0")


@dataclass(frozen=True)
class Pair:
    """A prompt (token ids) with a better and a worse answer, each ending as it was generated."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    kind: str = ""

    def samples(self, index: int) -> tuple[Sample, Sample]:
        """Chosen and rejected as samples; only the answers' tokens weigh."""
        both = []
        for answer, sign in ((self.chosen, 1.0), (self.rejected, -1.0)):
            weights = [0.0] * len(self.prompt) + [1.0] * len(answer)
            both.append(
                Sample(ids=self.prompt + answer, weights=weights, per_segment={"sign": sign, "pair": float(index)})
            )
        return both[0], both[1]


@dataclass(frozen=True)
class DPOLoss:
    """The sigmoid loss with an optional NLL term.

    beta: strength of the pull to the reference. nll: weight α of the chosen answers' NLL.
    """

    beta: float
    nll: float
    wants: frozenset[str] = frozenset({"logprobs"})
    temperature: float = 1.0

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"pairs": (batch.extra["sign"] > 0).sum(), "tokens": (batch.mask * _chosen(batch)).sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        sums = sequence_logprobs(out.logprobs, batch, ops)
        rewards = self.beta * (sums - batch.extra["ref"])
        chosen, rejected = by_pair(rewards, batch)
        margin = chosen - rejected
        nll = -(out.logprobs * batch.mask * _chosen(batch)).sum()
        terms = {"pairs": -logsigmoid(margin).sum(), "tokens": self.nll * nll}
        return terms, preference_metrics(chosen, rejected, *by_pair(sums, batch))


def sequence_logprobs(logprobs: Tensor, batch: Batch, ops: Ops) -> Tensor:
    """[B, T] -> [B, S]: log-probability of each segment's scored tokens."""
    return ops.sequence_sum(logprobs * batch.mask, batch.segments, batch.extra["sign"].shape[1])


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


def _chosen(batch: Batch) -> Tensor:
    """[B, T]: 1 on tokens of chosen segments."""
    signs = torch.nn.functional.pad(batch.extra["sign"], (1, 0))  # column 0 serves the padding, segment -1
    return (signs.gather(1, batch.segments + 1) > 0).float()


def pair_batches(pairs: Sequence[Pair], micro_tokens: int) -> list[Batch]:
    """Lay pairs into micro-batches; both answers of a pair stand in the same row."""
    samples = [pair.samples(i) for i, pair in enumerate(pairs)]
    lengths = [a.length + b.length for a, b in samples]
    tokens = row_length(max(lengths))
    rows = [[sample for i in row for sample in samples[i]] for row in pack(lengths, tokens)]
    width = max(len(row) for row in rows)
    size = max(1, micro_tokens // tokens)
    return [lay_out(rows[i : i + size], tokens, width) for i in range(0, len(rows), size)]


class Preference:
    """DPO over a fixed set of pairs, shuffled anew for every pass.

    Args:
        pairs_per_step: of the global batch. micro_tokens: tokens per forward pass, about.
    Raises:
        ConfigError: there are no pairs.
    """

    needs: frozenset[str] = frozenset({"reference"})

    def __init__(self, pairs: Sequence[Pair], loss: DPOLoss, pairs_per_step: int, micro_tokens: int) -> None:
        if not pairs:
            raise ConfigError("dpo", "there are no preference pairs: the policy never differs from itself")
        self.pairs, self.loss = list(pairs), loss
        self.pairs_per_step, self.micro_tokens = pairs_per_step, micro_tokens
        self.next_pair = 0
        self.order: list[int] = []
        self.order_of: tuple[int, int] | None = None

    def next_step(self, ctx: Context) -> list[Update]:
        chosen = [self._pair(ctx.seed, self.next_pair + i) for i in range(self.pairs_per_step)]
        self.next_pair += self.pairs_per_step
        batches = with_reference(pair_batches(chosen, self.micro_tokens), ctx)
        return [Update("policy", batches, self.loss)]

    def _pair(self, seed: int, index: int) -> Pair:
        epoch, within = divmod(index, len(self.pairs))
        if self.order_of != (seed, epoch):
            self.order = list(range(len(self.pairs)))
            random.Random(derive_seed("pairs", seed, epoch)).shuffle(self.order)
            self.order_of = (seed, epoch)
        return self.pairs[self.order[within]]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"next_pair": self.next_pair, "pairs": fingerprint(self.pairs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["pairs"] != fingerprint(self.pairs):
            raise ConfigError("dpo", "the checkpoint was trained on other pairs; run again with --force")
        self.next_pair = state["next_pair"]


def with_reference(batches: Sequence[Batch], ctx: Context) -> list[Batch]:
    """Add the reference model's log-probability of every segment as `extra["ref"]` [B, S]."""
    done = []
    for batch in batches:
        out = ctx.score("reference", batch, frozenset({"logprobs"}), 1.0)
        assert out.logprobs is not None
        done.append(batch.with_extra(ref=sequence_logprobs(out.logprobs, batch.to(ctx.device), ctx.ops)))
    return done


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
        sums = sequence_logprobs(out.logprobs, batch, ctx.ops)
        chosen, rejected = by_pair(sums - batch.extra["ref"], batch)
        rewarded += float((chosen > rejected).sum() + 0.5 * (chosen == rejected).sum())
        chosen, rejected = by_pair(sums, batch)
        ranked += float((chosen > rejected).sum())
        pairs += len(chosen)
    return {"preference_accuracy": rewarded / pairs, "ranking_accuracy": ranked / pairs}
