"""One process of a proof: computes every row of its world size and sends rank 0's findings back.

    run_rows ── spawned (n ranks, one group) ──> [row, row, …] one after the other ──> findings

A rank that dies or hangs ends the job: the group has a time limit, and the launcher names the row that was under way.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from sekkei.core.errors import UserError
from sekkei.model.config import ModelConfig
from sekkei.model.transformer import RUN_BLOCK
from sekkei.parallel.apply import Sharded
from sekkei.parallel.layout import Layout
from sekkei.parallel.mesh import Groups, Mesh
from sekkei.parallel.pipeline import Pipelined
from sekkei.parallel.traffic import Traffic
from sekkei.prove import case
from sekkei.prove.faults import FAULTS, planted
from sekkei.prove.objectives import OBJECTIVES, Objective
from sekkei.prove.spawned import spawned
from sekkei.train.objective import Update
from sekkei.train.pipeline_step import PipelineStep
from sekkei.train.sharded_step import ShardedStep
from sekkei.train.step import Step

LIMIT = 1e-10  # largest relative error of a gradient and of the norm, in float64
FP32_LIMIT = 1e-5
PARAMETER_LIMIT = 1e-9  # after the optimizer steps
NOTE = "under way"  # the name of a file


@dataclass(frozen=True)
class Row:
    """What to compute.

    Args:
        fault: its number in `FAULTS`; None: no fault. kind: of optimizer. dtype: of everything; in fp32 gradients are
            compared with fp32's error, and parameters, where Adam makes a step of any rounding, are not.
        model: None: the tiny one of `case.py`, with experts where the layout spreads them. lora: an adapter is trained
            and the rest is frozen.
    """

    layout: Layout
    objective: Objective = "tokens"
    fault: int | None = None
    kind: Literal["adamw", "muon"] = "adamw"
    dtype: Literal["fp64", "fp32"] = "fp64"
    model: ModelConfig | None = None
    lora: bool = False

    @property
    def nproc(self) -> int:
        return self.layout.world

    @property
    def config(self) -> ModelConfig:
        tiny = case.DEEP if self.layout.pp > 1 else case.CONFIG
        return self.model or (replace(tiny, moe=case.EXPERTS) if self.layout.ep > 1 else tiny)

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "fp64" else torch.float32

    @property
    def name(self) -> str:
        marks: list[str] = [self.kind] if self.kind != "adamw" else []
        marks += [self.dtype] if self.dtype != "fp64" else []
        marks += ["lora"] if self.lora else []
        return " ".join([self.layout.name, *marks])

    @property
    def question(self) -> tuple[Objective, ModelConfig, Literal["adamw", "muon"], torch.dtype, bool]:
        """What one process is asked: rows that share it are compared with one answer."""
        return self.objective, self.config, self.kind, self.torch_dtype, self.lora


@dataclass
class Finding:
    """What a row showed. Errors are relative: ‖Δ‖ / ‖reference‖, the largest over parameters.

    A planted fault is computed for one step, and its param_rel_max is 0: it must show at once. Bytes are rank 0's;
    bytes_sent: in one step, by collectives.
    """

    layout: str
    objective: str
    nproc: int
    loss_diff: float
    norm_diff: float
    grad_rel_max: float
    grad_worst: str
    param_rel_max: float
    bytes_params: int
    bytes_grads: int
    bytes_optim: int
    bytes_sent: int
    seconds: float
    limit: float
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        first = max(self.loss_diff, self.norm_diff, self.grad_rel_max)
        self.passed = first <= self.limit and self.param_rel_max <= PARAMETER_LIMIT


def run_rows(rows: Sequence[Row], nproc: int) -> list[dict[str, Any]]:
    """Spawn `nproc` ranks that compute `rows`.

    Raises:
        UserError: a rank died or hung; names the row.
    """
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / NOTE
        note.write_text("nothing yet")
        try:
            return spawned(_compute_all, nproc, list(rows), folder)[0]
        except UserError as error:
            raise UserError(f"prove: {error}, while it computed {note.read_text()}") from error


def _compute_all(rows: Sequence[Row], folder: str) -> list[dict[str, Any]]:
    """Every row on this rank of the group; a file in `folder` tells which one is under way."""
    answers, groups, found = _answers(rows, Path(folder)), Groups(), []
    for row in rows:
        if dist.get_rank() == 0:
            (Path(folder) / NOTE).write_text(f"{row.name} ({row.objective})")
        found.append(asdict(compute(row, answers[row.question], groups)))
    return found


def _answers(rows: Sequence[Row], folder: Path) -> dict[Any, case.Answer]:
    """By question; each is answered by one rank and read by all."""
    questions = {question: folder / str(i) for i, question in enumerate(dict.fromkeys(row.question for row in rows))}
    for question in list(questions)[dist.get_rank() :: dist.get_world_size()]:
        case.single(*question).save(questions[question])
    dist.barrier()
    return {question: case.Answer.load(file) for question, file in questions.items()}


def compute(row: Row, answer: case.Answer, groups: Groups | None = None) -> Finding:
    """One row, on every rank of the group."""
    began = time.perf_counter()
    with planted(None if row.fault is None else FAULTS[row.fault]):
        mesh = Mesh(row.layout, "cpu", groups)
        asked = OBJECTIVES[row.objective]
        whole = case.model(row.config, row.torch_dtype, asked.heads, row.lora)
        whole.run_block = RUN_BLOCK[row.layout.recompute]
        model = (Pipelined if row.layout.pp > 1 else Sharded)(whole, mesh)
        optimizer = case.optimizer_of(row.kind, model.model, model)
        step: Step
        if isinstance(model, Pipelined):
            step = PipelineStep({"policy": model}, mesh, case.CPU, None)
        else:
            step = ShardedStep({"policy": model}, mesh, case.CPU, None)
        first: tuple[float, float, float, str] | None = None
        held: dict[str, int] = {}
        traffic = Traffic()
        for number in range(case.STEPS if row.fault is None else 1):
            own = case.micro_batches(row.objective, row.torch_dtype)[mesh.dp_rank :: row.layout.dp]
            with contextlib.nullcontext() if first else traffic:
                metrics = step.backward(Update("policy", own, asked.loss))
            if first is None:
                held = model.bytes()
                error, worst = largest(dict(model.gather_gradients()), answer.gradients)
                first = (float(metrics["loss"].total), model.grad_norm(), error, worst)
            with traffic if number == 0 else contextlib.nullcontext():
                model.clip(case.OPTIM.clip)
                optimizer.step(number)
                model.publish()
        parameters = 0.0
        if row.fault is None and row.dtype == "fp64":
            parameters, _ = largest(dict(model.gather_named()), answer.parameters)
    assert first is not None
    moments = sum(_bytes(t) for t in optimizer.tensors().values() if t.ndim)
    return Finding(
        layout=row.name,
        objective=row.objective,
        nproc=row.nproc,
        loss_diff=abs(first[0] / answer.loss - 1),
        norm_diff=abs(first[1] / answer.norm - 1),
        grad_rel_max=first[2],
        grad_worst=first[3],
        param_rel_max=parameters,
        bytes_params=held["params"],
        bytes_grads=held["grads"],
        bytes_optim=moments + held["master"],
        bytes_sent=traffic.total,
        limit=LIMIT if row.dtype == "fp64" else FP32_LIMIT,
        seconds=time.perf_counter() - began,
    )


def largest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error, and whose it is."""
    if found.keys() != wanted.keys():
        return float("inf"), f"other parameters: {sorted(found.keys() ^ wanted.keys())[0]}"
    errors = {
        name: float((found[name] - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-300))
        if found[name].shape == wanted[name].shape
        else float("inf")
        for name in wanted
    }
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


def _bytes(x: Tensor) -> int:
    local = x.to_local() if hasattr(x, "to_local") else x  # type: ignore[operator]
    return local.numel() * local.element_size()
