"""`sekkei data`: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import yaml
from tests.text.labelled import DROP, KEEP

from sekkei.cli import main
from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.text.blocks.decontaminate import overlap
from sekkei.text.document import read_documents, read_ledger
from sekkei.text.pipeline import origins

pytest.importorskip("ftfy", reason="the extra `data` is not installed")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    for name, _, _, text in (*KEEP[:6], *KEEP[12:18], *DROP[:4], *DROP[-8:]):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_clean_report_and_clean_again(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "clean", str(pages), "--out", str(out), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "12 of 24 kept (50.0%)" in printed
    assert "gopher_repetition" in printed
    assert {d.lang for d in read_documents(out / "documents-00000.parquet")} == {"en", "ja"}
    assert len(read_ledger(out / "ledger.parquet")) >= 12
    assert main(["data", "clean", str(pages), "--out", str(out), "--workers", "1"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["data", "report", str(out), "--samples", "3"]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "en-menu.txt" in page
    assert "gopher_repetition.duplicate_lines" in page
    assert not re.search(r"<script|<link|src=|url\(http", page)
    first = (out / "report.html").read_bytes()
    main(["data", "report", str(out), "--samples", "3"])
    assert (out / "report.html").read_bytes() == first


def test_why_a_page_went_by_url_and_by_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"kept": KEEP[0][3] + "\nHome page\n" + KEEP[1][3], "short": DROP[0][3], "nothing": ""}
    rows = [json.dumps({"text": text, "url": f'https://e.org/{name}?a="1"'}) for name, text in texts.items()]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("\n".join([*rows, "no json"]), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["data", "clean", str(tmp_path / "in"), "--out", str(out), "--workers", "1"]) == 0
    capsys.readouterr()

    def told(query: str) -> list[str]:
        assert main(["data", "why", str(out), query]) == 0
        return capsys.readouterr().out.splitlines()

    kept = told('https://e.org/kept?a="1"')
    assert kept[:2] == ['a.jsonl#0  https://e.org/kept?a="1"', "  kept in documents-00000.parquet"]
    assert kept[2].startswith("  removed by c4.line_words: value 2, limit 3, characters")
    assert kept[3] == "    Home page"
    assert told("a.jsonl#0") == kept
    short = told("org/short")  # a part of a URL
    assert short[0] == 'a.jsonl#1  https://e.org/short?a="1"'
    assert short[1].startswith("  dropped by gopher_quality.words: value 10, limit 50")
    nothing = told("a.jsonl#2")  # it never became a document
    assert nothing == ['a.jsonl#2  https://e.org/nothing?a="1"', "  dropped by empty: value 0, limit 1"]
    assert told("a.jsonl#3")[1].startswith("  dropped by read.not_json")
    assert len([line for line in told("e.org") if line.startswith("a.jsonl")]) == 3
    assert main(["data", "why", str(out), "e.com"]) == 2
    assert "e.com: no page of" in capsys.readouterr().err
    assert main(["data", "report", str(out)]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    for name in texts:  # beside each sampled text, kept or dropped
        assert f"https://e.org/{name}?a=" in page


def test_verify_says_the_same(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", str(pages)]) == 0
    assert "the same documents and the same ledger" in capsys.readouterr().out


def test_options_change_the_list(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "blocks", "--set", "language.keep=[ja]", "--without", "c4"]) == 0
    printed = capsys.readouterr().out
    declared = yaml.safe_load(printed)["blocks"]
    assert {"language"} <= {name for item in declared for name in item}
    assert "c4" not in {name for item in declared for name in item}
    (tmp_path / "blocks.yaml").write_text(printed, encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["data", "clean", str(pages), "--out", str(out), "--blocks", str(tmp_path / "blocks.yaml")]
    assert main([*arguments, "--workers", "1"]) == 0
    assert {d.lang for d in read_documents(out / "documents-00000.parquet")} == {"ja"}


def test_evaluation_items_are_kept_out(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [KEEP[0][3][:150], KEEP[0][3][160:320], *(f"nobody has ever asked question {i} " * 4 for i in range(6))]
    rows = [json.dumps({"question": question}) for question in questions]
    (tmp_path / "eval.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["data", "clean", str(pages), "--out", str(out), "--eval", str(tmp_path / "eval.jsonl")]
    assert main([*arguments, "--workers", "1"]) == 0
    gone = [row for row in read_ledger(out / "ledger.parquet") if row.rule == "contaminated"]
    assert [row.doc_id for row in gone] == [f"{KEEP[0][0]}.txt"]
    found = [row for row in read_ledger(out / "ledger.parquet") if row.rule == "contaminated_item"]
    assert [row.excerpt.partition(": ")[0] for row in (*found, *gone)] == ["eval.jsonl#0", "eval.jsonl#1"]
    assert overlap(out) == {"eval.jsonl": 0.25}
    assert "eval.jsonl: 25.0% of its items stood in the pages" in capsys.readouterr().out
    with pytest.raises(UserError, match="no finished run"):
        overlap(tmp_path)


def test_train_quality_and_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(derive_seed("quality of the test"))
    words = {
        "good": ["river", "bridge", "winter", "letter", "engine", "harbour"],
        "bad": ["buy", "cheap", "click", "free", "offer", "win"],
    }
    for kind, own in words.items():
        rows = [{"text": " ".join(rng.choices([*own, "the", "of", "and"], k=40))} for _ in range(40)]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = tmp_path / "quality.npz"
    arguments = ["data", "train-quality", str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl"), "--out"]
    assert main([*arguments, str(model)]) == 0
    assert "accuracy 1.000, AUC 1.000" in capsys.readouterr().out
    first = model.read_bytes()
    main([*arguments, str(model)])
    assert model.read_bytes() == first
    listed = {"blocks": ["extract", {"classifier": {"model": str(model), "min_score": 0.5}}]}
    (tmp_path / "blocks.yaml").write_text(yaml.safe_dump(listed))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.txt").write_text("the letter of the river and the bridge")
    (tmp_path / "in" / "bad.txt").write_text("click the free offer and win and buy")
    clean = ["data", "clean", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1", "--blocks"]
    assert main([*clean, str(tmp_path / "blocks.yaml")]) == 0
    assert [d.id for d in read_documents(tmp_path / "out" / "documents-00000.parquet")] == ["good.txt"]


def test_real_pages(tmp_path: Path) -> None:
    if not (SHARED / "warc").is_dir():
        pytest.skip(f"{SHARED / 'warc'} is absent")
    pytest.importorskip("fastwarc", reason="the extra `data` is not installed")
    assert main(["data", "clean", str(SHARED / "warc"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    documents = read_documents(tmp_path / "out" / "documents-00000.parquet")
    assert len(documents) >= 14
    assert all("<div" not in d.text and "\ufffd" not in d.text and d.meta["url"] for d in documents)
    assert sum(len(d.text) for d in documents) > 100_000
    urls = origins.urls_of(tmp_path / "out", {row.doc_id for row in read_ledger(tmp_path / "out" / "ledger.parquet")})
    assert urls["sample-0000.warc.gz#3"] == "https://soldaini.net/facts/"
    assert all(urls.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clean", "nowhere", "--out", "o"], "no such file or folder"),
        (["clean", "PAGES", "--out", "o", "--set", "language.keep=[xx]"], "'xx' is not one of"),
        (["clean", "PAGES", "--out", "o", "--set", "nope.a=1"], "BLOCK.KEY=VALUE"),
        (["clean", "PAGES", "--out", "o", "--without", "nope"], "is not in the list"),
        (["clean", "PAGES", "--out", "o", "--workers", "0"], "must be at least 1"),
        (["verify", "PAGES", "--shards", "1"], "at least two numbers"),
        (["report", "PAGES"], "no finished output"),
        (["why", "PAGES", "a"], "no finished output"),
    ],
)
def test_what_is_refused(
    pages: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *(str(pages) if item == "PAGES" else item for item in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.rglob("*.parquet")) == []
