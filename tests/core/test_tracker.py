"""Trackers get what the run's log gets. TensorBoard's event files are read back with its own reader."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from sekkei.core.errors import UserError
from sekkei.core.tracker import figures_of, open_tracker

CONFIG = {"name": "smoke", "model": {"num_layers": 2}}


def record(step: int, loss: float, stage: str = "pretrain.general") -> dict[str, object]:
    return {"stage": stage, "step": step, "tokens": 64 * step, "loss": loss, "machine": {"mfu": 0.25}}


def test_figures_are_flattened_finite_numbers() -> None:
    figures = figures_of({**record(3, 1.5), "bpb": None, "gap": float("nan"), "flag": True, "samples": [{"text": "x"}]})
    assert figures == {
        "pretrain.general/tokens": 192.0,
        "pretrain.general/loss": 1.5,
        "pretrain.general/machine/mfu": 0.25,
    }


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def test_tensorboard_holds_every_step(tmp_path: Path) -> None:
    tracker = open_tracker("tensorboard", tmp_path, "smoke", CONFIG)
    for step, loss in ((1, 4.0), (2, 3.0)):
        tracker.log(record(step, loss))
    tracker.log(record(1, 9.0, "sft"))
    tracker.log({"stage": "sft", "step": 1, "samples": [{"prompt": "a", "text": "b"}]})
    tracker.close()
    board = tmp_path / "tensorboard"
    assert scalars(board / "pretrain.general", "pretrain.general/loss") == [(1, 4.0), (2, 3.0)]
    assert scalars(board / "pretrain.general", "pretrain.general/machine/mfu") == [(1, 0.25), (2, 0.25)]
    assert scalars(board / "sft", "sft/loss") == [(1, 9.0)]


def test_tensorboard_forgets_steps_that_a_resumed_run_sends_again(tmp_path: Path) -> None:
    for steps, loss in (((1, 2, 3), 4.0), ((2, 3, 4), 1.0)):
        tracker = open_tracker("tensorboard", tmp_path, "smoke", CONFIG)
        for step in steps:
            tracker.log(record(step, loss))
        tracker.close()
    board = tmp_path / "tensorboard" / "pretrain.general"
    assert scalars(board, "pretrain.general/loss") == [(1, 4.0), (2, 1.0), (3, 1.0), (4, 1.0)]


def test_none_writes_nothing(tmp_path: Path) -> None:
    tracker = open_tracker("none", tmp_path, "smoke", CONFIG)
    tracker.log(record(1, 4.0))
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracker: got 'tensorbord', must be one of none, tensorboard"):
        open_tracker("tensorbord", tmp_path, "smoke", CONFIG)


def test_wandb_offline_or_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(UserError, match=r"tracker: .*pip install 'sekkei\[wandb\]'"):
            open_tracker("wandb", tmp_path, "smoke", CONFIG)
        return
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = open_tracker("wandb", tmp_path, "smoke", CONFIG)
    for step in (1, 2):
        tracker.log(record(step, 4.0))
    tracker.close()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"pretrain.general/loss" in file.read_bytes()


def test_trackio_or_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio") is None:
        with pytest.raises(UserError, match=r"tracker: .*pip install 'sekkei\[trackio\]'"):
            open_tracker("trackio", tmp_path, "smoke", CONFIG)
        return
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    tracker = open_tracker("trackio", tmp_path, "smoke", CONFIG)
    tracker.log(record(1, 4.0))
    tracker.log(record(1, 4.0, "sft"))
    tracker.close()
    assert list(tmp_path.rglob("*sekkei*"))


def test_a_tracker_that_is_not_asked_for_is_not_imported() -> None:
    code = (
        "import sys, pathlib\nfrom sekkei.core.tracker import open_tracker\n"
        "open_tracker('none', pathlib.Path('.'), 'x', {}).close()\n"
        "print(sorted({'torch', 'tensorboard', 'wandb', 'trackio'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
