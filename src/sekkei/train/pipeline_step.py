"""Forward and backward of one update through a pipeline: the sums of `ShardedStep`, the order of a schedule.

    pp rank 0    ids ─> stage 0 ─┐                        ┌─ gradients <─ …
    pp rank 1                    └─> stage 1 ─> loss.terms ┘   metrics ──> every rank

The loss is called where the last stage is, per micro-batch, with the same arguments as on one process: any `Loss` runs
unchanged. A schedule is made once per shape [B, T] and kept; the micro-batches of an update must share T, and those
with fewer rows get empty ones. What the stages between need of a micro-batch (positions, segments, labels) every rank
has, so only hidden states travel.

It does not handle models of one update under different layouts.

Shapes: `B` rows of a micro-batch, `T` tokens of a rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sekkei.core.dist import broadcast_json
from sekkei.core.errors import UserError
from sekkei.data.batch import EMPTY, Batch
from sekkei.model.output import Output
from sekkei.model.transformer import Transformer
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.pipeline import Pipelined, make_schedule
from sekkei.train.objective import Mean, Metrics, Update
from sekkei.train.sharded_step import PER_TOKEN, ShardedStep
from sekkei.train.step import add_metrics, normalised

FIELDS = ("logprobs", "entropy", "values")  # order in which the last stage stacks what a loss wants


class PipelineStep:
    """A `Step` for models that are cut into stages.

    Args:
        models: by role, all under `mesh`. autocast: compute dtype of forward passes; None: the weights' own.
    """

    def __init__(
        self, models: Mapping[str, Pipelined], mesh: Mesh, device: torch.device, autocast: torch.dtype | None
    ) -> None:
        self.models, self.mesh, self.device, self.autocast = models, mesh, device, autocast
        self.rows = ShardedStep({}, mesh, device, autocast)  # units, and this rank's tokens
        self.ops = self.rows.ops
        self.last = mesh.pp_rank == (mesh.layout.stages - 1) % mesh.layout.pp
        self.forwards = {role: self._adapt(model) for role, model in models.items()}
        self.schedules: dict[tuple[object, ...], tuple[Any, _LossCall]] = {}

    @torch.no_grad()
    def score(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        """Whole rows on every rank; stage after stage, without a schedule."""
        local, model, layout = self.rows.local(batch), self.models[role], self.mesh.layout
        rows, tokens = local.ids.shape
        carried = tokens // layout.tp if layout.sequence_parallel else tokens
        wide = torch.float64 if model.wide == torch.float64 else torch.float32
        given = torch.empty(rows, tokens, len(wants), dtype=wide, device=self.device)
        for number in range(layout.stages):
            rank = number % layout.pp
            if rank == self.mesh.pp_rank:
                x = local.ids
                if number > 0:
                    x = torch.empty(rows, carried, model.config.hidden_size, dtype=model.hidden, device=self.device)
                    dist.recv(x, self._global(rank - 1), group=self.mesh.pp)
                self._want(role, wants, temperature)
                out = model.stages[number].model(x, local.positions, local.segments, local.labels)
                if number + 1 < layout.stages:
                    dist.send(out.contiguous(), self._global(rank + 1), group=self.mesh.pp)
                else:
                    given = out.contiguous()
        dist.broadcast(given, self._global(layout.stages - 1), group=self.mesh.pp)
        return self.rows.joined(_unstacked(given, wants))

    def backward(self, update: Update) -> Metrics:
        return self._told_all(self.run(update))

    def run(self, update: Update) -> Metrics:
        """The schedule alone; the metrics are those of the last stage, and only where it is."""
        units = self.rows.units(update)
        batches = [self.rows.local(batch) for batch in update.micro_batches]
        laid = _same_rows(batches)
        schedule, call = self._schedule(update, laid)
        call.begin(update, batches, units)
        self._want(update.role, update.loss.wants, update.loss.temperature)
        stacked = {name: torch.cat([getattr(b, name) for b in laid]) for name in ("positions", "segments", "labels")}
        arguments: list[Tensor] = []
        if self.mesh.pp_rank == 0:
            arguments = [torch.cat([batch.ids for batch in laid])]
        numbers = torch.arange(len(laid), device=self.device).repeat_interleave(laid[0].ids.shape[0])
        extra = {"target": numbers, "losses": []} if self.last else {}
        schedule.step(*arguments, **stacked, **extra, return_outputs=False)
        model = self.models[update.role]
        model.finish_micro_batch()
        model.finish_gradients()
        return call.metrics()

    def _schedule(self, update: Update, laid: list[Batch]) -> tuple[Any, _LossCall]:
        rows, tokens = laid[0].ids.shape
        outputs = len(update.loss.wants)
        key = (update.role, len(laid), rows, tokens, outputs)
        if key not in self.schedules:
            call = _LossCall(self.rows)
            model = self.models[update.role]
            made = make_schedule(model, len(laid), rows, tokens, outputs, call, self.device)
            self.schedules[key] = made, call
        return self.schedules[key]

    def _adapt(self, model: Pipelined) -> list[_StageForward]:
        adapted = []
        for stage in model.stages.values():
            forward = _StageForward(stage.model, self.rows)
            stage.model.forward = forward  # type: ignore[method-assign, assignment]
            adapted.append(forward)
        return adapted

    def _want(self, role: str, wants: frozenset[str], temperature: float) -> None:
        for forward in self.forwards[role]:
            forward.wants, forward.temperature = wants, temperature

    def _global(self, pp_rank: int) -> int:
        return dist.get_global_rank(self.mesh.pp, pp_rank % self.mesh.layout.pp)

    def _told_all(self, metrics: Metrics) -> Metrics:
        """The last stage's metrics, summed over the data axes, on every rank."""
        source = self._global(self.mesh.layout.stages - 1)
        names = broadcast_json(sorted(metrics), source, self.mesh.pp)
        sums = torch.zeros(len(names), 2, dtype=torch.float64, device=self.device)
        if self.last:
            sums = torch.stack([torch.stack([x.double() for x in metrics[name]]) for name in names])
            sums = self.ops.all_sum(sums)
        dist.broadcast(sums, source, group=self.mesh.pp)
        told = {name: Mean(total, weight) for name, (total, weight) in zip(names, sums, strict=True)}
        told["loss"] = Mean(told["loss"].total, torch.ones_like(told["loss"].weight))
        return told


