"""`sekkei rag` from outside: index, change, search, measure; and one line for everything that a user can mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sekkei.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`sekkei rag …` in a folder of its own -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "tower.md").write_text("# The tower\n\nIt stands 324 metres tall.\n")
    (folder / "sub" / "soup.txt").write_text("Peel the tomatoes and cook them with basil.\n")
    (folder / "nihon.txt").write_text("梅雨は北海道を除く日本で見られる気象現象である。\n", encoding="utf-8")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["rag", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_folder_is_indexed_searched_and_updated(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("index", "docs", "--embedder", "hash")
    assert code == 0
    assert out == "rag-index: 3 added, 0 changed, 0 removed, 0 unchanged, 0 not readable; 3 chunks\n"
    code, out, _ = run("search", "how many metres", "-k", "1")
    assert code == 0
    assert out.startswith("1. tower.md [0:39]")
    assert "324 metres" in out
    (tmp_path / "docs" / "tower.md").unlink()
    (tmp_path / "docs" / "bad.pdf").write_bytes(b"%PDF-1.4 broken")
    (tmp_path / "docs" / "void.txt").write_text("")
    (tmp_path / "docs" / "nihon.txt").write_text("梅雨は雨季である。", encoding="utf-8")
    code, out, err = run("index", "docs")
    assert code == 0
    assert "0 added, 1 changed, 1 removed, 1 unchanged, 1 empty, 1 not readable; 2 chunks" in out
    (line,) = [line for line in err.splitlines() if line]
    assert line.startswith("not readable: bad.pdf: is not a readable PDF")
    code, out, _ = run("search", "雨季", "--mode", "text", "--json")
    (hit,) = map(json.loads, out.splitlines())
    assert (code, hit["chunk"]["path"], hit["chunk"]["text"]) == (0, "nihon.txt", "梅雨は雨季である。")
    code, out, _ = run("search", "zebra", "--mode", "text")
    assert (code, out) == (1, "nothing found\n")


def test_an_index_is_measured(run: Run, tmp_path: Path) -> None:
    run("index", "docs", "--embedder", "hash")
    rows = [
        {"query": "how many metres tall", "relevant": [{"path": "tower.md", "start": 13, "end": 40}]},
        {"query": "basil", "relevant": [{"path": "sub/soup.txt"}]},
        {"query": "basil", "relevant": [{"path": "tower.md"}]},
    ]
    (tmp_path / "judged.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = run("eval", "judged.jsonl", "--json", "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert code == 0
    assert figures["text"] == {
        "queries": 3, "ndcg@10": 2 / 3, "recall@1": 2 / 3, "recall@5": 2 / 3, "recall@10": 2 / 3, "mrr": 2 / 3
    }  # fmt: skip
    assert figures["hybrid"]["recall@5"] == 1
    assert figures["hybrid"]["mrr"] < 1
    lines = out.splitlines()
    assert lines[0].split() == ["3", "queries", "ndcg@10", "recall@1", "recall@5", "recall@10", "mrr"]
    assert lines[1].split() == ["text", *["0.667"] * 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("index", "nowhere"), "nowhere: is not a folder"),
        (("index", "empty"), "empty: holds no file"),
        (("index", "docs", "--embedder", "word2vec"), "embedder word2vec: unknown"),
        (("index", "docs", "--size", "0"), "chunk.size"),
        (("index", "docs", "--size", "10", "--overlap", "6"), "chunk.overlap"),
        (("index", "docs", "--unit", "lines"), "chunk.unit"),
        (("index", "docs", "--index", "qdrant+nothing"), "qdrant+nothing"),
        (("index", "docs", "--index", "docs/tower.md"), "docs/tower.md"),
        (("search", "x"), "rag-index holds no index; make one with sekkei rag index"),
        (("search", "x", "--index", "docs"), "docs holds no index"),
        (("eval", "nothing.jsonl"), "nothing.jsonl: cannot be read"),
        (("forget", "x"), "forget"),
    ],
)
def test_what_a_user_can_mend_is_one_line(run: Run, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(err.splitlines()) == 1, err
    assert words in errors[0]
    assert not (tmp_path / "rag-index").exists(), "nothing is half written"


def test_another_embedder_or_folder_is_refused(run: Run, tmp_path: Path) -> None:
    run("index", "docs", "--embedder", "hash")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("words")
    for arguments, words in [
        (("index", "docs", "--size", "600"), "the index was made with size 1600"),
        (("index", "other"), "the index is of"),
        (("index", "docs", "--embedder", "http://127.0.0.1:9/v1#m"), "the index was made with hash"),
        (("search", "x", "--mode", "sparse"), "--mode: got sparse"),
        (("search", "x", "--rerank", "nobody"), "names nothing that answers"),
    ]:
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert words in err
        assert len(err.splitlines()) == 1
    code, out, _ = run("index", "other", "--rebuild", "--embedder", "hash")
    assert code == 0
    assert "1 added" in out
    assert run("search", "tomatoes", "--mode", "text")[0] == 1


def test_help_names_every_action(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for action in ("index", "search", "eval"):
        assert f"sekkei rag {action}" in out
