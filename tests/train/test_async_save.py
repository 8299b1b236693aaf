"""Checkpoints that are written while training goes on: what they hold, what goes wrong, and kill -9 at any instant."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sekkei.core import dist
from sekkei.core.errors import ConfigError, UserError
from sekkei.prove.spawned import spawned
from sekkei.train import checkpoint
from sekkei.train.checkpoint import Checkpoints, read_sealed
from sekkei.train.loop import LoopConfig

SEED = int(os.environ.get("KILL_SEED", "0"))
KILLS = 25


def pieces(*tensors: torch.Tensor) -> list[tuple[str, Callable[[], torch.Tensor]]]:
    return [(f"t{number}", lambda tensor=tensor: tensor) for number, tensor in enumerate(tensors)]  # type: ignore[misc]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that writes nothing until it is told to."""
    opened, real = threading.Event(), checkpoint._write_tensors

    def slow(path: Path, tensors: dict[str, torch.Tensor]) -> str:
        assert opened.wait(60)
        return real(path, tensors)

    monkeypatch.setattr(checkpoint, "_write_tensors", slow)
    return opened


def test_training_goes_on_and_the_copy_does_not_change(tmp_path: Path, gate: threading.Event) -> None:
    kept, weight, state = Checkpoints(tmp_path, keep_last=2), torch.arange(6.0), {"rows": [1]}
    kept.save(1, pieces(weight), state, 3.0, background=True)
    assert names(tmp_path) == []
    weight.add_(100)
    state["rows"].append(2)
    gate.set()
    kept.wait()
    tensors, found = read_sealed(tmp_path / "step-000001")
    assert torch.equal(tensors["t0"], torch.arange(6.0))
    assert found["rows"] == [1]
    assert found["best"] == [1, 3.0]


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, gate: threading.Event) -> None:
    kept = Checkpoints(tmp_path, keep_last=2)
    kept.save(1, pieces(torch.ones(3)), {}, None, background=True)
    second = threading.Thread(target=lambda: kept.save(2, pieces(torch.zeros(3)), {}, None, background=True))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert names(tmp_path) == []
    gate.set()
    second.join(60)
    kept.wait()
    assert names(tmp_path) == ["step-000001", "step-000002"]


@pytest.mark.parametrize("at", ["next save", "end"])
def test_a_full_disk_is_told_at_the_next_save_or_at_the_end(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, tensors: dict[str, torch.Tensor]) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = Checkpoints(tmp_path)
    kept.save(1, pieces(torch.ones(3)), {}, None, background=True)
    kept.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_tensors", full)
        kept.save(2, pieces(torch.ones(3)), {}, None, background=True)
        then = kept.wait if at == "end" else lambda: kept.save(3, pieces(torch.ones(3)), {}, None, background=True)
        with pytest.raises(UserError, match="the disk is full"):
            then()
    kept.wait()  # told once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001"]
    kept.save(4, pieces(torch.ones(3)), {}, None, background=True)
    kept.wait()
    assert names(tmp_path) == ["step-000001", "step-000004"]


def _save_for_ever(folder: Path, first: int) -> None:
    torch.set_num_threads(1)
    kept, weight = Checkpoints(folder, keep_last=2), torch.zeros(300_000)
    for step in range(first, first + 10_000):
        weight.fill_(step)
        kept.save(step, pieces(weight, torch.tensor(float(step))), {"twice": 2 * step}, None, background=True)
        weight.fill_(-1)


def test_kill_9_at_any_instant_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    rng, fork = random.Random(SEED), multiprocessing.get_context("fork")
    seen: set[str] = set()
    left = 0
    for _ in range(KILLS):
        newest = Checkpoints(tmp_path).newest()
        process = fork.Process(target=_save_for_ever, args=(tmp_path, newest + 1))
        process.start()
        deadline = time.monotonic() + 60
        while Checkpoints(tmp_path).newest() == newest and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(60)
        left += any(path.name.startswith(".") for path in tmp_path.iterdir())
        for name in names(tmp_path):
            tensors, state = read_sealed(tmp_path / name)
            step = int(name.removeprefix("step-"))
            assert (state["step"], state["twice"], float(tensors["t1"])) == (step, 2 * step, step)
            assert bool((tensors["t0"] == step).all())
        seen.update(names(tmp_path))
    assert len(seen) > KILLS
    assert left > 0  # some kill fell into a write


def _one_of_two_fails(folder: str) -> list[object]:
    kept, parts = Checkpoints(Path(folder), share=(dist.rank(), 2)), pieces(torch.ones(4), torch.zeros(4))
    kept.save(1, parts, {}, None, background=True)
    kept.wait()
    real = checkpoint._write_tensors

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> str:
        if dist.rank() == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, tensors)

    checkpoint._write_tensors = full  # type: ignore[assignment]
    kept.save(2, parts, {}, None, background=True)
    told = ""
    try:
        kept.wait()
    except UserError as error:
        told = str(error)
    checkpoint._write_tensors = real
    kept.save(3, parts, {}, None, background=True)
    kept.wait()
    return [told, names(Path(folder))]


def test_where_one_rank_cannot_write_all_are_told(tmp_path: Path) -> None:
    first, second = spawned(_one_of_two_fails, 2, str(tmp_path))
    assert "rank 1 could not write its part" in first[0]
    assert "the disk is full" in second[0]
    assert first[1] == second[1] == ["step-000001", "step-000003"]
    assert set(read_sealed(tmp_path / "step-000003")[0]) == {"t0", "t1"}


def test_the_key() -> None:
    assert LoopConfig().async_save
    with pytest.raises(ConfigError, match="checkpoint_every"):
        LoopConfig(checkpoint_every=-1, async_save=False)
