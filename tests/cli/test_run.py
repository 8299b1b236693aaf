"""`sekkei run`: what a dry run prints, and errors of the command line itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sekkei.cli import main
from sekkei.cli.run import _for_this_machine
from sekkei.core import hardware
from sekkei.model.flops import count_parameters
from sekkei.parallel.layout import Layout
from sekkei.recipes.recipe import load
from sekkei.stages.life import stages_of
from sekkei.stages.model_artifact import load_model


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """The sections of a dry run by their titles."""
    code = main(["run", *arguments, "--dry-run"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    parts = re.split(r"^# (.+)\n", captured.out, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_tells_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = dry_run(capsys, "smoke", "seed=5")
    assert list(shown) == ["resolved recipe", "stages", "costs"]
    assert "seed: 5" in shown["resolved recipe"]
    recipe = load("smoke")
    assert [line.split()[0] for line in shown["stages"].split("\n") if line] == [s.name for s in stages_of(recipe)]
    for stage in recipe.pretrain.values():
        assert f"{stage.tokens:,} tokens in rows of {stage.context} " in shown["costs"]
    for pattern in (
        r"parameters +[\d,]+",
        r"preferences +36,000 tokens written",  # 200 + 100 problems, 4 answers each of 30 tokens
        r"in all +[\d,]+ tokens trained on, \S+ FLOPs",
        r"memory +about \S+ GiB",
        r"time +about \S+ (s|min), by short trials",
    ):
        assert re.search(pattern, shown["costs"]), pattern
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_the_parameters_of_the_real_model(smoke_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(smoke_run / "grpo" / "model")
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == sum(count_parameters(model.config).values())
    assert f"parameters   {total:,}  (" in dry_run(capsys, "smoke")["costs"]


def test_a_dry_run_without_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    shown = dry_run(capsys, "smoke", "dpo=null")
    assert not re.search(r"^(preferences|dpo|eval\.dpo) ", shown["stages"], flags=re.MULTILINE)
    assert not re.search(r"^(preferences|dpo) ", shown["costs"], flags=re.MULTILINE)
    assert re.search(r"^grpo +reads tokenizer, sft$", shown["stages"], flags=re.MULTILINE)


def test_an_own_file_works_like_a_shipped_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("extends: smoke\ngrpo: null\n")
    shown = dry_run(capsys, "mine.yaml")
    assert "name: mine" in shown["resolved recipe"]
    assert "grpo " not in shown["stages"]


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_place_of_the_run_folder(below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    assert main(["run", "smoke", "--run-dir", str(file / below)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {file / below}: a file stands where a folder is needed; choose another --run-dir or --out"
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["smokey"], "smokey: no such recipe; shipped: laptop, laptop-study, r1, r1-zero, smoke; a file's name"),
        (["mine.yaml"], "mine.yaml: no such recipe file; give a path, or a shipped name"),
        (["smoke", "modle.x=1"], "modle: unknown key; did you mean 'model'?"),
        (["smoke", "model.num_layers=two"], "model.num_layers: expected int, got str 'two'"),
        (["smoke", "pretrain.genral.steps=5"], "pretrain.genral: no such stage; did you mean 'general'?"),
        (["smoke", "model.num_kv_heads=3"], "num_kv_heads"),
        (["smoke", "tokenizer.vocab_size=200"], "tokenizer.vocab_size: "),
        (["smoke", "grpo.reward_model=1.0"], "grpo.reward_model: the main line trains no reward model"),
        (["smoke", "layout.tp=2"], "layout.tp: tp=2 must divide model.num_kv_heads=1"),
        (["smoke", "seed"], "seed: an override is written key=value"),
        (["smoke", "--untill", "sft"], "--until"),
        ([], "see sekkei run --help"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry_run"])
def test_errors_are_one_line(
    arguments: list[str], told: str, dry: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments, *dry]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "gpus", "layout", "world"),
    [
        ("cpu", 0, "{dp: 2}", 2),
        ("cuda", 1, "{dp: 2}", 1),
        ("cuda", 2, "{dp: 2}", 2),
        ("cuda", 1, "{dp: 2, zero: 2}", 2),  # asked for by name: refused later, where there are too few
        ("cuda", 1, "{dp: 1}", 1),
    ],
)
def test_data_ranks_become_one_process_where_gpus_are_fewer(
    device: str, gpus: int, layout: str, world: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "best_device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    asked = load("laptop", [f"layout={layout}"])
    recipe = _for_this_machine(asked)
    assert recipe.layout.world == world
    assert (recipe.layout == asked.layout) == (world == asked.layout.world)
    told = capsys.readouterr().out
    assert ("one process computes the same" in told) == (world < asked.layout.world)


def test_the_laptop_is_two_ranks() -> None:
    assert load("laptop", []).layout == Layout(dp=2)
