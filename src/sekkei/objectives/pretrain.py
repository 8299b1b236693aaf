"""Pretraining: the next token of every document, averaged over all tokens of the global batch.

    loss = Σ -log p(token) / Σ tokens

It does not handle multi-token prediction or masked spans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.batch import Batch
from sekkei.data.loader import MixtureLoader, check_mixture
from sekkei.data.sampling import SamplingConfig
from sekkei.model.output import Output
from sekkei.parallel.ops import Ops
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Mean, Metrics, Update
from sekkei.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining stage.

    Args:
        steps: optimizer steps. context: tokens per row. rows: rows of the global batch. micro_rows: rows per
            forward pass. mixture: domain -> share of rows. opening: the same for the first `opening_steps`
            (for all where the stage is shorter).
            sampling: how often documents are read: caps on passes per source, long documents more often.
            rope_factor: rescales positions from this stage on, for a context longer than the one before: slow
            rotations are divided by it, fast ones, which tell neighbours apart, stay (`llama3` in model/config.py).
            eval_every: steps between two measures of held-out bits per byte, which choose the best checkpoint where
            one falls on them; 0 = never.
    """

    steps: int
    context: int
    rows: int
    mixture: dict[str, float]
    opening: dict[str, float] = field(default_factory=dict)
    opening_steps: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    micro_rows: int = 16
    rope_factor: float = 1.0
    eval_every: int = 100
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        for key in ("steps", "context", "rows", "micro_rows"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if self.eval_every < 0:
            raise ConfigError("eval_every", f"got {self.eval_every}, must be >= 0 (0 = never)")
        if self.rope_factor < 1:
            raise ConfigError("rope_factor", f"got {self.rope_factor}, must be >= 1 (1 = positions as they are)")
        check_mixture(self.mixture, "mixture")
        if self.opening_steps < 0:
            raise ConfigError("opening_steps", f"got {self.opening_steps}, must be >= 0")
        if bool(self.opening) != bool(self.opening_steps):
            raise ConfigError("opening", f"a mixture and opening_steps={self.opening_steps} > 0 go together")
        if self.opening:
            check_mixture(self.opening, "opening")

    @property
    def tokens(self) -> int:
        """Tokens that the stage reads, padding included."""
        return self.steps * self.rows * self.context


@dataclass(frozen=True)
class TokenLoss:
    """Weighted negative log-likelihood of tokens; also the loss of SFT."""

    wants: frozenset[str] = frozenset({"logprobs"})
    temperature: float = 1.0

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": batch.mask.sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        nll = -(out.logprobs * batch.mask).sum()
        metrics: Metrics = {}
        if "bytes" in batch.extra:  # special tokens stand for no text: their bits do not count
            of_text = -(out.logprobs.detach() * batch.mask * (batch.extra["bytes"] > 0)).sum()
            metrics["bpb"] = Mean(of_text / math.log(2), batch.extra["bytes"].sum())
        return {"tokens": nll}, metrics


class Pretrain:
    """Reads rows from a mixture; a thread lays out the next step's while this one is computed.

    Args:
        rows_per_step: rows of the global batch. micro_rows: rows per forward pass.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, loader: MixtureLoader, rows_per_step: int, micro_rows: int) -> None:
        self.loader, self.rows_per_step, self.micro_rows = loader, rows_per_step, micro_rows
        self.next_row = 0
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: tuple[int, Future[list[Batch]]] | None = None  # the row it begins with

    def next_step(self, ctx: Context) -> list[Update]:
        row, ahead = self.next_row, self._ahead
        there = ahead is not None and ahead[0] == row  # not before the first step, or after a resume
        batches = ahead[1].result() if ahead and there else self._read(row)
        self.next_row = following = row + self.rows_per_step
        if following + self.rows_per_step <= self.loader.total_rows:
            self._ahead = following, self._reader.submit(self._read, following)
        return [Update("policy", batches, TokenLoss())]

    def _read(self, row: int) -> list[Batch]:
        counts = [min(self.micro_rows, self.rows_per_step - at) for at in range(0, self.rows_per_step, self.micro_rows)]
        return [self.loader.batch(row + i * self.micro_rows, count) for i, count in enumerate(counts)]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows_per_step": self.rows_per_step,
            "context": self.loader.context,
            "loader": self.loader.state(self.next_row),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if (state["rows_per_step"], state["context"]) != (self.rows_per_step, self.loader.context):
            raise UserError(f"the checkpoint read rows as {dict(state)}; they cannot change within a stage")
        self.next_row = self.loader.resume(state["loader"])
