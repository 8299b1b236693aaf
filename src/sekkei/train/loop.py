"""THE loop: one for pretraining, SFT, preferences and reinforcement learning.

    objective.next_step ─► updates ─► backward ─► clip ─► finite? ─► optimizer ─► observe ─► hooks ─► checkpoint

It knows no algorithm and no layout. What it guarantees: the same recipe, seed and machine give the same
bits, also when the process was killed in between; a step whose gradient is not finite is skipped and
logged, and several in a row stop the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from sekkei.core.dist import any_rank
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.hardware import peak_rss_gib
from sekkei.core.progress import Bar
from sekkei.core.runlog import RunLog
from sekkei.core.signals import stop_requests
from sekkei.data.batch import Batch
from sekkei.model.transformer import Transformer
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.objective import Context, Mean, Metrics, Objective, Update
from sekkei.train.step import Step, add_metrics
from sekkei.train.trainee import Placed, Trainee

T = TypeVar("T")
MAX_SKIPPED = 3  # non-finite steps in a row before the run stops

Hook = Callable[[int], Mapping[str, float]]
"""Called with the number of steps done; its figures are logged with the step."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a stage is run; it changes no figure but `dtype`'s rounding.

    checkpoint_every: in steps, 0 = only at the end. dtype: of forward and backward (`auto`: bf16 where the
    machine has units for it, else fp32); weights and optimizer state stay float32; `fp64`, for proofs: all of it.
    keep_last: checkpoints that stay beside the best one. async_save: write them while training goes on.
    """

    dtype: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    checkpoint_every: int = 200
    keep_last: int = 1
    async_save: bool = True

    def __post_init__(self) -> None:
        if self.checkpoint_every < 0:
            raise ConfigError("checkpoint_every", f"got {self.checkpoint_every}, must be >= 0 (0 = only at the end)")
        if self.keep_last < 1:
            raise ConfigError("keep_last", f"got {self.keep_last}, must be >= 1")


@dataclass
class Loop:
    """One training stage.

    Args:
        stage: its name in `metrics.jsonl`. steps: of the objective.
        trainees: by role; every role that an update names.
        hooks: (every n steps, hook). The figure `watched` of a hook, where both fall on one
            step, chooses the best checkpoint.
        flops_per_token: for the model FLOP utilisation; peak_flops: of this machine.
        key: of the stage's settings in the recipe, where it is not the stage's name.
    """

    stage: str
    steps: int
    config: LoopConfig
    objective: Objective
    trainees: Mapping[str, Trainee]
    step: Step
    ctx: Context
    log: RunLog
    checkpoints: Checkpoints
    hooks: Sequence[tuple[int, Hook]] = ()
    flops_per_token: float = 0.0
    peak_flops: float = 0.0
    key: str = ""
    tokens: int = 0
    skipped: int = 0

    def run(self, bar: Bar) -> None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            KeyboardInterrupt: it was asked to stop, and saved the step that it had done.
        """
        start = self._resume()
        self.log.truncate(self.stage, start)
        with stop_requests() as stop:
            try:
                for step in range(start, self.steps):
                    saved = self._one(step, bar)
                    if any_rank(stop.requested) and step + 1 < self.steps:
                        if not saved:
                            self._save(step + 1, None)
                        raise KeyboardInterrupt
            finally:
                self.checkpoints.wait()

    def _one(self, step: int, bar: Bar) -> bool:
        """One step, logged; whether a checkpoint of it was written."""
        began, tokens_before = time.perf_counter(), self.tokens
        self.ctx.step = step
        record = self._take(step)
        done = step + 1
        self._machine(record, time.perf_counter() - began, self.tokens - tokens_before)
        watched = None
        for every, hook in self.hooks:
            if every and (done % every == 0 or done == self.steps):
                figures = dict(hook(done))
                watched = figures.pop("watched", watched)
                record.update(figures)
        self.log.write({"stage": self.stage, "step": done, "tokens": self.tokens, **record})
        bar.update(done, console_line(record))
        every = self.config.checkpoint_every
        due = bool(every and done % every == 0) or done == self.steps
        if due:
            self._save(done, watched)
        return due

    def _take(self, step: int) -> dict[str, object]:
        """A step's updates: what they measured is one figure for all of a role's; the learning rate is the last."""
        record: dict[str, object] = {}
        measured: Metrics = {}
        skipped_before = self.skipped
        for update in self.objective.next_step(self.ctx):
            metrics, figures = self._update(update, step)
            add_metrics(measured, metrics)
            record.update(figures)
        if self.skipped == skipped_before:  # no role was skipped: a sound policy must not hide a broken critic
            self.skipped = 0
        record.update({name: float(m.total / m.weight.clamp(min=1e-9)) for name, m in measured.items()})
        record.update(self.objective.step_metrics())
        self.objective.observe({k: v for k, v in record.items() if isinstance(v, float)})
        return record

    def _update(self, update: Update, step: int) -> tuple[Metrics, dict[str, float]]:
        """One optimizer step of one model: what it measured, and what only its last update says.

        Names carry the role's unless it is the policy.
        """
        trainee = self.trainees[update.role]
        metrics = dict(self.step.backward(update))
        norm = trainee.parts.clip(trainee.optimizer.config.clip)
        metrics["grad_norm"] = Mean(torch.tensor(norm, dtype=torch.float64), torch.ones(()))
        figures: dict[str, float] = {}
        self.tokens += count_tokens(update.micro_batches)
        if math.isfinite(norm) and math.isfinite(float(metrics["loss"].total)):
            figures["lr"] = trainee.optimizer.step(step)
            trainee.parts.publish()
            if trainee.optimizer.imbalance is not None:
                figures["experts_max_over_mean"] = float(trainee.optimizer.imbalance)
        else:
            trainee.optimizer.zero_grad()
            trainee.parts.publish()  # nothing new, but gradients are forgotten where they lie
            self.skipped += 1
            figures["skipped"] = float(self.skipped)
            if self.skipped >= MAX_SKIPPED:
                lr = f"{self.key or self.stage}.{'critic_' if update.role == 'critic' else ''}optim.lr"
                raise UserError(
                    f"{self.stage}: the gradient was not finite {MAX_SKIPPED} times in a row at step {step}; lower "
                    f"{lr} (now {trainee.optimizer.config.lr}), which starts the stage anew; its last good checkpoint "
                    f"is in {self.checkpoints.folder}"
                )
        prefix = "" if update.role == "policy" else f"{update.role}/"
        return _named(prefix, metrics), _named(prefix, figures)

    def _machine(self, record: dict[str, object], seconds: float, tokens: int) -> None:
        rate = tokens / max(seconds, 1e-9)
        machine = {"seconds": seconds, "tokens_per_second": rate, "peak_gib": peak_rss_gib()}
        if self.peak_flops:
            machine["mfu"] = rate * self.flops_per_token / self.peak_flops
        record["machine"] = machine

    def _save(self, done: int, watched: float | None) -> None:
        pieces = [
            (f"{role}/{key}", partial(_whole, trainee.parts, name, tensor))
            for role, trainee in self.trainees.items()
            for key, (name, tensor) in trainee.tensors().items()
        ]
        state = {"tokens": self.tokens, "skipped": self.skipped, "objective": self.objective.state_dict()}
        self.checkpoints.save(done, pieces, state, watched, self.config.async_save)

    def _resume(self) -> int:
        found = self.checkpoints.load()
        if found is None:
            return 0
        done, tensors, state = found
        for role, trainee in self.trainees.items():
            _restore(trainee, role, tensors)
        self.tokens, self.skipped = state["tokens"], state["skipped"]
        self.objective.load_state_dict(state["objective"])
        return done


