"""Pipeline schedules replayed: the order in which torch really ran a rank's actions, with the time that each took.

    run      p ranks, m micro-batches, hooks on every stage: (stage, kind, micro-batch) in order, and its CPU time
    replay   each rank does its actions in that order, each as soon as what it waits for is there:
             F(s, b) after F(s-1, b)     B or I(s, b) after B or I(s+1, b) and F(s, b)     W(s, b) after I(s, b)
    bubble   1 - busy / (p · span); with equal stages (p - 1) / (m + p - 1) for gpipe and 1f1b (Huang et al. 2019)

Kinds: F forward, B whole backward, I gradient of the input, W of the weights (zero_bubble puts it off, Qi et al. 2023).
A time is the least over micro-batches and steps (other work on the machine only adds to it), and while one rank is in
an action the others wait (a lock), so that ranks that share two cores do not disturb each other. Ideal charts take the
same order with F 1, I 1, W 1, B 2 units per layer (the arithmetic of matrix products).

It does not show transfers, and the loss itself (a few sums on the last stage) is in no action.
"""

from __future__ import annotations

import fcntl
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage

from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.objectives.pretrain import TokenLoss
from sekkei.parallel.layout import CHUNKS, Layout, Schedule
from sekkei.parallel.live_bytes import LiveBytes, storage_bytes
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.pipeline import Pipelined
from sekkei.prove.spawned import spawned
from sekkei.train.objective import Update
from sekkei.train.pipeline_step import PipelineStep

Action = tuple[int, str, int]  # stage, kind, micro-batch
UNITS = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is run: layers of equal cost, a vocabulary so small that embedding and head do not count.

    Args:
        ranks: `p`. micro_batches: `m`. steps: timed ones, after one that warms up.
    """

    ranks: int = 4
    micro_batches: int = 8
    layers: int = 16
    width: int = 128
    tokens: int = 128
    steps: int = 2


@dataclass(frozen=True)
class Span:
    """An action of a rank, from `start` to `end`."""

    stage: int
    kind: str
    micro_batch: int
    start: float
    end: float


@dataclass(frozen=True)
class Chart:
    """A schedule: what each rank did when, in units or seconds; the idle share; bytes of activations at their peak."""

    schedule: str
    measured: list[list[Span]]
    ideal: list[list[Span]]
    bubble: float
    ideal_bubble: float
    peak_bytes: list[int]
    seconds: dict[str, float]  # median per kind


def charts(case: Case, schedules: Sequence[Schedule] = tuple(CHUNKS)) -> list[Chart]:
    """Run every schedule on real ranks and replay it."""
    with tempfile.NamedTemporaryFile() as lock:
        ranks = spawned(measure, case.ranks, case, list(schedules), lock.name)
    found = []
    for schedule in schedules:
        runs = [rank[schedule] for rank in ranks]
        orders = [[(int(s), str(k), int(b)) for s, k, b in run["order"]] for run in runs]
        stages = case.ranks * CHUNKS[schedule]
        times = {(int(s), str(k)): float(t) for run in runs for s, k, t in run["times"]}
        units = {(s, k): UNITS[k] * case.layers / stages for s in range(stages) for k in UNITS}
        measured, ideal = replay(orders, times), replay(orders, units)
        kinds = {k for _, k in times}
        medians = {k: statistics.median(t for (_, other), t in times.items() if other == k) for k in sorted(kinds)}
        peaks = [int(run["peak"]) for run in runs]
        found.append(Chart(schedule, measured, ideal, bubble(measured), bubble(ideal), peaks, medians))
    return found


def textbook(ranks: int, micro_batches: int) -> float:
    """(p - 1) / (m + p - 1): the idle share of gpipe and 1f1b with equal stages."""
    return (ranks - 1) / (micro_batches + ranks - 1)


def replay(orders: Sequence[Sequence[Action]], times: Mapping[tuple[int, str], float]) -> list[list[Span]]:
    """When each rank would do what, if it did its actions in this order and nothing else cost time.

    Raises:
        ValueError: the orders wait for each other for ever.
    """
    last = max(stage for order in orders for stage, _, _ in order)
    done: dict[Action, float] = {}
    spans: list[list[Span]] = [[] for _ in orders]
    clock, place = [0.0] * len(orders), [0] * len(orders)
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while place[rank] < len(order):
                stage, kind, number = order[place[rank]]
                ready = _ready((stage, kind, number), last, done)
                if ready is None:
                    break
                start = max(clock[rank], ready)
                clock[rank] = start + times[stage, kind]
                done[stage, "B" if kind == "I" else kind, number] = clock[rank]
                spans[rank].append(Span(stage, kind, number, start, clock[rank]))
                place[rank] += 1
                moved = True
    if any(count < len(order) for count, order in zip(place, orders, strict=True)):
        raise ValueError("the orders of these ranks wait for each other for ever")
    return spans


def bubble(spans: Sequence[Sequence[Span]]) -> float:
    """The share of all ranks' time between the first action and the last in which they do nothing."""
    everything = [span for rank in spans for span in rank]
    length = max(span.end for span in everything) - min(span.start for span in everything)
    return 1 - sum(span.end - span.start for span in everything) / (len(spans) * length)


