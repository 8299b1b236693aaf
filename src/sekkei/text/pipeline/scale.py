"""The same plan on a cluster: its phases as jobs of datatrove's executors (Penedo et al. 2024), Slurm or Ray.

    read ×R ──> resolve ──> apply ×R ──> … ──> write          R ranks each; a job starts when the one before has ended

A rank does the tasks (parts) with number = rank modulo R, through the same functions as the local executor, and leaves
its states as a file in WORK/scale/RUN; the next phase puts the files together in the order of tasks. So the outcome is
that of one machine, to the byte. RUN is the digest of plan and input files. datatrove's own note of finished ranks is
switched off: it does not see a changed filter, the store does, and finds what is done.

Every machine must see the same input, work and output folders, and have the same environment. Ray is joined where
RAY_ADDRESS or `ray start` says, else started on this machine.

Not handled: waiting for Slurm (the jobs are handed in, `squeue` shows them); a Ray cluster that has no node yet on
which a rank fits and would grow one; a page that kills its process ends the job (the local executor isolates it).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError
from sekkei.text.blocks.block import need
from sekkei.text.pipeline import output, phases
from sekkei.text.pipeline.part import State
from sekkei.text.pipeline.plan import Plan, Task, plan_of
from sekkei.text.read.hub import fingerprint, is_hub


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Who runs the phases.

    Args:
        kind: "local" (processes of this machine), or datatrove's "slurm" or "ray".
        ranks: jobs that a phase is dealt to. parallel: how many of them at once (0: all).
        partition, time, qos: Slurm's. cpus, memory_gb: of each rank.
        environment: shell line that a Slurm job begins with; "": activate the environment that this runs in.
    """

    kind: Literal["local", "slurm", "ray"] = "local"
    ranks: int = 16
    parallel: int = 0
    partition: str = ""
    time: str = "10:00:00"
    qos: str = ""
    cpus: int = 1
    memory_gb: int = 4
    environment: str = ""

    def __post_init__(self) -> None:
        for key, least in (("ranks", 1), ("parallel", 0), ("cpus", 1), ("memory_gb", 1)):
            if getattr(self, key) < least:
                raise ConfigError(key, f"{getattr(self, key)} must be at least {least}")
        if self.kind == "slurm" and not self.partition:
            raise ConfigError("partition", "kind=slurm needs the name of a partition (`sinfo` lists them)")


@dataclass(frozen=True)
class Phase:
    """One job: what datatrove calls with (data, rank, ranks), here or on another machine.

    Args:
        plan: as `Plan.to_json` writes it. out: folder of the final files. folder: of this run's states.
        number: of the segment, from 1 (resolve, apply). since: when the run began, by the store's clock.
    """

    name: ClassVar[str] = "sekkei"
    type: ClassVar[str] = "clean"

    kind: Literal["read", "resolve", "apply", "write"]
    plan: str
    out: str
    folder: str
    number: int = 0
    since: float = 0.0

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Do this rank's part."""
        plan = plan_of(self.plan)
        if self.kind == "read":
            tasks = plan.tasks()
            found = {i: phases.read_task(plan, tasks[i]) for i in range(rank, len(tasks), world_size)}
            self._leave(0, rank, found, len(tasks))
        elif self.kind == "resolve":
            decisions = phases.resolve(plan, self.number, self._states(self.number - 1))
            atomic.write_json(Path(self.folder) / f"decisions-{self.number}.json", decisions)
        elif self.kind == "apply":
            states = self._states(self.number - 1)
            decisions = json.loads((Path(self.folder) / f"decisions-{self.number}.json").read_text(encoding="utf-8"))
            mine = range(rank, len(states), world_size)
            found = {i: [phases.apply_part(plan, self.number, states[i], decisions[i])] for i in mine}
            self._leave(self.number, rank, found, len(states))
        else:
            states = self._states(self.number)
            output.write(plan, states, Path(self.out), output.key_of(plan, states))
            plan.store.prune(self.since)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _leave(self, number: int, rank: int, found: dict[int, list[State]], total: int) -> None:
        plain = [[place, [state.plain() for state in states]] for place, states in found.items()]
        atomic.write_json(Path(self.folder) / f"states-{number}-{rank:05d}.json", {"of": total, "states": plain})

    def _states(self, number: int) -> list[State]:
        """States behind segment `number`, in the order of tasks."""
        found: dict[int, list[State]] = {}
        total = -1
        for path in Path(self.folder).glob(f"states-{number}-*.json"):
            left = json.loads(path.read_text(encoding="utf-8"))
            total = left["of"]
            for place, states in left["states"]:
                found[place] = [State(**{**state, "chain": tuple(state["chain"])}) for state in states]
        if len(found) != total:
            raise UserError(
                f"{self.folder}: {len(found)} of {total} results of phase {number} are there: a rank failed"
            )
        return [state for place in sorted(found) for state in found[place]]


