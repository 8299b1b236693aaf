"""C4's rules one by one: which lines go, which pages, and what the ledger says of them."""

from __future__ import annotations

import pytest

from sekkei.text.blocks.c4 import C4, count_sentences
from sekkei.text.document import Document

PROSE = "\n".join(f"This is line number {i} of a page. It has two sentences." for i in range(4))


def apply(text: str, **parameters: object) -> tuple[str | None, list[tuple[str, str]]]:
    """(text that is left, (rule, what of the text its row means))."""
    document, rows = C4(**parameters).build()(Document("d", text, "test", "en"))  # type: ignore[arg-type]
    return (document.text if document else None), [(row.rule, text[row.start : row.end]) for row in rows]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Home", "c4.line_words"),
        ("Please enable JavaScript to read this page.", "c4.line_javascript"),
        ("We make use of cookies to know our readers.", "c4.line_policy"),
        ("See the Privacy Policy of this place for more.", "c4.line_policy"),
        ("one two " + "x" * 1001, "c4.line_word_length"),
    ],
)
def test_lines_that_go(line: str, rule: str) -> None:
    left, rows = apply(f"{line}\n{PROSE}\n{line}")
    assert left == PROSE
    assert [(found, text[:50]) for found, text in rows] == [(rule, line[:50])] * 2


@pytest.mark.parametrize(
    ("text", "rule", "at"),
    [
        (f"{PROSE}\nLorem ipsum dolor sit amet.", "c4.lorem_ipsum", "Lorem ipsum"),
        (f"{PROSE}\nif (a) {{ b(); }}", "c4.curly_bracket", "{ b"),
        ("Only one sentence is here.\nAnd one more of them.", "c4.sentences", "Only one"),
    ],
)
def test_pages_that_go(text: str, rule: str, at: str) -> None:
    left, rows = apply(text)
    assert left is None
    assert rows[-1][0] == rule
    assert rows[-1][1].startswith(at)


def test_switches() -> None:
    mixed = f"Home\nPlease enable JavaScript now.\nOur privacy policy is here.\n{PROSE}\nNo stop at the end of it {{"
    loose = {"min_line_words": 0, "javascript": False, "policies": False, "curly_brackets": False}
    assert apply(mixed, **loose) == (mixed, [])
    left, rows = apply(mixed, **loose, terminal_lines=True)
    assert left == f"Please enable JavaScript now.\nOur privacy policy is here.\n{PROSE}"
    assert [rule for rule, _ in rows] == ["c4.line_terminal"] * 2


def test_unspaced_text_is_asked_for_little() -> None:
    text = "これは日本語の文章である。\n短い行\n{ } も残る。"
    assert apply(text) == (text, [])
    assert apply(text + "\nJavaScriptを有効にしてください。") == (
        text,
        [("c4.line_javascript", "JavaScriptを有効にしてください。")],
    )


def test_sentences_are_counted() -> None:
    assert [count_sentences(line) for line in ("", "One.", "One. Two! Three?", "no stop", "a.b.c", "... ?!")] == [
        0, 1, 3, 1, 1, 0,
    ]  # fmt: skip