def _ready(action: Action, last: int, done: Mapping[Action, float]) -> float | None:
    """When what an action needs is there; None: not yet known."""
    stage, kind, number = action
    needed: list[Action] = []
    if kind == "F" and stage > 0:
        needed = [(stage - 1, "F", number)]
    elif kind in "BI":
        needed = [(stage, "F", number), *([(stage + 1, "B", number)] if stage < last else [])]
    elif kind == "W":
        needed = [(stage, "B", number)]
    if any(need not in done for need in needed):
        return None
    return max((done[need] for need in needed), default=0.0)


# ---- on every rank


def measure(case: Case, schedules: Sequence[Schedule], lock: str) -> dict[str, Any]:
    """This rank's order, times and peak of each schedule."""
    return {schedule: _measure(case, schedule, lock) for schedule in schedules}


def _measure(case: Case, schedule: Schedule, lock: str) -> dict[str, Any]:
    config = ModelConfig(
        hidden_size=case.width,
        num_layers=case.layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=case.width // 4,
        intermediate_size=3 * case.width,
        vocab_size=32,
    )
    mesh = Mesh(Layout(pp=case.ranks, schedule=schedule), "cpu")
    model = Pipelined(build(config, seed=1), mesh)
    step = PipelineStep({"policy": model}, mesh, torch.device("cpu"), None)
    update = Update("policy", [_batch(case, i) for i in range(case.micro_batches)], TokenLoss())
    log: list[tuple[int, str, int, float]] = []
    step.backward(update)
    with _recorded(log, lock):
        for _ in range(case.steps):
            step.backward(update)
    order = [entry[:3] for entry in log[: len(log) // case.steps]]
    taken: dict[tuple[int, str], list[float]] = {}
    for stage, kind, _, seconds in log:
        taken.setdefault((stage, kind), []).append(seconds)
    parameters = list(model.model.parameters())
    held = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
    with LiveBytes(held) as live:
        step.backward(update)
    return {
        "order": order,
        "times": [(stage, kind, min(times)) for (stage, kind), times in taken.items()],
        "peak": live.peak - storage_bytes(held),
    }


@contextmanager
def _recorded(log: list[tuple[int, str, int, float]], lock: str) -> Iterator[None]:
    """Every action of this process's stages into `log`, with its CPU time (waiting for others is none)."""
    turn = os.open(lock, os.O_RDWR)
    forward, backward = PipelineStage.forward_one_chunk, PipelineStage.backward_one_chunk
    weights = PipelineStage.backward_weight_one_chunk

    def noted(method: Any, kind: str) -> Any:
        def timed(stage: PipelineStage, number: int, *args: Any, **kwargs: Any) -> Any:
            name = "I" if kind == "B" and not kwargs.get("full_backward", True) else kind
            fcntl.flock(turn, fcntl.LOCK_EX)
            began = time.thread_time()
            try:
                result = method(stage, number, *args, **kwargs)
                log.append((stage.stage_index, name, number, time.thread_time() - began))
            finally:
                fcntl.flock(turn, fcntl.LOCK_UN)
            return result

        return timed

    hooked: Any = PipelineStage
    hooked.forward_one_chunk, hooked.backward_one_chunk = noted(forward, "F"), noted(backward, "B")
    hooked.backward_weight_one_chunk = noted(weights, "W")
    try:
        yield
    finally:
        hooked.forward_one_chunk, hooked.backward_one_chunk = forward, backward
        hooked.backward_weight_one_chunk = weights
        os.close(turn)


def _batch(case: Case, number: int) -> Batch:
    rng = random.Random(number)
    ids = [rng.randrange(32) for _ in range(case.tokens + 1)]
    return lay_out([[Sample(ids=ids, weights=[1.0] * len(ids))]], case.tokens)
