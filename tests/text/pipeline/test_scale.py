"""The plan as jobs of datatrove's executors: the same bytes as on one machine; Slurm's scripts run as they stand."""

from __future__ import annotations

import itertools
import os
import stat
import sys
from pathlib import Path

import pytest
from tests.text.pipeline.test_pipeline import BLOCKS, content, corpus

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.progress import Console
from sekkei.text.pipeline import local, scale
from sekkei.text.pipeline.plan import Plan
from sekkei.text.pipeline.scale import Executor, phases_of

QUIET = Console(silent=True)
# What `sbatch` is here: it keeps the script, and runs its array one after another, as a cluster of one machine would
SBATCH = """#!/bin/bash
number=$(( $(cat {0}/count) + 1 )); echo $number > {0}/count
echo "$@" > {0}/arguments-$number
script=${{@: -1}}; cp "$script" {0}/script-$number
if ! grep -q merge_stats "$script"; then
  last=$(grep -oP '(?<=--array=0-)[0-9]+' "$script")
  for task in $(seq 0 $last); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=localhost RUN_OFFSET=0 bash "$script" >> {0}/log-$number 2>&1 || exit 1
  done
fi
echo "Submitted batch job $number"
"""
SRUN = """#!/bin/bash
until [ "$1" = launch_pickled_pipeline ]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo localhost
"""


def plan_for(folder: Path, out: Path, **more: object) -> Plan:
    return Plan(path=str(folder), work=str(out / "work"), items=BLOCKS, part_bytes=4_000, **more)  # type: ignore[arg-type]


@pytest.fixture
def expected(tmp_path: Path) -> tuple[Path, list, list]:
    """The corpus, and what the local executor makes of it."""
    folder = corpus(tmp_path / "in")
    local.run(plan_for(folder, tmp_path / "local"), tmp_path / "local", 1, QUIET)
    return folder, *content(tmp_path / "local")


@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_phases_as_jobs_give_what_one_machine_gives(tmp_path: Path, expected: tuple, ranks: int) -> None:
    folder, documents, ledger = expected
    out = tmp_path / "out"
    for job in phases_of(plan_for(folder, out), out):
        count = ranks if job.kind in ("read", "apply") else 1
        for rank in reversed(range(count)):
            job(None, rank, count)
    assert content(out) == (documents, ledger)
    one, other = ((tmp_path / name / "summary.json").read_text() for name in ("local", "out"))
    assert [line for line in one.splitlines() if '"key"' in line] == [
        line for line in other.splitlines() if '"key"' in line
    ]
    summary, written = local.run(plan_for(folder, out), out, 1, QUIET)  # the local executor finds nothing to do
    assert not written
    assert summary["documents"] == len(documents)


def test_a_rank_that_failed_is_told(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    jobs = phases_of(plan_for(folder, out), out)
    jobs[0](None, 0, 3)
    with pytest.raises(UserError, match="a rank failed"):
        jobs[1](None, 0, 1)


def test_bad_values_and_missing_engines_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="partition"):
        Executor(kind="slurm")
    with pytest.raises(ConfigError, match="ranks"):
        Executor(ranks=0)
    monkeypatch.setitem(sys.modules, "datatrove.executor.ray", None)
    with pytest.raises(UserError, match=r"executor\.kind=ray needs datatrove"):
        scale.run(plan_for(corpus(tmp_path / "in"), tmp_path / "out"), tmp_path / "out", Executor(kind="ray"))


@pytest.mark.slow
def test_slurms_scripts_do_the_work(tmp_path: Path, expected: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove", reason="the extra `scale` is not installed")
    folder, documents, ledger = expected
    out, cluster = tmp_path / "out", tmp_path / "cluster"
    cluster.mkdir()
    (cluster / "count").write_text("0\n")
    for name, text in (("sbatch", SBATCH.format(cluster)), ("srun", SRUN), ("scontrol", SCONTROL)):
        (cluster / name).write_text(text)
        (cluster / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{cluster}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    executor = Executor(kind="slurm", ranks=3, parallel=2, partition="cpu", time="1:00:00", memory_gb=3, qos="low")
    assert scale.run(plan_for(folder, out), out, executor) is None
    assert content(out) == (documents, ledger)
    scripts = [cluster / f"script-{n}" for n in range(1, int((cluster / "count").read_text()) + 1)]
    jobs = [path for path in scripts if "merge_stats" not in path.read_text()]
    assert len(jobs) == 2 + 2 * 3  # read, three corpus blocks, write
    first = jobs[0].read_text()
    for line in ("--array=0-2%2", "--partition=cpu", "--time=1:00:00", "--mem-per-cpu=3G", "--qos=low", "00-read"):
        assert line in first
    assert "launch_pickled_pipeline" in first
    assert f"source {sys.prefix}/bin/activate" in first
    for before, after in itertools.pairwise(jobs):
        number = before.name.removeprefix("script-")
        assert f"afterok:{number}" in (cluster / after.name.replace("script", "arguments")).read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray alone takes minutes to start its processes where the cores are shared
def test_ray_on_one_machine(tmp_path: Path, expected: tuple) -> None:
    pytest.importorskip("datatrove", reason="the extra `scale` is not installed")
    ray = pytest.importorskip("ray", reason="the extra `scale` is not installed")
    folder, documents, ledger = expected
    out = tmp_path / "out"
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        with pytest.raises(UserError, match=r"memory_gb=100000: no node .* 2 CPUs and"):
            scale.run(plan_for(folder, out), out, Executor(kind="ray", memory_gb=100_000))
        summary = scale.run(plan_for(folder, out), out, Executor(kind="ray", ranks=3, memory_gb=1))
    finally:
        ray.shutdown()
    assert summary is not None
    assert content(out) == (documents, ledger)
