"""Every kind of file gives text, and each character leads back to where it stands in the file."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

from sekkei.core.errors import UserError
from sekkei.rag.align import align_html
from sekkei.rag.read import Document, Failure, files_of, read, read_bytes

spec = importlib.util.spec_from_file_location("handmade_pdf", Path(__file__).with_name("pdf.py"))
assert spec is not None
assert spec.loader is not None
handmade = importlib.util.module_from_spec(spec)
spec.loader.exec_module(handmade)

PAGE = """<html><head><title>Fish</title><script>var fish = "Fish and chips";</script></head><body>
<nav><a href="/">the home</a> | <a href="/b">the best</a></nav>
<article><h1>Fish &amp; chips</h1>
<p>The <b>best</b> fish is&nbsp;fresh, and costs 3&#8364; or&#x20;more. It is served with vinegar &mdash; always.</p>
<p>日本の<ruby>魚</ruby>は新鮮です。The second paragraph says that the sea was calm, and nothing else of interest.</p>
</article></body></html>"""


def document(path: str, data: bytes) -> Document:
    found = read_bytes(path, data)
    assert isinstance(found, Document), found
    return found


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py"])
def test_plain_text_is_the_file_itself(name: str) -> None:
    text = "# One\r\n\r\n\tdef  日本()  \n\n\n\nx = 1  \n"
    found = document(name, text.encode())
    assert found.text == text
    for start in range(len(text)):
        assert found.locate(start, start + 1) == ("", start, start + 1)


def test_a_declared_encoding_is_read() -> None:
    found = document("a.txt", "東京は日本の首都です。人口は多いです。".encode("cp932"))
    assert "首都" in found.text


def test_html_text_leads_back_to_its_source() -> None:
    found = document("a.html", PAGE.encode())
    assert "fish is fresh, and costs 3€ or more" in found.text
    assert "var fish" not in found.text
    for words in ("Fish & chips", "best fish", "costs 3€ or more", "vinegar — always", "新鮮です", "the sea was calm"):
        start = found.text.index(words)
        place, first, last = found.locate(start, start + len(words))
        assert place == ""
        assert _visible(PAGE[first:last]) == "".join(words.split()), PAGE[first:last]
        assert first >= PAGE.index("<article>"), "the navigation is no source of the article"


def _visible(html: str) -> str:
    import html as entities

    return "".join(entities.unescape(re.sub(r"<[^>]*>", "", html)).split())


def test_every_visible_character_of_a_page_is_anchored_to_itself() -> None:
    found = document("a.html", PAGE.encode())
    wrong = []
    for place, character in enumerate(found.text):
        if not character.isspace():
            _, first, last = found.locate(place, place + 1)
            if _visible(PAGE[first:last]) != character:
                wrong.append((character, PAGE[first:last]))
    assert wrong == []


def test_text_that_is_not_in_the_page_is_enclosed_by_its_neighbours() -> None:
    html = "<p>alpha</p><p>beta gamma</p><p>delta</p>"
    anchors = align_html("alpha\nBETA GAMMA\ndelta", html)
    middle = next(anchor for anchor in anchors if anchor.start <= 6 < anchor.end)
    assert html.index("alpha") + 5 <= middle.source(8)[0]
    assert middle.source(8)[1] <= html.index("delta")
    (only,) = align_html("", "<p></p>")
    assert only.source(0) == (0, 7)


def test_pdf_pages_are_places() -> None:
    found = document("a.pdf", handmade.pdf(["The first page.", "", "The third page\nhas two lines."]))
    start = found.text.index("third")
    place, first, last = found.locate(start, start + 5)
    assert place == "page 3"
    assert (first, last) == (4, 9)
    assert [section.end - section.start for section in found.sections] == [15, len("The third page\nhas two lines.")]


def test_a_span_over_two_pages_is_cut_at_the_first() -> None:
    found = document("a.pdf", handmade.pdf(["First.", "Second."]))
    assert found.locate(2, len(found.text)) == ("page 1", 2, 6)


def test_notebook_cells_are_places() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Words."]},
        {"cell_type": "code", "source": "", "outputs": []},
        {"cell_type": "code", "source": "%matplotlib inline\nx = 1", "outputs": [{"text": "never read"}]},
        {"cell_type": "raw", "source": "raw"},
    ]
    found = document("a.ipynb", json.dumps({"cells": cells, "nbformat": 4, "metadata": {}}).encode())
    assert found.text == "# Title\nWords.\n\n%matplotlib inline\nx = 1\n\nraw"
    assert [section.syntax for section in found.sections] == ["markdown", "python", "text"]
    start = found.text.index("x = 1")
    assert found.locate(start, start + 5) == ("cell 3", 19, 24)
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["y = 2"]}]}], "nbformat": 3}
    assert document("b.ipynb", json.dumps(old).encode()).text == "y = 2"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", bytes(range(256)) * 4, "not text"),
        ("a.txt", b" \n ", "empty"),
        ("a.pdf", b"no pdf at all", "not a readable PDF"),
        ("a.pdf", handmade.pdf(["text " * 50], broken=True), "not a readable PDF"),
        ("a.pdf", handmade.pdf([""]), "OCR"),
        ("a.ipynb", b"{", "not a notebook"),
        ("a.ipynb", b'{"cells": [3]}', "not a notebook"),
        ("a.ipynb", b"[]", "not a notebook"),
        ("a.exe", b"x", "unknown kind"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason(name: str, data: bytes, reason: str) -> None:
    found = read_bytes(name, data)
    assert isinstance(found, Failure)
    assert found.path == name
    assert reason in found.reason


def test_a_folder_lists_what_can_be_read(tmp_path: Path) -> None:
    for name in ("b.md", "a.TXT", "sub/c.py", ".hidden.md", ".git/d.md", "e.png", "__pycache__/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    os.symlink(tmp_path, tmp_path / "loop")
    os.symlink(tmp_path / "gone", tmp_path / "dangling.md")
    assert files_of(tmp_path) == ["a.TXT", "b.md", "sub/c.py"]
    assert isinstance(read(tmp_path, "nothing.md"), Failure)
    with pytest.raises(UserError, match="is not a folder"):
        files_of(tmp_path / "b.md")
