"""A dry run of a layout without its hardware: one rank's true step on tensors that have shapes and no values.

    fake process group (any world size, one process) + fake tensors ── build, cut, forward, backward, optimizer
        └─ LiveBytes counts every storage: what is held after the backward pass, and the peak

The code that runs is the code that trains: the same cuts, buckets, gathered blocks and saved activations, so what it
tells is what happens, where the closed form (parallel/memory.py) is a formula. It sees a CPU's kernels: attention that
writes its scores out, where a GPU's fused kernel does not. Every token is scored. It does not handle pipelines, whose
schedules pass messages that other ranks make, rings, which look into the rows for what meets what, or offloading.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch
from sekkei.model.transformer import RUN_BLOCK, Transformer
from sekkei.objectives.pretrain import TokenLoss
from sekkei.parallel.apply import Sharded
from sekkei.parallel.layout import Layout, Mesh
from sekkei.parallel.live_bytes import LiveBytes
from sekkei.parallel.memory import Job
from sekkei.train.objective import Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.sharded_step import ShardedStep

OPTIM = OptimConfig(kind="adamw", schedule="constant", warmup=0.0)
PASSES = 2  # micro-batches that are run: the second finds gradients there, and any more repeat it
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Traced:
    """Bytes of one rank: between the backward pass and the optimizer, and at the highest point of the step."""

    held: int
    peak: int


def trace(job: Job, layout: Layout, rank: int = 0) -> Traced:
    """One step of `rank`, without the others.

    Raises:
        ConfigError: the layout does not fit the job, or cannot be traced.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    job.check(layout)
    if layout.pp > 1:
        raise ConfigError("layout.pp", f"got {layout.pp}: a dry run follows one rank, and pipelines wait for others")
    if layout.cp > 1:
        raise ConfigError("layout.cp", f"got {layout.cp}: a ring looks into the rows, and a dry run's are empty")
    if layout.offload:
        raise ConfigError("layout.offload", "a dry run counts one memory")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
    try:
        mesh = Mesh(layout, "cpu")
        with FakeTensorMode(allow_non_fake_inputs=True):
            return one_step(job, mesh)
    finally:
        dist.destroy_process_group()


def one_step(job: Job, mesh: Mesh) -> Traced:
    """Build, cut and train a model for one step in the process group that there is, fake or real."""
    layout, wide = mesh.layout, torch.float64 if job.weights == "fp64" else torch.float32
    with _default(wide):
        model = Transformer(job.model)
    model.run_block = RUN_BLOCK[layout.recompute]
    placed = Sharded(model, mesh)
    optimizer = Optimizer(placed.model, OPTIM, 1, wide, placed)
    autocast = None if job.weights == "fp64" else torch.bfloat16
    step = ShardedStep({"policy": placed}, mesh, CPU, autocast)
    ids = torch.zeros(job.micro_rows, job.context, dtype=torch.long)
    ones = torch.ones(job.micro_rows, job.context)
    batch = Batch(ids=ids, labels=ids, mask=ones, positions=ids, segments=ids, extra={})
    held = [_local(p) for p in (*placed.model.parameters(), *placed.targets.values())]
    del model
    with warnings.catch_warnings(), LiveBytes(held) as live:
        warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nobody writes to log-probabilities
        step.backward(Update("policy", [batch] * min(PASSES, job.passes(layout)), TokenLoss()))
        after = live.live
        placed.widen()
        optimizer.step(0)
        placed.publish()
    return Traced(after, live.peak)


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