def _named(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    return {prefix + name: value for name, value in values.items()}


def _whole(parts: Placed, name: str, tensor: Tensor) -> Tensor:
    """A number that stands for the whole parameter (AdamW counts its steps) is the same everywhere."""
    return parts.whole_of(name, tensor) if tensor.ndim else tensor


@torch.no_grad()
def _restore(trainee: Trainee, role: str, tensors: Mapping[str, Tensor]) -> None:
    """Read what is this rank's, one tensor after the other."""
    parts = trainee.parts
    for name, weight in trainee.weights.items():
        weight.copy_(parts.part_of(name, tensors[f"{role}/model/{name}"]))
    parts.publish()
    state = {}
    for key in tensors:
        _, _, own = key.partition(f"{role}/state/")
        name = own.partition("/")[0]
        if own and name in parts.targets:
            tensor = tensors[key]
            state[f"state/{own}"] = parts.part_of(name, tensor) if tensor.ndim else tensor
    trainee.optimizer.load_tensors(state)


@torch.no_grad()
def load_model(model: Transformer, tensors: Mapping[str, Tensor]) -> None:
    """Copy named tensors into a model's parameters; every parameter must be there."""
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])


def count_tokens(batches: Sequence[Batch]) -> int:
    """Tokens that are no padding."""
    return sum(int((batch.segments >= 0).sum()) for batch in batches)


def console_line(record: Mapping[str, object]) -> str:
    """`loss 3.412  bpb 1.41  gnorm 0.84  lr 3.0e-04  41.2k tok/s  mfu 38%`, with what the record holds."""
    shown = []
    formats = {
        "loss": "loss {:.3f}",
        "bpb": "bpb {:.2f}",
        "reward": "reward {:.2f}",
        "accuracy": "acc {:.2f}",
        "steps_written": "steps {:.1f}",
        "grad_norm": "gnorm {:.2f}",
        "lr": "lr {:.1e}",
    }
    for name, form in formats.items():
        value = record.get(name)
        if isinstance(value, float):
            shown.append(form.format(value))
    machine = record.get("machine")
    if isinstance(machine, Mapping):
        shown.append(f"{machine['tokens_per_second'] / 1000:.1f}k tok/s")
        if "mfu" in machine:
            shown.append(f"mfu {machine['mfu']:.0%}")
    return "  ".join(shown)
