"""A stage under a layout: the losses of one process, also after a dead rank and on other numbers of ranks."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sekkei.core import runlog
from sekkei.train.checkpoint import read_sealed

STAGE = "pretrain.general"
LIMIT = 1e-9  # relative, in float64
PATIENCE = 240.0
SEED = int(os.environ.get("KILL_SEED", "0"))
# two heads of keys for tp, float64 for exactness, a checkpoint after every fourth step
SETTINGS = ("model.num_kv_heads=2", f"{STAGE}.loop.dtype=fp64", f"{STAGE}.loop.checkpoint_every=4")


def start(folder: Path, *layout: str) -> subprocess.Popen[str]:
    """`sekkei run` of one pretraining stage as a process group of its own."""
    command = [sys.executable, "-m", "sekkei", "run", "smoke", *SETTINGS, *layout]
    command += ["--quiet", "--until", STAGE, "--run-dir", str(folder)]
    with (folder.parent / f"{folder.name}.txt").open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    code = process.wait(PATIENCE)
    shown = (folder.parent / f"{folder.name}.txt").read_text()
    assert code == 0, shown
    return shown


def records(folder: Path) -> list[dict[str, Any]]:
    return [r for r in runlog.read(folder / "metrics.jsonl") if r["stage"] == STAGE and "loss" in r]


def wait_for(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder.parent / f"{folder.name}.txt").read_text()
        if any(r["step"] >= step for r in records(folder)):
            return
        time.sleep(0.01)
    pytest.fail(f"no step {step}")


def ranks(launcher: int) -> list[int]:
    """Process ids of the ranks below a launcher."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"sekkei" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return sorted(found)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, smoke_run: Path) -> Path:
    """The stage on one process."""
    folder = _with_data(smoke_run, tmp_path_factory.mktemp("alone") / "smoke")
    finish(start(folder), folder)
    return folder


@pytest.fixture
def folder(smoke_run: Path, tmp_path: Path) -> Path:
    """A run folder in which data and tokenizer are finished."""
    return _with_data(smoke_run, tmp_path / "smoke")


def _with_data(source: Path, folder: Path) -> Path:
    for name in ("data", "tokenizer", "tokens"):
        if (source / name).exists():
            shutil.copytree(source / name, folder / name)
    return folder


def assert_same(found: Path, wanted: Path) -> None:
    """Losses and gradient norms of every step, and the weights at the end."""
    assert [r["step"] for r in records(found)] == [r["step"] for r in records(wanted)]
    for one, other in zip(records(found), records(wanted), strict=True):
        for name in ("loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=LIMIT), (one["step"], name)
        assert one["tokens"] == other["tokens"]
    weights, expected = (read_sealed(f / STAGE / "model")[0] for f in (found, wanted))
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert (tensor - expected[name]).norm() <= LIMIT * expected[name].norm(), name


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(("layout.dp=2", "layout.zero=2"), marks=pytest.mark.slow),
        pytest.param(("layout.dp=2", "layout.zero=3", "layout.recompute=full"), marks=pytest.mark.slow),
        pytest.param(("layout.tp=2", "layout.sequence_parallel=true"), marks=pytest.mark.slow),
        pytest.param(("layout.cp=2", "layout.zero=1"), marks=pytest.mark.slow),
        pytest.param(("layout.pp=2", "layout.microbatches=4"), marks=pytest.mark.slow),
        pytest.param(("layout.pp=2", "layout.dp=2", "layout.zero=1"), marks=pytest.mark.slow),
    ],
    ids=lambda layout: " ".join(part.removeprefix("layout.") for part in layout),
)
def test_a_stage_under_a_layout_has_the_losses_and_weights_of_one_process(
    alone: Path, folder: Path, layout: tuple[str, ...]
) -> None:
    """Slow ones: dp4·zero1, dp4·zero2 and tp2 are held to it below, and cut off besides."""
    finish(start(folder, *layout), folder)
    assert_same(folder, alone)


def test_a_rank_that_dies_is_started_again_with_the_others(alone: Path, folder: Path) -> None:
    """kill -9 of one of four ranks at a random step: told, mended within a minute, and nothing of it in the losses."""
    rng = random.Random(SEED)
    process = start(folder, "layout.dp=4", "layout.zero=1")
    step = rng.randint(4, 11)
    wait_for(process, folder, step)
    running = ranks(process.pid)
    assert len(running) == 4
    victim = rng.randrange(4)
    os.kill(running[victim], signal.SIGKILL)
    killed = time.monotonic()
    shown = finish(process, folder)
    assert time.monotonic() - killed < 60
    assert "died (signal 9): all ranks start again from the last checkpoint" in shown
    assert "a rank that it works with is gone" in shown or "Traceback" not in shown, "no pages about one dead rank"
    assert_same(folder, alone)


def test_a_run_goes_on_with_fewer_ranks(alone: Path, folder: Path) -> None:
    """Four ranks, killed; two ranks of another kind, killed; then one."""
    for step, layout in ((6, ("layout.dp=4", "layout.zero=2")), (10, ("layout.tp=2",))):
        process = start(folder, *layout)
        wait_for(process, folder, step)
        for pid in [process.pid, *ranks(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        process.wait(PATIENCE)
        assert not (folder / STAGE / "done.json").exists()
    shown = finish(start(folder), folder)
    assert re.search(rf"{STAGE} +goes on from step (4|8|12) of 16", shown)
    assert_same(folder, alone)
    assert [*folder.rglob("*.tmp")] == []
