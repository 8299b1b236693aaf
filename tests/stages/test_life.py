"""A whole life: the same again whatever happens to the process, and every figure that is promised."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sekkei.cli import main
from sekkei.core import atomic, runlog
from sekkei.recipes.recipe import load

TRAINING = ("pretrain.general", "pretrain.reasoning", "pretrain.long", "sft", "dpo", "grpo")
SEED = int(os.environ.get("KILL_SEED", "0"))
PATIENCE = 240.0  # seconds until a stage that must come has not come


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sekkei", "run", "smoke", "--quiet", "--run-dir", str(folder)]
    with (folder.parent / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def wait_for(process: subprocess.Popen[bytes], folder: Path, stage: str, step: int) -> None:
    """Return as soon as the log shows that step."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder.parent / "output.txt").read_text()
        if any(r["stage"] == stage and r["step"] >= step for r in runlog.read(folder / "metrics.jsonl")):
            return
        time.sleep(0.01)
    pytest.fail(f"{stage} did not come to step {step}")


def kill(process: subprocess.Popen[bytes]) -> None:
    assert process.poll() is None, "there is nothing left to kill"
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_killed_three_times_it_ends_the_same(smoke_run: Path, tmp_path: Path) -> None:
    rng, folder = random.Random(SEED), tmp_path / "smoke"
    process = start(folder)
    delay = rng.uniform(2.0, 5.0)
    print(f"KILL_SEED={SEED}: after {delay:.2f} s", end="")
    time.sleep(delay)
    kill(process)
    cut_off = []
    for stages in (TRAINING[:2], TRAINING[3:]):
        stage = rng.choice(stages)
        steps = max(r["step"] for r in runlog.read(smoke_run / "metrics.jsonl") if r["stage"] == stage)
        step, delay = rng.randint(1, max(1, steps // 2)), rng.uniform(0.0, 0.05)
        print(f", {delay:.2f} s after step {step} of {stage}", end="")
        process = start(folder)
        wait_for(process, folder, stage, step)
        time.sleep(delay)
        kill(process)
        cut_off += [] if (folder / stage / "done.json").exists() else [stage]
    assert cut_off, "no kill fell inside a training stage"
    assert start(folder).wait() == 0, (folder.parent / "output.txt").read_text()
    assert_equal_runs(smoke_run, folder)
    assert [*folder.rglob("*.tmp"), *folder.rglob("*.old")] == []


def test_asked_to_stop_it_saves_the_step_and_goes_on_from_there(smoke_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "smoke"
    process = start(folder)
    wait_for(process, folder, "pretrain.general", 3)
    process.terminate()
    assert process.wait() == 130
    shown = (tmp_path / "output.txt").read_text()
    assert "stopping after this step" in shown
    assert shown.splitlines()[-1] == "interrupted: the same command goes on from a run's last checkpoint"
    last = max(r["step"] for r in runlog.read(folder / "metrics.jsonl"))
    saved = sorted(path.name for path in (folder / "pretrain.general" / "checkpoints").iterdir())
    assert saved[-1] == f"step-{last:06d}"
    assert main(["run", "smoke", "--quiet", "--run-dir", str(folder), "--until", "pretrain.general"]) == 0
    weights = [atomic.sha256(f / "pretrain.general" / "model" / "tensors.safetensors") for f in (smoke_run, folder)]
    assert weights[0] == weights[1]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Equal logs but for the machine, equal artifacts, weights byte for byte, and equal figures."""
    logs = [runlog.without_machine(runlog.read(folder / "metrics.jsonl")) for folder in (one, other)]
    assert len(logs[0]) > 60
    assert logs[0] == logs[1]
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    assert results[0]["digests"] == results[1]["digests"]
    figures = [{k: v for k, v in found["figures"].items() if not k.startswith("run.")} for found in results]
    assert figures[0] == figures[1]
    for stage in TRAINING:
        weights = [atomic.sha256(folder / stage / "model" / "tensors.safetensors") for folder in (one, other)]
        assert weights[0] == weights[1], stage


def test_the_log_holds_what_is_compared(smoke_run: Path) -> None:
    """The comparison above would see nothing in a log without figures of every step."""
    records = [r for r in runlog.read(smoke_run / "metrics.jsonl") if r["stage"] == "pretrain.general" and "loss" in r]
    assert [r["step"] for r in records] == list(range(1, 17))
    assert len({r["loss"] for r in records}) == 16
    assert all("machine" in r for r in records)


def promised() -> list[str]:
    domains, checkpoints = ("docs", "code", "math"), ("base", "sft", "dpo", "grpo")
    asked = ("pass1_greedy", "pass1_sampled", "maj8", "pass8", "steps", "ended")
    return [
        *(f"pretrain.{stage}.bpb.{name}" for stage in load("smoke").pretrain for name in (*domains, "beyond_context")),
        "pretrain.long.control.bpb.beyond_context",
        "pretrain.long.token_share",
        *(f"reasoning.{label}.{name}" for label in checkpoints for name in asked),
        "reasoning.grpo.no_thinking.pass1_greedy",
        "chat.base.answered",
        "chat.sft.answered",
        "dpo.preference_accuracy.start",
        "dpo.preference_accuracy.end",
        "run.seconds",
        "run.peak_gib",
    ]


def test_every_promised_figure_is_there(smoke_run: Path) -> None:
    figures: dict[str, Any] = json.loads((smoke_run / "results.json").read_text())["figures"]
    assert {name for name in promised() if not isinstance(figures.get(name), int | float)} == set()
    assert figures["dpo.preference_accuracy.start"] == 0.5  # the policy still is its reference
    assert 0 < figures["pretrain.long.token_share"] < 0.2
    shares = [figures[name] for name in promised() if name.startswith(("reasoning.", "chat.")) and "steps" not in name]
    assert all(0 <= share <= 1 for share in shares)
    assert (smoke_run / "report.html").stat().st_size > 10_000