def phases_of(plan: Plan, out: Path) -> list[Phase]:
    """The jobs of a plan, in order, for a run of their own."""
    tasks = plan.tasks()
    run = atomic.sha256_json([plan.key(), plan.part_bytes, [_about(task) for task in tasks]])[:24]
    folder = Path(plan.work).resolve() / "scale" / run
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared: dict[str, Any] = {"plan": plan.to_json(), "out": str(out.resolve()), "folder": str(folder)}
    last = len(plan.segments()) - 1
    jobs = [Phase("read", **shared)]
    for number in range(1, last + 1):
        jobs += [Phase(kind, **shared, number=number) for kind in ("resolve", "apply")]  # type: ignore[arg-type]
    return [*jobs, Phase("write", **shared, number=last, since=plan.store.now())]


def run(plan: Plan, out: Path, executor: Executor) -> dict[str, Any] | None:
    """Clean a corpus on a cluster.

    Returns:
        the summary; None where jobs were handed in and are not waited for (Slurm).
    Raises:
        UserError: datatrove, Ray or `sbatch` is missing, there is no input, or a job failed.
    """
    module = need(f"datatrove.executor.{executor.kind}", "datatrove", f"executor.kind={executor.kind}", "scale")
    if executor.kind == "slurm" and shutil.which("sbatch") is None:
        raise UserError("executor.kind=slurm: there is no `sbatch` here; run this on a login node of the cluster")
    jobs = phases_of(plan, out)
    logs = Path(jobs[0].folder).with_suffix(".logs")
    shutil.rmtree(logs, ignore_errors=True)
    if executor.kind == "slurm":
        _hand_in(module, jobs, logs, executor)
        return None
    _join_ray(need("ray", "ray", "executor.kind=ray", "scale"), executor)
    for place, job in enumerate(jobs):
        found = module.RayPipelineExecutor(
            pipeline=[job],
            tasks=executor.ranks if job.kind in ("read", "apply") else 1,
            workers=executor.parallel or -1,
            cpus_per_task=executor.cpus,
            mem_per_cpu_gb=executor.memory_gb / executor.cpus,
            logging_dir=str(logs / _title(place, job)),
            skip_completed=False,
        )
        found.run()
        if failed := found.get_incomplete_ranks(skip_completed=True):
            raise UserError(f"{len(failed)} ranks of {_title(place, job)} failed; their logs are in {logs}")
    summary = output.read_summary(out)
    if summary is None:
        raise UserError(f"{out}: the run left no {output.SUMMARY}; see {logs}")
    return summary


def _join_ray(ray: Any, executor: Executor) -> None:
    """Join or start Ray, and refuse ranks that fit on no node: Ray would wait for one without a word."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless a person asks for it
    if not ray.is_initialized():
        ray.init()
    nodes = [
        (node["Resources"].get("CPU", 0.0), node["Resources"].get("memory", 0.0) / 2**30)
        for node in ray.nodes()
        if node["Alive"]
    ]
    if not any(cpus >= executor.cpus and memory >= executor.memory_gb for cpus, memory in nodes):
        has = "; ".join(f"{cpus:g} CPUs and {memory:.1f} GiB" for cpus, memory in nodes)
        raise UserError(
            f"executor.cpus={executor.cpus}, executor.memory_gb={executor.memory_gb}: no node of the Ray cluster has "
            f"that for a rank; there is {has or 'none'}"
        )


def _hand_in(module: Any, jobs: Sequence[Phase], logs: Path, executor: Executor) -> None:
    """Give all jobs to Slurm, each to begin when the one before has ended well."""
    before = None
    for place, job in enumerate(jobs):
        before = module.SlurmPipelineExecutor(
            pipeline=[job],
            tasks=executor.ranks if job.kind in ("read", "apply") else 1,
            workers=executor.parallel or -1,
            time=executor.time,
            partition=executor.partition,
            qos=executor.qos or None,
            cpus_per_task=executor.cpus,
            mem_per_cpu_gb=-(-executor.memory_gb // executor.cpus),
            job_name=f"sekkei-{_title(place, job)}",
            env_command=executor.environment or _activation(),
            logging_dir=str(logs / _title(place, job)),
            slurm_logs_folder=str(logs / _title(place, job) / "slurm"),
            depends=before,
            skip_completed=False,
        )
        before.launch_job()


def _activation() -> str:
    """What makes a shell use this Python."""
    activate = Path(sys.prefix) / "bin" / "activate"
    return f"source {activate}" if activate.is_file() else f'export PATH="{Path(sys.executable).parent}:$PATH"'


def _title(place: int, job: Phase) -> str:
    return f"{place:02d}-{job.kind}" + (f"-{job.number}" if job.kind in ("resolve", "apply") else "")


def _about(task: Task) -> list[Any]:
    """What tells a task from one over changed files, without reading them."""
    return [
        [name, fingerprint(path)] if is_hub(path) else [name, Path(path).stat().st_mtime_ns, Path(path).stat().st_size]
        for name, path, _ in task.files
    ]
