"""The contracts between the one training loop and every algorithm.

    objective.next_step(ctx)  ->  [Update, …]       where data or rollouts come from
    update.loss.terms(…)      ->  sums per kind     ten lines of loss, pure

The loop divides each sum by the *global* count of its kind (`units`, all-reduced over the data axes and
added over micro-batches before any backward pass). That is what makes data parallelism, accumulation,
pipelining and masks give one and the same gradient. A pair or a group never crosses a micro-batch.

An objective draws batches; a loss judges them. They are apart because one objective may drive several
models: PPO returns updates for "policy" and "critic", each with its own loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sekkei.data.batch import Batch
from sekkei.model.output import Output
from sekkei.parallel.ops import Ops


class Mean(NamedTuple):
    """A metric that can be added over micro-batches and ranks: `total / weight`, both scalars."""

    total: Tensor
    weight: Tensor


Metrics = dict[str, Mean]


class Loss(Protocol):
    """A pure function of per-token outputs. It may be called more than once per micro-batch."""

    @property
    def wants(self) -> frozenset[str]:
        """Fields of `Output` that `terms` reads."""
        ...

    @property
    def temperature(self) -> float:
        """Logits are divided by it before the log-softmax (1 outside of reinforcement learning)."""
        ...

    def units(self, batch: Batch) -> dict[str, Tensor]:
        """How many of each kind of unit this micro-batch holds: {"tokens": n} or {"pairs": m, "tokens": n}."""
        ...

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        """The SUM of the loss per kind (never a mean), and metrics."""
        ...


@dataclass(frozen=True)
class Update:
    """One optimizer step of one model."""

    role: str
    micro_batches: list[Batch]
    loss: Loss


class Score(Protocol):
    """Forward without gradients, by the same path as training: reference, old or critic values."""

    def __call__(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output: ...


class Generate(Protocol):
    """The engine, as an objective sees it: requests in, completions out, with the weights of `role` refreshed."""

    def __call__(self, requests: list[Any]) -> list[Any]: ...


@dataclass
class Context:
    """What a step may use. No globals: everything that an objective needs is here.

    models: by role ("policy", "reference", "critic", "reward").
    step: index of the step about to be taken, from 0. seed: of the stage; derive all randomness from both.
    """

    models: Mapping[str, nn.Module]
    ops: Ops
    device: torch.device
    seed: int
    score: Score
    generate: Generate | None = None
    step: int = 0


class Objective(Protocol):
    """Where batches come from, and what must survive a resume."""

    @property
    def needs(self) -> frozenset[str]:
        """ "reference", "critic", "engine", "reward": built by the stage, found in the context."""
        ...

    def next_step(self, ctx: Context) -> list[Update]:
        """Draw data or roll out. The loop takes one optimizer step per update."""
        ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Feedback after the step, for controllers such as adaptive KL."""
        ...

    def step_metrics(self) -> Mapping[str, float]:
        """Figures of the data itself (rewards, lengths, spread), logged with the step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs, as JSON values (loader position, controllers, rollout buffer)."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
