"""`sekkei solve` as typed: the exact solver, an endpoint on loopback, a cassette, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from sekkei.cli import main
from sekkei.llm import LLM
from sekkei.llm.cassette import Recording
from sekkei.llm.scripted import Scripted
from sekkei.prompting.build import StrategyConfig, build, kind_of
from sekkei.prompting.solution import solve_with
from sekkei.prompting.tasks.game24 import check

CHAIN = "start at 7, add 3, times 4, minus 5, modulo 23"
RUN = Path(__file__).parents[2] / "runs" / "laptop"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEKKEI_LLM_URL", "SEKKEI_LLM_KEY", "SEKKEI_LLM_MODEL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def endpoint() -> ModuleType:
    """The fake endpoint of tests/llm, loaded by its path as the suite does."""
    path = Path(__file__).parents[1] / "llm" / "endpoint.py"
    spec = importlib.util.spec_from_file_location("solve_endpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("algorithm", ["bfs", "dfs"])
def test_the_exact_solver_draws_its_tree(algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "tree.html"
    options = ["--strategy", "tot", "--exact", "--algorithm", algorithm, "--beam", "2", "--trace", str(trace)]
    assert main(["solve", "4 9 10 13", *options]) == 0
    answer, _, verdict = capsys.readouterr().out.splitlines()[0].partition("  ")
    assert check((4, 9, 10, 13), answer)
    assert verdict == "(checked: right)"
    text = trace.read_text()
    assert text.count("<g class=") > 10
    assert 'class="answer"' in text
    assert answer in text.replace("&#42;", "*")
    assert "<script" not in text


def test_an_unsolvable_puzzle_ends_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "1 1 1 1", "--strategy", "tot", "--exact", "--algorithm", "dfs"]) == 1
    assert "no answer  (checked: wrong)" in capsys.readouterr().out


def test_an_endpoint_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = endpoint()
    with fake.FakeEndpoint([fake.says("Ten times four is 40, less 23 is 17, less 5.\nanswer: 12")]) as server:
        options = ["--model", f"{server.url}#m", "--strategy", "self-consistency", "--samples", "3", "--json"]
        assert main(["solve", CHAIN, *options, "--trace", str(tmp_path / "all.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answer"], found["right"], found["strategy"]) == ("12", True, "self-consistency 3")
    assert found["candidates"] == ["12", "12", "12"]
    assert found["cost"]["completion_tokens"] > 0
    assert json.loads((tmp_path / "all.json").read_text()) == found
    asked = server.requests[0][2]
    assert "modulo the number" in asked["messages"][0]["content"]
    assert asked["temperature"] == 0.7


def test_examples_are_shown(tmp_path: Path) -> None:
    fake = endpoint()
    examples = tmp_path / "examples.jsonl"
    rows = [{"question": f"How many is {i} and {i}?", "answer": f"answer: {2 * i}"} for i in range(9)]
    examples.write_text("\n".join(json.dumps(row) for row in rows))
    with fake.FakeEndpoint([fake.says("answer: 8")]) as server:
        options = ["--model", f"{server.url}#m", "--examples", str(examples), "--shots", "2", "--strategy", "direct"]
        assert main(["solve", "How many is 4 and 4 and 5?", *options]) == 0
    roles = [message["role"] for message in server.requests[0][2]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert "4 and 4" in server.requests[0][2]["messages"][2]["content"], "the nearest stands last"


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ((), "catalogue of cats"),  # one whole word in common
        (("--similarity", "hash"), "felines: catlike"),  # most letters in common
        (("--similarity", "hash", "--order", "best_first"), "catalogue of cats"),
    ],
)
def test_examples_are_chosen_by_words_or_by_vectors_and_put_in_order(
    options: tuple[str, ...], last: str, tmp_path: Path
) -> None:
    fake = endpoint()
    examples = tmp_path / "examples.jsonl"
    rows = [{"question": text, "answer": "x"} for text in ("catalogue of cats", "felines: catlike", "dogs, hounds")]
    examples.write_text("\n".join(json.dumps(row) for row in rows))
    with fake.FakeEndpoint([fake.says("answer: x")]) as server:
        shown = ["--model", f"{server.url}#m", "--examples", str(examples), "--shots", "2", "--strategy", "direct"]
        assert main(["solve", "felinely catlikeness of cats", *shown, *options]) == 0
    asked = [message["content"] for message in server.requests[0][2]["messages"] if message["role"] == "user"]
    assert asked[1] == last


def test_a_tree_of_words_from_a_cassette(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded with a script, replayed by the command: the same calls are made, with the same seeds."""
    question, cassette = "How many legs have two cats?", tmp_path / "talk.jsonl"

    def model(call: object) -> list[str]:
        asked, n = call.messages[-1]["content"], call.settings.n  # type: ignore[attr-defined]
        if "The next line:" not in asked:
            return ["impossible" if "1. One cat has 5" in asked else "sure"] * n
        lines = ["One cat has 4 legs.", "One cat has 5 legs."]
        return ["answer: 8" if "1. One" in asked else lines[i % 2] for i in range(n)]

    recording = Recording(Scripted(model), cassette)  # type: ignore[arg-type]
    with LLM(recording) as llm:
        made = solve_with(
            build(StrategyConfig(strategy="tot", generate="sample", beam=1), llm.capabilities, question), llm, question
        )
    assert made.answer == "8"
    options = [
        "--model",
        f"cassette:{cassette}",
        "--strategy",
        "tot",
        "--beam",
        "1",
        "--trace",
        str(tmp_path / "t.html"),
    ]
    assert main(["solve", question, *options]) == 0
    assert capsys.readouterr().out.startswith("8\n")
    assert "One cat has 5 legs." in (tmp_path / "t.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hi"], "model: nobody to ask"),
        (["hi", "--strategy", "magic"], "must be one of direct, cot"),
        (["4 9 10 13", "--exact"], "exact: stands in for"),
        (["hi", "--exact", "--strategy", "tot"], "only the Game of 24 has an exact solver"),
        (["hi", "--model", "runs/nowhere"], "names nothing that answers"),
        (["4 9 10 13", "--strategy", "tot", "--exact", "--trace", "tree.svg"], "must end in .html"),
        (["4 9 10 13", "--strategy", "tot", "--exact", "--beam", "0"], "beam: got 0"),
        (["4 9 10 13", "--strategy", "tot", "--exact", "--evaluate", "likely"], "evaluate: likely is not"),
        (["hi", "--samples", "0", "--model", "env", "--strategy", "best-of-n"], "samples: got 0"),
        (["hi", "--samples", "4", "--model", "env"], "samples: is for the strategy self-consistency or best-of-n"),
        (["hi", "--beam", "2", "--model", "env"], "beam: is for the strategy tot, not for cot"),
        (
            ["hi", "--strategy", "tot", "--model", "env", "--examples", "x.jsonl"],
            "examples: is for the strategy direct",
        ),
        (["hi", "--shots", "8", "--model", "env"], "shots: is about examples, and there are none"),
        (["hi", "--balance", "--model", "env"], "balance: is about examples"),
        (["hi", "--examples", "absent.jsonl"], "cannot be read"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["solve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1 is no object"),
        ('{"question": "a"}', "answer"),
        ('{"question": "a", "answer": "b", "lable": "c"}', "label"),
        ("", "is empty"),
    ],
)
def test_bad_examples(line: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text(line)
    assert main(["solve", "hi", "--model", "env", "--examples", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_questions_are_told_apart() -> None:
    assert kind_of("4 9 10 13") == "game24"
    assert kind_of(CHAIN) == "chain"
    assert kind_of("What is 4 9 10?") == "words"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["cot", "tot"])
def test_our_own_model_solves_a_chain(strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (RUN / "grpo" / "done.json").is_file():
        pytest.skip(f"{RUN} holds no finished run (sekkei run laptop)")
    trace = tmp_path / "tree.html"
    assert main(["solve", CHAIN, "--model", str(RUN), "--strategy", strategy, "--trace", str(trace)]) == 0
    assert capsys.readouterr().out.startswith("12  (checked: right)")
    assert "7 add 3 = 10" in trace.read_text()
