"""What a person sees while a stage trains and there is no terminal: the line that docs/design.md (section 6) shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sekkei.core import progress
from sekkei.train.loop import console_line

ROOT = Path(__file__).parents[2]
RECORD = {
    "loss": 3.412,
    "bpb": 1.41,
    "grad_norm": 0.84,
    "lr": 3e-4,
    "heldout_bpb": 1.5,
    "machine": {"tokens_per_second": 41_200.0, "mfu": 0.38, "seconds": 0.1},
}


def test_the_line_of_a_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Console().bar("pretrain.general", 2000) as bar:
        bar.update(20, "too early for a line")
        now[0] = 38.3  # a hundred steps in 38.3 s: 1880 more take 12 minutes
        bar.update(120, console_line(RECORD))
        bar.update(121, "again too early")
    (promised,) = re.findall(r"Console line: `(.+?)`", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    assert capsys.readouterr().err == promised + "\n"


def test_quiet_shows_what_is_said_and_silent_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for console, shown in ((progress.Console(quiet=True), "sft done\n"), (progress.Console(silent=True), "")):
        with console.bar("sft", 10) as bar:
            bar.update(10, "loss 1.0")
        console.say("sft done")
        assert capsys.readouterr().err == shown
