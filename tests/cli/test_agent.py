"""`sekkei agent` as a person calls it: tools by name, an index, a server, approval, traces, mistakes in one line."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sekkei.cli import agent as verb
from sekkei.cli import main
from sekkei.llm import LLM, Reply, open_llm
from sekkei.llm import open as opening
from sekkei.llm.protocol import ToolCall
from sekkei.llm.scripted import Scripted
from sekkei.rag.chunk import ChunkConfig
from sekkei.rag.embed import Hashed
from sekkei.rag.index import Index
from sekkei.rag.store import LanceStore
from sekkei.tools.sandbox import capabilities

SERVER = Path(__file__).parents[1] / "agent" / "mcp_server.py"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the model called "scripted" says; everything else is the real thing."""
    lines: list[Any] = []
    monkeypatch.setattr(
        opening, "open_llm", lambda spec: LLM(Scripted(lines)) if spec == "scripted" else open_llm(spec)
    )
    return lines


def asks(name: str, **arguments: object) -> Reply:
    return Reply(text="", tool_calls=(ToolCall("c0", name, json.dumps(arguments)),), finish_reason="tool_calls")


def sekkei(*arguments: str) -> int:
    return main(["agent", *arguments, "--model", "scripted"])


def test_the_answer_alone_goes_to_standard_output(script: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    script += [asks("calculator", expression="6*7"), "It is 42."]
    assert sekkei("What is 6*7?") == 0
    captured = capsys.readouterr()
    assert captured.out == "It is 42.\n"
    assert captured.err == '  calculator({"expression": "6*7"}) ok: 42\n'


@pytest.mark.skipif(not capabilities().safe, reason=f"no sandbox here: {dict(capabilities().missing)}")
def test_python_and_retrieval(script: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "tower.md").write_text("# The tower\n\nThe tower was built in 1889. It stands 324 metres tall.\n")
    store = LanceStore(str(tmp_path / "index"))
    Index.create(store, Hashed(), docs, ChunkConfig()).update()
    script += [asks("search", query="when was the tower built"), asks("python", code="print(2026 - 1889)"), "137 years"]
    assert sekkei("How old is the tower?", "--tools", f"python,rag:{tmp_path / 'index'}", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    told = [message["content"] for message in found["messages"] if message["role"] == "tool"]
    assert (found["answer"], found["calls"], found["failed"]) == ("137 years", 2, 0)
    assert told[0].startswith("tower.md [")
    assert "built in 1889" in told[0]
    assert told[1] == "137"


def test_writing_waits_for_a_person(
    script: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str, typed: str | None = None) -> str:
        script[:] = [asks("write_file", path="note.txt", content="\x1b[2Jhidden"), "done"]
        monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Terminal(typed))
        assert sekkei("Write a note.", "--tools", f"write:{tmp_path}", *arguments) == 0
        return capsys.readouterr().err

    assert "nobody is there to approve" in run()
    assert "nobody is there to approve" in run("--approve", "none", typed="y\n")
    assert "a person said no" in run(typed="\n")
    asked = run(typed="use another name\n")
    assert "a person said: use another name" in asked
    assert "write_file wants to write:" in asked
    assert '"content": "\\u001b[2Jhidden"' in asked, "what is shown must not repaint the terminal"
    assert not (tmp_path / "note.txt").exists()
    assert "wrote 10 bytes" in run(typed="y\n")
    (tmp_path / "note.txt").unlink()
    run("--approve", "all")
    assert (tmp_path / "note.txt").read_text() == "\x1b[2Jhidden"


def test_a_server_of_the_model_context_protocol(
    script: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mcp", reason="the mcp package is not installed")
    script += [asks("length", text="abc"), "3"]
    command = shlex.join([sys.executable, str(SERVER), str(tmp_path)])
    assert sekkei("How long?", "--tools", "", "--mcp", command) == 0
    captured = capsys.readouterr()
    assert captured.out == "3\n"
    assert captured.err.endswith('length({"text": "abc"}) ok: 3\n')
    assert sekkei("How long?", "--mcp", "/no/such/program") == 2
    assert capsys.readouterr().err.startswith("error: mcp: '/no/such/program' did not start as a server")


def test_traces_replay(script: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "run.jsonl"
    script += [asks("calculator", expression="6*7"), "It is 42."]
    assert sekkei("What is 6*7?", "--trace", str(trace)) == 0
    capsys.readouterr()
    assert main(["agent", "--replay", str(trace)]) == 0
    assert capsys.readouterr().out == "It is 42.\n"
    assert main(["agent", "What is 6*8?", "--replay", str(trace)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {trace}: line ")


def test_a_limit_is_said_and_is_the_exit_code(script: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    script += [asks("calculator", expression="1")] * 2
    assert sekkei("go", "--max-steps", "2") == 1
    captured = capsys.readouterr()
    assert captured.out == "\n"
    assert captured.err.endswith("stopped by its limit of steps after 2 steps\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["go", "--tools", "abacus"], "--tools: 'abacus' is not known; known: calculator, python"),
        (["go", "--tools", "rag"], "--tools: rag needs a place, as rag:docs-index"),
        (["go", "--tools", "rag:no-such-index"], "--index: no-such-index holds no index"),
        (["go", "--tools", "files:no-such-folder"], "files: no-such-folder is no folder"),
        (["go", "--tools", "calculator,calculator"], "tools: two tools are called 'calculator'"),
        (["go", "--approve", "maybe"], "--approve: got 'maybe', must be ask, all or none"),
        (["go", "--protocol", "xml"], "protocol: got 'xml'"),
        (["go", "--max-steps", "0"], "max_steps: got 0, must be above 0"),
        ([" "], "task: is empty"),
        (["--replay", "missing.jsonl"], "missing.jsonl: cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    script: list[Any], arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert sekkei(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {words}"), captured.err
    assert len(captured.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_it_says_how_to_name_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEKKEI_LLM_URL", raising=False)
    assert main(["agent", "go"]) == 2
    assert "SEKKEI_LLM_URL" in capsys.readouterr().err


def test_what_is_shown_is_cut_and_plain() -> None:
    assert verb._short("a\n b" + "c" * 300).startswith("a bccc")
    assert len(verb._short("x" * 300)) == verb.SHOWN + 1
    assert verb._short("\x1b[31mred") == "\\x1b[31mred"
