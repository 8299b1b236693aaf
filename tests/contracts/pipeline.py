"""A pipeline step, written against the contracts: two parts of one model, the last of which calls the loss.

No processes here: the parts run one after the other, micro-batch by micro-batch, and gradients flow back
through the hidden states by hand, as a schedule does it.
"""

from __future__ import annotations

import torch

from sekkei.data.batch import Batch
from sekkei.model.attention import DenseAttend
from sekkei.model.output import Output
from sekkei.model.transformer import Transformer
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Mean, Metrics, Update
from sekkei.train.step import Step, add_metrics, add_units, normalised


class PipelineStep:
    def __init__(self, first: Transformer, last: Transformer) -> None:
        self.first, self.last, self.ops = first, last, LocalOps()

    def score(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        with torch.no_grad():
            return self._last(self._first(batch), batch, wants, temperature)

    def backward(self, update: Update) -> Metrics:
        units = add_units([update.loss.units(batch) for batch in update.micro_batches])
        total: Metrics = {}
        for batch in update.micro_batches:
            sent = self._first(batch)
            received = sent.detach().requires_grad_()
            out = self._last(received, batch, update.loss.wants, update.loss.temperature)
            terms, metrics = update.loss.terms(out, batch, self.ops)
            loss = normalised(terms, units)
            loss.backward()
            torch.autograd.backward(sent, received.grad)
            add_metrics(total, {**metrics, "loss": Mean(loss.detach(), torch.ones(()))})
        return total

    def _first(self, batch: Batch) -> torch.Tensor:
        hidden = self.first(batch.ids, batch.positions, DenseAttend(batch.segments))
        assert isinstance(hidden, torch.Tensor)
        return hidden

    def _last(self, hidden: torch.Tensor, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        out = self.last(hidden, batch.positions, DenseAttend(batch.segments), batch.labels, wants, temperature)
        assert isinstance(out, Output)
        return out


def fits(step: PipelineStep) -> Step:
    """The type checker's question."""
    return step
