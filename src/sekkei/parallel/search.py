"""Which layouts train a model on a cluster: all of them are priced, those that fit are ranked by step time.

    pp · dp · cp · tp = gpus    zero 0 … 3, at 3 `reshard` and groups that replicate    sequence cut or not
    pipelines: 1f1b, interleaved, zero_bubble, with zero 0 and 1    with and without recomputation
    ep, where the model has experts: every number of data ranks that divides them

A layout fits if a rank's estimated peak (peak.py) and the reserve leave nothing over. Among equal times the one that
needs less memory is better. Layouts that do not fit are told by what they lack, the fastest ones first.

Not searched, but priced on demand: selective recomputation, gpipe (1f1b's time, more memory), gathered keys and values
in place of the ring, pipelines with zero 2 and 3, which reduce or gather for every micro-batch.

It does not handle other sizes of micro-batches than the one asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

from sekkei.core.config import from_mapping, parse_yaml
from sekkei.core.errors import ConfigError
from sekkei.core.hardware import GIB
from sekkei.parallel.cost import Cluster, step_flops, step_seconds
from sekkei.parallel.layout import Layout, Recompute, Schedule
from sekkei.parallel.memory import Job, Weights
from sekkei.parallel.peak import heaviest_rank

SCHEDULES: tuple[Schedule, ...] = ("1f1b", "interleaved", "zero_bubble")
UNPRICED = {
    "microbatches": "a plan's micro-batches follow from --rows and --micro-rows",
    "offload": "memory of the CPU is not planned",
    "compile": "what fused kernels save and recompute is torch's choice",
}
RESERVE = 2 * GIB  # driver's context and the communication library's own buffers; an assumption


@dataclass(frozen=True)
class Plan:
    """One layout's price on one cluster: bytes of the rank that has most, and seconds of a step."""

    job: Job
    layout: Layout
    cluster: Cluster
    rank: int
    memory: dict[str, int]
    seconds: dict[str, float]

    @property
    def peak(self) -> int:
        """Estimated bytes of a rank, reserve included."""
        return sum(self.memory.values()) + RESERVE

    @property
    def fits(self) -> bool:
        return self.peak <= self.cluster.gpu.memory

    @property
    def step(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())

    @property
    def utilisation(self) -> float:
        """Model FLOPs of the step over what the GPUs could do: recomputation is not counted as work."""
        useful = step_flops(self.job)
        return useful / (self.step * self.cluster.gpus * self.cluster.gpu.flops)

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def reason(self) -> str:
        """Why it does not fit: the sum, and the largest parts of it."""
        groups = {**self.memory, "optimizer": self.memory["master"] + self.memory["moments"]}
        del groups["master"], groups["moments"]
        largest = sorted(groups, key=lambda name: -groups[name])[:2]
        parts = ", ".join(f"{name} {groups[name] / GIB:.1f}" for name in largest)
        return f"needs {self.peak / GIB:.1f} GiB of {self.cluster.gpu.memory / GIB:.0f}: {parts}"

    @property
    def warning(self) -> str | None:
        if self.layout.tp <= self.cluster.gpus_per_node:
            return None
        return f"tp={self.layout.tp} > gpus_per_node={self.cluster.gpus_per_node}: priced at the network's rate"


@dataclass(frozen=True)
class Found:
    """Plans that fit, best first; plans that do not, fastest first; `refused`: layouts that do not divide."""

    fitting: list[Plan]
    others: list[Plan]
    refused: dict[str, int]


def price(job: Job, layout: Layout, cluster: Cluster) -> Plan:
    """One layout.

    Raises:
        ConfigError: it does not divide the model, the batch or the cluster.
    """
    if layout.world != cluster.gpus:
        product = f"pp·dp·cp·tp = {layout.pp}·{layout.dp}·{layout.cp}·{layout.tp} = {layout.world}"
        raise ConfigError("layout", f"{product}, and --gpus={cluster.gpus}")
    rank, held = heaviest_rank(job, layout)
    return Plan(job, layout, cluster, rank, held, step_seconds(job, layout, cluster))


def search(job: Job, cluster: Cluster) -> Found:
    """Price every layout, with and without recomputation (of whole blocks, or of scores where the schedule forbids).

    Returns:
        `refused` counts layouts by the key that refuses them.
    """
    fitting, others, refused = [], [], dict[str, int]()
    for layout in (spread for base in candidates(cluster) for spread in _spread(base, job)):
        try:
            again: Recompute = "selective" if layout.pp > 1 and layout.schedule == "zero_bubble" else "full"
            plans = [price(job, replace(layout, recompute=recompute), cluster) for recompute in ("none", again)]
        except ConfigError as error:
            refused[error.key] = refused.get(error.key, 0) + 1
            continue
        for plan in plans:
            (fitting if plan.fits else others).append(plan)
    return Found(_ranked(fitting), _ranked(others), refused)


def candidates(cluster: Cluster) -> Iterator[Layout]:
    """Every layout of the cluster's GPUs, whether or not the model allows it."""
    gpus = cluster.gpus
    for pp in _divisors(gpus):
        for tp in _divisors(gpus // pp):
            for cp in _divisors(gpus // pp // tp):
                for sequence in (False, True) if tp > 1 else (False,):
                    dp = gpus // pp // tp // cp
                    base = Layout(pp=pp, dp=dp, cp=cp, tp=tp, sequence_parallel=sequence)
                    yield from _piped(base) if pp > 1 else _flat(base, cluster)


def _spread(base: Layout, job: Job) -> Iterator[Layout]:
    moe = job.model.moe
    for ep in _divisors(base.dp // base.replicate * base.cp) if moe else (1,):
        if ep == 1 or (moe and moe.experts % ep == 0):
            yield replace(base, ep=ep)


def _piped(base: Layout) -> Iterator[Layout]:
    for schedule in SCHEDULES:
        for zero in (0, 1) if base.dp * base.cp > 1 else (0,):
            yield replace(base, schedule=schedule, zero=zero)


def _flat(base: Layout, cluster: Cluster) -> Iterator[Layout]:
    yield base
    if base.dp * base.cp == 1:
        return
    yield replace(base, zero=1)
    yield replace(base, zero=2)
    for group in sorted({1, max(1, cluster.gpus // cluster.gpus_per_node)}):
        if base.dp % group == 0 and base.dp // group * base.cp > 1:
            yield replace(base, zero=3, replicate=group)
            yield replace(base, zero=3, replicate=group, reshard=False)


def parse_layout(text: str, weights: Weights = "fp32") -> Layout:
    """`dp=8,tp=8,zero=1,recompute=full` -> a layout.

    Args:
        weights: of the job; the layout of several ranks has them unless the text says otherwise.
    Raises:
        ConfigError: a key is unknown or cannot be priced, or a value does not fit.
    """
    data: dict[str, object] = {}
    for item in text.split(","):
        key, sign, value = item.strip().partition("=")
        if not sign:
            known = ", ".join(field.name for field in fields(Layout))
            raise ConfigError("--layout", f"got {item.strip()!r}, must be key=value; keys: {known}")
        data[key] = parse_yaml(value, f"--layout {key}")
    for key, remedy in UNPRICED.items():
        if key in data:
            raise ConfigError(f"--layout {key}", remedy)
    if weights == "bf16" and any(data.get(axis, 1) != 1 for axis in ("pp", "dp", "cp", "tp")):
        data.setdefault("weights", "bf16")
    return from_mapping(Layout, data, "layout")


def _ranked(plans: Iterable[Plan]) -> list[Plan]:
    return sorted(plans, key=lambda plan: (plan.step, plan.peak))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
