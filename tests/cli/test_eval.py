"""`sekkei eval` as typed: a run, an exported folder, an endpoint on loopback, a cut, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sekkei.cli import VERBS, main
from sekkei.evals import suite

CHOICES = [
    {"question": "start at 7, add 3, modulo 23", "choices": ["10", "11", "12"], "answer": 0},
    {"question": "The grass is", "choices": ["green", "a very long answer"], "answer": "A"},
]
PROBLEMS = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(6)]


@pytest.fixture(autouse=True)
def _verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "eval", ("sekkei.cli.eval", "measure a model with tasks that a program can check"))
    for name in ("SEKKEI_LLM_URL", "SEKKEI_LLM_KEY", "SEKKEI_LLM_MODEL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def endpoint() -> ModuleType:
    """The fake endpoint of tests/llm, loaded by its path as the suite does."""
    path = Path(__file__).parents[1] / "llm" / "endpoint.py"
    spec = importlib.util.spec_from_file_location("eval_endpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_is_measured_and_says_how(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    choices = lines(tmp_path / "c.jsonl", CHOICES)
    small = ["--tokens", "2000", "--lengths", "80,128", "--depths", "0,1", "--trials", "2", "--problems", "8"]
    tasks = f"bpb,chain,needle,choice:{choices}"
    command = ["eval", str(smoke_run), "--tasks", tasks, "--json", str(out), "--html", str(page), *small]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "of 2 items overlap with" in shown
    data = json.loads(out.read_text())
    by_task = {task["task"]: task for task in data["tasks"]}
    assert list(by_task) == ["bpb", "chain", "needle", "choice"]
    for task in data["tasks"]:
        assert task["items"] > 0
        assert task["tokens"]["prompt"] + task["tokens"]["completion"] > 0
        assert {"figures", "settings", "prompt", "overlap"} <= set(task)
    assert by_task["choice"]["sha256"]
    assert by_task["choice"]["prompt"] == "{question}"
    assert by_task["bpb"]["overlap"]["items"] == by_task["bpb"]["items"]
    assert data["figures"]["eval.needle.chance"] == 1 / 8
    assert data["model"]["stage"] == "grpo"
    text = page.read_text()
    assert text.count('class="heat"') == 1
    assert "<script" not in text
    assert main(command) == 0  # nothing is asked twice
    again = capsys.readouterr()
    assert again.err.count("already measured") == 4
    assert json.loads(out.read_text()) == data
    assert again.out == shown


def test_an_exported_folder_scores_as_its_run(
    smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exported"
    assert main(["export", str(smoke_run), str(folder), "--stage", "pretrain.long"]) == 0
    choices = lines(tmp_path / "c.jsonl", CHOICES)
    found = []
    for place, model in enumerate((f"{smoke_run}:pretrain.long", str(folder))):
        out = tmp_path / f"{place}.json"
        assert main(["eval", model, "--tasks", f"choice:{choices}", "--json", str(out)]) == 0
        found.append(json.loads(out.read_text())["tasks"][0])
    capsys.readouterr()
    assert found[0]["overlap"]["items"] == 2
    assert found[1]["overlap"]["overlap"] == "unknown"
    assert [row["logprobs"] for row in found[0]["rows"]] == [row["logprobs"] for row in found[1]["rows"]]


def test_an_endpoint_answers_and_a_cut_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = endpoint()
    problems = lines(tmp_path / "p.jsonl", PROBLEMS)
    out = tmp_path / "maths.json"

    def half_right(body: dict[str, Any], connection: Any) -> None:
        number = int(body["messages"][-1]["content"].split(" ")[0])
        fake.says(f"answer: {number + 1 if number < 3 else 0}")(body, connection)

    with fake.FakeEndpoint([half_right]) as server:
        command = ["eval", f"{server.url}#m", "--tasks", f"maths:{problems}", "--json", str(out)]
        assert main(command) == 0
        assert json.loads(out.read_text())["figures"]["eval.maths.pass@1"] == 0.5
        assert len(server.requests) == len(PROBLEMS)
        for part in (tmp_path / "maths.json.parts").glob("maths-*.json"):
            part.unlink()  # the task was cut before its end; its replies are kept
        assert main(command) == 0
        assert len(server.requests) == len(PROBLEMS)
        assert main([*command[:4], "--samples", "2", "--pass-at", "1,2"]) == 0
    shown = capsys.readouterr().out
    assert "majority@2" in shown
    assert "overlap with the training data: unknown" in shown


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("zz", "no such task; known: bpb"),
        ("maths", "needs a file of problems in GSM8K's format"),
        ("bpb,bpb", "stands there twice"),
        ("chain:{file}", "takes no file"),
        ("bpb", "needs the model itself"),
        ("choice:{file}", "needs log-likelihoods"),
        ("chain", "needs an aligned model of a sekkei run"),
        ("", "names nothing"),
        ("ifeval:nowhere.jsonl", "nowhere.jsonl is no file"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(
    tasks: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(tmp_path / "c.jsonl", CHOICES)
    assert main(["eval", "http://127.0.0.1:9/v1#m", "--tasks", tasks.format(file=file)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--pass-at", "3"], "ks: got [3]"), (["--depths", "a"], "must be numbers"), (["--limit", "0"], "limit: got 0")],
)
def test_wrong_options_are_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "nowhere", "--tasks", "bpb", *options]) == 2
    assert words in capsys.readouterr().err
    assert main(["eval", "nowhere", "--tasks", "bpb"]) == 2
    assert "names no model" in capsys.readouterr().err


def test_every_task_is_named_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in suite.TASKS)
    assert "\n    sekkei eval" in shown
