"""docs/figures.md and results.json say the same: no figure without a row, no row without a figure."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Rows that the smallest run may lack: its few pages may all be kept, and it has no reward model.
REWARD_MODEL = {f"<tuned>.{name}" for name in ("accuracy", "log_loss", "brier", "calibration_error")}
UNASKED = {
    "inference.<checkpoint>.budget.<tokens>.<what>",
    "preferences.file.<count>",
    "<tuned>.file.<count>",
    "<tuned>.dropped_<why>.<split>",
    "<tuned>.feedback_accuracy.<when>",
    "own.<checkpoint>.<what>",
    "own.<checkpoint>.pass1_greedy.<end>",
    "own.<checkpoint>.no_thinking.pass1_greedy",
    "documents.<arm>.<what>",
    "documents.<arm>.refused.<kind>",
}
MAY_BE_ABSENT = {"data.dropped.<rule>", *UNASKED, *REWARD_MODEL}


def documented() -> list[str]:
    text = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def pattern(name: str) -> re.Pattern[str]:
    """A row's name as a pattern; a placeholder is one word without a dot."""
    parts = re.split(r"<[a-z_]+>", name)
    return re.compile("[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*".join(map(re.escape, parts)))


def undocumented(figures: list[str]) -> list[str]:
    patterns = [pattern(name) for name in documented()]
    return [name for name in figures if not any(p.fullmatch(name) for p in patterns)]


def test_every_figure_of_a_run_has_a_row_and_every_row_a_figure(smoke_run: Path) -> None:
    figures = list(json.loads((smoke_run / "results.json").read_text(encoding="utf-8"))["figures"])
    assert len(figures) > 50
    assert undocumented(figures) == []
    rows = set(documented()) - MAY_BE_ABSENT
    assert [name for name in sorted(rows) if not any(pattern(name).fullmatch(figure) for figure in figures)] == []


def test_rows_are_distinct() -> None:
    names = documented()
    assert len(names) == len(set(names)) > 30


def test_an_unknown_figure_is_found() -> None:
    assert undocumented(["run.seconds", "run.hours", "pretrain.general.bpb", "pretrain.a.b.bpb.docs"]) == [
        "run.hours",
        "pretrain.general.bpb",
        "pretrain.a.b.bpb.docs",
    ]
