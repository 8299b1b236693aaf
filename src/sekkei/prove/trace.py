"""A dry run of a layout without its hardware: one rank's true step on tensors that have shapes and no values.

    fake process group (any world size, one process) + fake tensors ── build, cut, forward, backward, optimizer
        └─ LiveBytes counts every storage: what is held after the backward pass, and the peak

The code that runs is the code that trains: the same cuts, buckets, gathered blocks and saved activations, so what it
tells is what happens, where the closed form (parallel/memory.py) is a formula. It sees a CPU's kernels: attention that
writes its scores out, where a GPU's fused kernel does not. Every token is scored, and every row is one document. What
other ranks would send (a ring's keys, a pipeline's hidden states) is a tensor of the right shape; a pipeline's schedule
is run in this rank's order, and what it sends stays until the schedule drops the transfer, as it does with gloo and
NCCL (interleaved and zero-bubble schedules: until the end of the step). It does not handle offloading, or compiled
blocks.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist

from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch
from sekkei.model.transformer import RUN_BLOCK, Transformer
from sekkei.objectives.pretrain import TokenLoss
from sekkei.parallel.apply import Sharded
from sekkei.parallel.layout import Layout
from sekkei.parallel.live_bytes import LiveBytes
from sekkei.parallel.memory import Job
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.pipeline import Pipelined
from sekkei.train.objective import Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.pipeline_step import PipelineStep
from sekkei.train.sharded_step import ShardedStep

OPTIM = OptimConfig(kind="adamw", schedule="constant", warmup=0.0)
PASSES = 2  # micro-batches that are run without a pipeline: the second finds gradients there, and any more repeat it
CPU = torch.device("cpu")
STILL = 10  # looks, 20 ms apart, between which nothing may be given back


Section = tuple[str, int, int, int]
"""(what, which of the rank's stages, which of its layers, the how-manieth time)."""


@dataclass(frozen=True)
class Traced:
    """Bytes of one rank: between the backward pass and the optimizer, and at the highest point of the step.

    sections: the highest points of parts of the step, each up to the next collective or the next part.
    """

    held: int
    peak: int
    sections: dict[tuple[Section, int], int] = field(repr=False)


def trace(job: Job, layout: Layout, rank: int = 0) -> Traced:
    """One step of `rank`, without the others; what repeats it runs as often as it is (repeated.py does not).

    Raises:
        ConfigError: the layout does not fit the job, or cannot be traced.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    job.check(layout)
    if layout.offload:
        raise ConfigError("layout.offload", "a dry run counts one memory")
    if layout.compile:
        raise ConfigError("layout.compile", "a dry run counts what is run as it is written")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
    try:
        mesh = Mesh(layout, "cpu")
        with _without_values(), _alone():
            return one_step(job, mesh)
    finally:
        dist.destroy_process_group()


def one_step(job: Job, mesh: Mesh) -> Traced:
    """Build, cut and train a model for one step in the process group that there is, fake or real."""
    layout, wide = mesh.layout, torch.float64 if job.weights == "fp64" else torch.float32
    with _default(wide):
        model = Transformer(job.model)
    model.run_block = RUN_BLOCK[layout.recompute]
    placed = Pipelined(model, mesh) if layout.pp > 1 else Sharded(model, mesh)
    optimizer = Optimizer(placed.model, OPTIM, 1, wide, placed)
    autocast = None if job.weights == "fp64" else torch.bfloat16
    ids = torch.zeros(job.micro_rows, job.context, dtype=torch.long)
    ones = torch.ones(job.micro_rows, job.context)
    batch = Batch(ids=ids, labels=ids, mask=ones, positions=ids, segments=ids, extra={})
    for target in placed.targets.values():  # the moments of a first step, which a training's other steps find there
        target.grad = torch.zeros_like(target)
    optimizer.step(0)
    moments = optimizer.tensors().values()
    held = [_local(p) for p in (*placed.model.parameters(), *placed.targets.values(), *moments)]
    del model
    with warnings.catch_warnings(), LiveBytes(held) as live:
        warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nobody writes to log-probabilities
        _mark_blocks(placed, live)
        if isinstance(placed, Pipelined):
            pipeline = PipelineStep({"policy": placed}, mesh, CPU, autocast)
            pipeline.run(Update("policy", [batch] * job.passes(layout), TokenLoss()))
        else:
            step = ShardedStep({"policy": placed}, mesh, CPU, autocast)
            step.backward(Update("policy", [batch] * min(PASSES, job.passes(layout)), TokenLoss()))
        after = _settled(live)
        live.mark(("update", 0, 0, 0))
        placed.widen()
        optimizer.step(0)
        live.mark(("publish", 0, 0, 0))
        placed.publish()
    return Traced(after, live.peak, {key: size for key, size in live.peaks.items() if key[0] is not None})


def _mark_blocks(placed: Sharded | Pipelined, live: LiveBytes) -> None:
    """A section begins where a block begins or ends, forward and backward."""
    counts: Counter[tuple[str, int, int]] = Counter()

    def begin(what: str, chunk: int, place: int) -> None:
        if what.startswith("forward") and torch._C._current_graph_task_id() != -1:  # in a backward pass
            what = f"{what} again"
        live.mark((what, chunk, place, counts[what, chunk, place]))
        counts[what, chunk, place] += 1

    def forward(chunk: int, place: int, block: Any, given: tuple[Any, ...], result: torch.Tensor) -> None:
        begin("forwarded", chunk, place)
        for what, x in (("backward", result), ("back", given[0])):
            if x.requires_grad:
                x.register_hook(lambda _, what=what: begin(what, chunk, place))

    stages = placed.stages.values() if isinstance(placed, Pipelined) else [placed]
    for chunk, stage in enumerate(stages):
        for place, block in enumerate(stage.model.layers.values()):
            block.register_forward_pre_hook(lambda *_, chunk=chunk, place=place: begin("forward", chunk, place))
            block.register_forward_hook(partial(forward, chunk, place))


def _settled(live: LiveBytes) -> int:
    """What stays: threads of a real backend hold what they carried for a moment after it was waited for."""
    found, still = live.live, 0 if dist.get_backend() == "gloo" else STILL
    while still < STILL:
        time.sleep(0.02)
        still = still + 1 if live.live == found else 0
        found = live.live
    return found


class _Transfer(NamedTuple):
    """A transfer under way: a backend's own keeps the tensors that it carries, the fake one does not."""

    work: Any
    carried: list[torch.Tensor]

    def wait(self) -> Any:
        return self.work.wait()


def _without_values() -> contextlib.AbstractContextManager[Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Lets a schedule run without the other ranks: it begins with a vote of all stages on whether shapes are known
    (here they are, and nobody answers), and its transfers go nowhere.
    """
    from torch.distributed.pipelining import schedules
    from torch.distributed.pipelining.stage import InferenceMode

    begin = schedules._batch_p2p

    def known(schedule: Any, stages: Sequence[Any], has_backward: bool, p2p_done: bool) -> None:
        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC

    def carried(ops: list[Any], desc: str | None = None) -> list[Any]:
        return [_Transfer(work, [op.tensor for op in ops]) for work in begin(ops, desc)]

    with (
        patch.object(schedules._PipelineSchedule, "_warmup_p2p", known),
        patch.object(schedules, "_batch_p2p", carried),
    ):
        yield


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _local(x: torch.Tensor) -> torch.Tensor:
    return getattr(x, "_local_tensor", x).detach()
