"""Forward and backward of one update on one process: the plain step.

A step owns how a model is run (autocast, attention, recomputation) and how an update's sums become one
gradient. A pipeline step has the same two methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from sekkei.data.batch import Batch
from sekkei.model.attention import DenseAttend
from sekkei.model.lora import without_lora
from sekkei.model.output import Output
from sekkei.model.transformer import Transformer
from sekkei.parallel.ops import Ops
from sekkei.train.objective import Mean, Metrics, Update
from sekkei.train.shared_prompts import Flat, flat_batch


class Step(Protocol):
    """How models are run: plainly here, as a pipeline in a layout."""

    def score(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        """Forward without gradients."""
        ...

    def backward(self, update: Update) -> Metrics:
        """Add the update's gradient to its model's parameters; returns metrics with the loss among them."""
        ...


class PlainStep:
    """One process holds whole models.

    Args:
        models: by role.
        ops: reductions over the data axes.
        autocast: compute dtype of forward passes; None: the weights' own.
    """

    def __init__(self, models: Mapping[str, nn.Module], ops: Ops, device: torch.device, autocast: torch.dtype | None):
        self.models, self.ops, self.device, self.autocast = models, ops, device, autocast

    @torch.no_grad()
    def score(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        return self._forward(role, batch.to(self.device), self._flat(role, batch), wants, temperature)

    def backward(self, update: Update) -> Metrics:
        loss_fn, ops = update.loss, self.ops
        units = add_units([loss_fn.units(batch) for batch in update.micro_batches])
        units = {kind: ops.all_sum(count) for kind, count in units.items()}
        total: Metrics = {}
        for cpu_batch in update.micro_batches:
            batch = cpu_batch.to(self.device)
            flat = self._flat(update.role, cpu_batch)
            out = self._forward(update.role, batch, flat, loss_fn.wants, loss_fn.temperature)
            terms, metrics = loss_fn.terms(out, batch, ops)
            loss = normalised(terms, units)
            loss.backward()
            metrics = {**metrics, "loss": Mean(loss.detach(), torch.ones_like(loss, requires_grad=False))}
            add_metrics(total, metrics)
        whole = total["loss"]
        total["loss"] = Mean(ops.all_sum(whole.total), torch.ones_like(whole.total))
        return {
            name: mean if name == "loss" else Mean(ops.all_sum(mean.total), ops.all_sum(mean.weight))
            for name, mean in total.items()
        }

    def _flat(self, role: str, batch: Batch) -> Flat | None:
        """The batch with its prompts computed once, where that pays; experts would count their load another way."""
        model = self.models[role]
        if not isinstance(model, Transformer) or model.config.moe is not None:
            return None
        return flat_batch(batch, self.device)

    def _forward(self, role: str, batch: Batch, flat: Flat | None, wants: frozenset[str], temperature: float) -> Output:
        model = self.models[role]
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            if flat is not None:
                out = model(flat.ids, flat.positions, flat.attend, flat.labels, wants, temperature)
                return flat.rows(out, batch.ids.shape)
            return model(batch.ids, batch.positions, DenseAttend(batch.segments), batch.labels, wants, temperature)


class BaseReference:
    """A `Step` whose "reference" is the policy without its adapter: no second copy of the weights, on any layout.

    Args:
        policy: the modules that `step` runs as "policy" here, or what holds them.
    """

    def __init__(self, step: Step, policy: nn.Module) -> None:
        self.step, self.policy = step, policy

    def score(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        if role != "reference":
            return self.step.score(role, batch, wants, temperature)
        with without_lora(self.policy):
            return self.step.score("policy", batch, wants, temperature)

    def backward(self, update: Update) -> Metrics:
        return self.step.backward(update)


def add_units(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sum the units of several micro-batches."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for kind, count in part.items():
            total[kind] = total[kind] + count if kind in total else count
    return total


def normalised(terms: Mapping[str, Tensor], units: Mapping[str, Tensor]) -> Tensor:
    """Σ over kinds of (sum of this micro-batch / global count); a kind without any unit adds nothing."""
    parts = [value / units[kind].to(value).clamp(min=1) for kind, value in sorted(terms.items())]
    return torch.stack(parts).sum()


def add_metrics(total: Metrics, metrics: Metrics) -> None:
    """Add a micro-batch's metrics to the running sums."""
    for name, mean in metrics.items():
        weight, value = mean.weight.detach(), mean.total.detach()
        total[name] = Mean(total[name].total + value, total[name].weight + weight) if name in total else mean
