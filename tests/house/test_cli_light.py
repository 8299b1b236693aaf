"""The command line is light until a verb is called, and every mistake is one line and exit code 2."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sekkei.cli import VERBS, main
from sekkei.core.errors import ConfigError

HEAVY = {"torch", "numpy", "pydantic", "matplotlib", "pyarrow", "transformers", "typer", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["no-such-verb"]])
def test_listing_the_verbs_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys\nfrom sekkei.cli import main\n"
        f"main({arguments!r})\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert "sekkei" in loaded
    assert loaded & HEAVY == set()


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listing = capsys.readouterr().out
    for verb, (_, line) in VERBS.items():
        assert f"  {verb} " in listing
        assert line in listing


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: sekkei {verb}" in shown
    assert f"\n    sekkei {verb}" in shown, "the help needs an examples block that keeps its line breaks"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["doctro"], "did you mean 'doctor'?"),
        (["zzzzzz"], "verbs: "),
        (["doctor", "--jsno"], "--json"),
        (["doctor", "more"], "sekkei doctor --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_a_user_error_in_a_verb_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        """Refuse."""
        raise ConfigError("model.num_heads", "got 3,\n  must divide model.width=8")

    monkeypatch.setattr(importlib.import_module("sekkei.cli.doctor"), "command", command)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "error: model.num_heads: got 3, must divide model.width=8\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        """Break."""
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("sekkei.cli.doctor"), "command", command)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        """Wait."""
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("sekkei.cli.doctor"), "command", command)
    assert main(["doctor"]) == 130
    captured = capsys.readouterr().err
    assert "the same command" in captured
    assert captured.count("\n") == 1


def test_an_exit_code_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> int:
        """Say no."""
        return 1

    monkeypatch.setattr(importlib.import_module("sekkei.cli.doctor"), "command", command)
    assert main(["doctor"]) == 1


def test_doctor_prints_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert 0 < shown["machine"]["memory available GiB"] <= shown["machine"]["memory GiB"]
    parts = {part["name"]: part for part in shown["parts"]}
    assert parts["tensorboard"]["present"] is True  # it is in the dev extra
    assert main(["doctor"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in [*shown["machine"], *parts])


def test_doctor_names_the_remedy_of_a_missing_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "pip install 'sekkei[trackio]'" in shown


def test_empty_torch_logs_does_not_break_torch() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sekkei", "doctor", "--json"],
        env={"TORCH_LOGS": "", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
