"""`sekkei ask` from outside: answers with notes, flags, refusals, and one line for what a user can mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sekkei.cli import main
from sekkei.llm.face import LLM
from sekkei.llm.scripted import Scripted

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SEKKEI_LLM_URL", raising=False)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tower.md").write_text("# The tower\n\nIt stands 324 metres tall. It is brown.\n")
    assert main(["rag", "index", "docs", "--embedder", "hash"]) == 0
    capsys.readouterr()

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["ask", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_without_a_model_the_documents_answer(run: Run) -> None:
    code, out, err = run("How many metres tall is the tower?")
    assert code == 0
    assert "no --model" in err
    assert "It stands 324 metres tall. [1]" in out
    assert '[1] tower.md [13:39]: "It stands 324 metres tall."' in out


def test_unsupported_sentences_are_marked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = 'The tower is 324 metres tall [1: "stands 324 metres tall"]. It was sold in 1925.'
    backend = Scripted([reply, reply, "NOT IN THE DOCUMENTS"])
    monkeypatch.setattr("sekkei.llm.open.open_llm", lambda spec: LLM(backend))
    code, out, _ = run("How many metres tall is the tower?", "--model", "x")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "The tower is 324 metres tall. [1]"
    assert lines[1] == "It was sold in 1925.  (UNSUPPORTED: cites nothing)"
    assert lines[-1] == "1 of 2 sentences are supported"
    code, out, _ = run("How many metres tall is the tower?", "--model", "x", "--json")
    found = json.loads(out)
    assert (code, found["status"], found["supported_share"]) == (0, "answered", 0.5)
    citation = found["sentences"][0]["citations"][0]
    written = (Path("docs") / citation["path"]).read_text()
    assert written[citation["source_start"] : citation["source_end"]] == citation["quote"]
    code, out, _ = run("How many metres tall is the tower?", "--model", "x")
    assert code == 1
    assert out == "Not in the documents: the model found no answer in the passages.\n"


def test_what_is_not_there_asks_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Scripted(["Nobody knows."])
    monkeypatch.setattr("sekkei.llm.open.open_llm", lambda spec: LLM(backend))
    code, out, _ = run("Who won the chess championship in Reykjavik?", "--model", "x")
    assert (code, backend.calls) == (1, [])
    assert out.startswith("Not in the documents: ")
    code, out, _ = run("Who won the chess championship in Reykjavik?", "--model", "x", "--always")
    assert "UNSUPPORTED" in out
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x", "--index", "none"), "none holds no index"),
        (("x", "--model", "nobody"), "names nothing that answers"),
        (("x", "-k", "0"), "ask.k"),
        ((), "'question'"),
    ],
)
def test_what_a_user_can_mend_is_one_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
