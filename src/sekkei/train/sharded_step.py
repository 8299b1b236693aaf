"""Forward and backward of one update under a layout: the same sums as one process, from other places.

    units      counted on whole rows, summed over dp            ("tokens": n, "pairs": m; before the context split)
    terms      this rank's tokens; what is one per sequence stands on every cp rank, so it is divided by cp
    gradient   Σ over dp · cp of d(terms / units)

so every layout computes d(Σ terms / Σ units), whatever lies where. The rows of each rank's update are its own part
of the global batch. Pipelines: pipeline_step.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sekkei.data.batch import Batch
from sekkei.model.attention import DenseAttend
from sekkei.model.layers import Attend
from sekkei.model.output import Output
from sekkei.parallel.apply import Sharded
from sekkei.parallel.gather import AllGatherAttend
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.ops import MeshOps
from sekkei.parallel.ring import RingAttend
from sekkei.parallel.zigzag import gather_tokens, shard_batch
from sekkei.train.objective import Mean, Metrics, Update
from sekkei.train.step import add_metrics, add_units, normalised

PER_SEGMENT = ("ref", "sign", "pair", "length", "number", "kl", "margin")  # extras [B, S], where S could be T
PER_TOKEN = "tokens"  # the kind of unit whose terms are split by context parallelism


class ShardedStep:
    """A `Step` under a layout.

    Args:
        models: by role, all under `mesh`. autocast: compute dtype of forward passes; None: the weights' own.
    """

    def __init__(
        self, models: Mapping[str, Sharded], mesh: Mesh, device: torch.device, autocast: torch.dtype | None
    ) -> None:
        self.models, self.mesh, self.device, self.autocast = models, mesh, device, autocast
        self.ops = MeshOps(mesh)

    @torch.no_grad()
    def score(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        """Whole rows on every rank, though each computed its own tokens."""
        return self.joined(self._forward(role, self.local(batch), wants, temperature))

    def backward(self, update: Update) -> Metrics:
        units = self.units(update)
        total: Metrics = {}
        model = self.models[update.role]
        for whole in update.micro_batches:
            batch = self.local(whole)
            out = self._forward(update.role, batch, update.loss.wants, update.loss.temperature)
            terms, metrics = update.loss.terms(out, batch, self.ops)
            cp = self.mesh.layout.cp
            shares = {kind: value if kind == PER_TOKEN else value / cp for kind, value in terms.items()}
            loss = normalised(shares, units)
            loss.backward()
            model.finish_micro_batch()
            add_metrics(total, {**metrics, "loss": Mean(loss.detach(), torch.ones_like(loss, requires_grad=False))})
        model.finish_gradients()
        whole_loss = total["loss"].total
        total["loss"] = Mean(self.ops.all_sum(whole_loss), torch.ones_like(whole_loss))
        return {
            name: mean if name == "loss" else Mean(self.ops.all_sum(mean.total), self.ops.all_sum(mean.weight))
            for name, mean in total.items()
        }

    def units(self, update: Update) -> dict[str, Tensor]:
        """Of the global batch."""
        counted = add_units([update.loss.units(batch) for batch in update.micro_batches])
        for count in counted.values():
            dist.all_reduce(count, group=self.mesh.dp)
        return counted

    def local(self, batch: Batch) -> Batch:
        """This rank's tokens."""
        return shard_batch(batch.to(self.device), self.mesh.cp_rank, self.mesh.layout.cp, per_segment=PER_SEGMENT)

    def joined(self, out: Output) -> Output:
        """Whole rows from this rank's tokens and those of the others."""

        def whole(x: Tensor | None) -> Tensor | None:
            return None if x is None else gather_tokens(x, self.mesh.cp)

        return Output(logprobs=whole(out.logprobs), entropy=whole(out.entropy), values=whole(out.values))

    def casting(self) -> torch.autocast:
        """The compute dtype of a forward pass, as a context."""
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def attend(self, segments: Tensor) -> Attend:
        """For this rank's tokens: densely, round the ring, or with all keys gathered."""
        if self.mesh.layout.cp == 1:
            return DenseAttend(segments)
        kind = RingAttend if self.mesh.layout.context == "ring" else AllGatherAttend
        known = None if isinstance(segments, FakeTensor) else segments  # a dry run's rows: one document each
        return kind(known, self.mesh.cp)

    def _forward(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        model = self.models[role].model
        with self.casting():
            return model(batch.ids, batch.positions, self.attend(batch.segments), batch.labels, wants, temperature)