class _StageForward:
    """Takes the place of a stage's `forward`: tensors in, one tensor out, as a schedule can pass them on."""

    def __init__(self, model: Transformer, rows: ShardedStep) -> None:
        self.forward, self.rows, self.last = model.forward, rows, model.norm is not None
        self.wants: frozenset[str] = frozenset()
        self.temperature = 1.0

    def __call__(self, x: Tensor, positions: Tensor, segments: Tensor, labels: Tensor) -> Tensor:
        wants = self.wants if self.last else frozenset()
        attend = self.rows.attend(segments)
        with self.rows.casting():
            out = self.forward(x, positions, attend, labels, wants, self.temperature)
        if isinstance(out, Tensor):
            return out
        return torch.stack([getattr(out, name) for name in FIELDS if name in wants], dim=-1)


class _LossCall:
    """What a schedule calls on the last stage's output of each micro-batch; it may call it more than once."""

    def __init__(self, rows: ShardedStep) -> None:
        self.rows = rows

    def begin(self, update: Update, batches: list[Batch], units: Mapping[str, Tensor]) -> None:
        self.update, self.batches, self.units = update, batches, units
        self.found: dict[int, Metrics] = {}

    def __call__(self, given: Tensor, numbers: Tensor) -> Tensor:
        number = 0 if isinstance(numbers, FakeTensor) else int(numbers[0])  # a dry run's micro-batches are all alike
        cp = self.rows.mesh.layout.cp
        batch, loss = self.batches[number], self.update.loss
        out = _unstacked(given[: batch.ids.shape[0]], loss.wants)
        terms, metrics = loss.terms(out, batch, self.rows.ops)
        shares = {kind: value if kind == PER_TOKEN else value / cp for kind, value in terms.items()}
        part = normalised(shares, self.units)
        self.found[number] = {**metrics, "loss": Mean(part.detach(), torch.ones_like(part, requires_grad=False))}
        return part

    def metrics(self) -> Metrics:
        """Summed over micro-batches; empty where the last stage is elsewhere."""
        total: Metrics = {}
        for number in sorted(self.found):
            add_metrics(total, self.found[number])
        return total


def _unstacked(given: Tensor, wants: frozenset[str]) -> Output:
    names = [name for name in FIELDS if name in wants]
    return Output(**dict(zip(names, given.unbind(-1), strict=True)))


def _same_rows(batches: list[Batch]) -> list[Batch]:
    """Micro-batches as the stages see them, all with as many rows as the largest.

    Raises:
        UserError: rows differ in length.
    """
    lengths = {batch.ids.shape[1] for batch in batches}
    if len(lengths) != 1:
        raise UserError(f"a pipeline needs rows of one length per step, got {sorted(lengths)}; use one length bucket")
    rows = max(batch.ids.shape[0] for batch in batches)
    laid = []
    for batch in batches:
        missing = (0, 0, 0, rows - batch.ids.shape[0])
        filled = {
            name: torch.nn.functional.pad(getattr(batch, name), missing, value=value) for name, value in EMPTY.items()
        }
        laid.append(replace(batch, **filled, extra={}))
    return laid
