"""Faults that others made, planted on purpose: a proof counts only if each of them makes it fail.

Each is a context manager around the computation of one row; the layout is one in which the fault shows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from sekkei.data.batch import Batch
from sekkei.model.transformer import Transformer
from sekkei.parallel import apply, experts, pipeline, tensor, zero
from sekkei.parallel.layout import Layout
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.zigzag import shard_batch
from sekkei.train import sharded_step
from sekkei.train.objective import Update
from sekkei.train.step import add_units

Plant = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Fault:
    """A name, the layout in which it shows, and how it is planted."""

    name: str
    layout: Layout
    plant: Plant
    objective: str = "tokens"


def _averaged_gradients() -> contextlib.AbstractContextManager[Any]:
    real = zero.Zero.finish_gradients

    def wrong(self: zero.Zero) -> None:
        real(self)
        for target in self.targets.values():
            if target.grad is not None:
                target.grad /= self.size

    return patch.object(zero.Zero, "finish_gradients", wrong)


def _no_tensor_parallel_sum() -> contextlib.AbstractContextManager[Any]:
    return patch.object(tensor, "_is_partial", lambda name, sequence_parallel: False)


def _norm_of_own_part() -> contextlib.AbstractContextManager[Any]:
    def wrong(self: apply.Sharded) -> float:
        squares = [apply._local(t.grad).square().sum() for t in self.targets.values() if t.grad is not None]
        return float(torch.stack(squares).sum().sqrt())

    return patch.object(apply.Sharded, "grad_norm", wrong)


def _wrong_heads() -> contextlib.AbstractContextManager[Any]:
    real = dist.get_rank
    return patch.object(tensor.dist, "get_rank", lambda group=None: 0 if group is not None else real())


def _local_positions() -> contextlib.AbstractContextManager[Any]:
    def wrong(self: sharded_step.ShardedStep, batch: Batch) -> Batch:
        cut = shard_batch(batch, self.mesh.cp_rank, self.mesh.layout.cp, per_segment=("ref", "sign"))
        here = torch.arange(cut.ids.shape[1]).expand_as(cut.ids)
        return Batch(
            ids=cut.ids, labels=cut.labels, mask=cut.mask, positions=here, segments=cut.segments, extra=cut.extra
        )

    return patch.object(sharded_step.ShardedStep, "local", wrong)


def _contiguous_rows() -> contextlib.AbstractContextManager[Any]:
    def wrong(self: sharded_step.ShardedStep, batch: Batch) -> Batch:
        return shard_batch(
            batch, self.mesh.cp_rank, self.mesh.layout.cp, per_segment=("ref", "sign"), order="contiguous"
        )

    return patch.object(sharded_step.ShardedStep, "local", wrong)


def _counted_twice() -> contextlib.AbstractContextManager[Any]:
    real = sharded_step.ShardedStep.units

    def wrong(self: sharded_step.ShardedStep, update: Update) -> dict[str, Tensor]:
        return {kind: count + 1 for kind, count in real(self, update).items()}

    return patch.object(sharded_step.ShardedStep, "units", wrong)


def _mean_of_means() -> contextlib.AbstractContextManager[Any]:
    def wrong(self: sharded_step.ShardedStep, update: Update) -> dict[str, Tensor]:
        own = add_units([update.loss.units(batch) for batch in update.micro_batches])
        return {kind: count * self.mesh.layout.dp for kind, count in own.items()}

    return patch.object(sharded_step.ShardedStep, "units", wrong)


def _local_sequence_sums() -> contextlib.AbstractContextManager[Any]:
    from sekkei.parallel.ops import LocalOps, MeshOps

    return patch.object(MeshOps, "sequence_sum", LocalOps.sequence_sum)


def _per_sequence_terms_on_every_rank() -> contextlib.AbstractContextManager[Any]:
    return patch.object(sharded_step, "PER_TOKEN", "pairs")


def _norm_of_own_stages() -> contextlib.AbstractContextManager[Any]:
    def wrong(self: pipeline.Pipelined) -> float:
        return sum(stage.grad_square() for stage in self.stages.values()) ** 0.5

    return patch.object(pipeline.Pipelined, "grad_norm", wrong)


def _mean_over_micro_batches() -> contextlib.AbstractContextManager[Any]:
    """What torch's schedules do unless they are told not to."""
    real = pipeline.Schedule1F1B

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{**kwargs, "scale_grads": True})

    return patch.dict(pipeline.ONE_STAGE, {"1f1b": wrong})


def _experts_summed_over_all_data_ranks() -> contextlib.AbstractContextManager[Any]:
    def wrong(model: Transformer, mesh: Mesh) -> list[zero.Zero]:
        return [zero.Zero(model.named_parameters(), mesh.data, mesh.layout.zero)]

    return patch.object(apply, "_zeros", wrong)


def _results_in_order_of_arrival() -> contextlib.AbstractContextManager[Any]:
    return patch.object(experts, "inverse", lambda order: torch.arange(len(order)))


FAULTS = (
    Fault("gradients averaged over data ranks", Layout(dp=4), _averaged_gradients),
    Fault("mean of the ranks' means", Layout(dp=4), _mean_of_means),
    Fault("one token counted twice", Layout(dp=2, tp=2), _counted_twice),
    Fault("q_norm not summed over tp", Layout(tp=2), _no_tensor_parallel_sum),
    Fault("every rank loads the first heads", Layout(tp=2), _wrong_heads),
    Fault("norm of a rank's own part", Layout(tp=2), _norm_of_own_part),
    Fault("local instead of global positions", Layout(cp=2), _local_positions),
    Fault("contiguous rows into zig-zag", Layout(cp=2), _contiguous_rows),
    Fault("sequence sums of own tokens only", Layout(cp=2), _local_sequence_sums, "dpo"),
    Fault("pairs counted once per cp rank", Layout(cp=2), _per_sequence_terms_on_every_rank, "dpo"),
    Fault("norm of a rank's own stages", Layout(pp=2, tp=2), _norm_of_own_stages),
    Fault("mean over a pipeline's micro-batches", Layout(pp=4), _mean_over_micro_batches),
    Fault("experts summed over all data ranks", Layout(dp=4, ep=2), _experts_summed_over_all_data_ranks),
    Fault("norm of a rank's own experts", Layout(dp=4, ep=2), _norm_of_own_part),
    Fault("experts' results in order of arrival", Layout(dp=4, ep=2), _results_in_order_of_arrival),
)


@contextlib.contextmanager
def planted(fault: Fault | None) -> Iterator[None]:
    with fault.plant() if fault is not None else contextlib.nullcontext():
        yield
