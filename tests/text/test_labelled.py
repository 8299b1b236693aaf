"""The default blocks on texts with a verdict, and on clean Japanese prose that must stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.text.labelled import DROP, KEEP, PAGES

from sekkei.text.document import Document
from sekkei.text.page import Page
from sekkei.text.pipeline import declare

pytest.importorskip("ftfy", reason="the extra `data` is not installed")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
EXTRACT, *FUNCTIONS = [block.build() for block in declare.parse(list(declare.DEFAULT)) if not declare.is_corpus(block)]


def verdict(text: str) -> tuple[str, Document | None]:
    """(rule that dropped the text, or "", what was kept)."""
    left: Document | None = Document("t", text, "test")
    for function in FUNCTIONS:
        assert left is not None
        left, rows = function(left)
        if left is None:
            return rows[-1].rule, None
    return "", left


def test_there_are_enough_of_both() -> None:
    assert len(KEEP) + len(DROP) >= 60
    for lang in ("en", "ja"):
        assert sum(case[1] == lang for case in KEEP) >= 12
        assert sum(case[1] == lang for case in DROP) >= 12
    assert len({case[0] for case in (*KEEP, *DROP)}) == len(KEEP) + len(DROP)


@pytest.mark.parametrize(("name", "lang", "rule", "text"), KEEP, ids=[case[0] for case in KEEP])
def test_clean_texts_stay(name: str, lang: str, rule: str, text: str) -> None:
    found, document = verdict(text)
    assert (name, found) == (name, rule)
    assert document is not None
    assert document.lang == lang


@pytest.mark.parametrize(("name", "lang", "rule", "text"), DROP, ids=[case[0] for case in DROP])
def test_bad_texts_go_by_their_rule(name: str, lang: str, rule: str, text: str) -> None:
    found, _ = verdict(text)
    assert found.startswith(rule), (name, found)
    assert found


@pytest.mark.parametrize(("name", "lang", "rule", "html", "kept"), PAGES, ids=[case[0] for case in PAGES])
def test_pages_of_real_shapes(name: str, lang: str, rule: str, html: str, kept: str) -> None:
    extracted, _ = EXTRACT(Page(name, f"<html><body>{html}</body></html>", True))
    assert extracted is not None
    found, document = verdict(extracted.text)
    assert found == rule
    if document is not None:
        assert kept in document.text
        assert document.lang == lang
        assert not {"Products", "会社概要"} & set(document.text.split())


def test_clean_japanese_prose_is_kept() -> None:
    path = SHARED / "jsquad_valid.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    texts = [paragraph["context"].split(" [SEP] ")[-1] for article in data for paragraph in article["paragraphs"]]
    kept = sum(verdict(text)[0] == "" for text in texts)
    assert len(texts) > 1000
    assert kept / len(texts) >= 0.95
