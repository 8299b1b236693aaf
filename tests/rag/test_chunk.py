"""Chunks are exact slices, no longer than asked, cover everything, and follow the structure of the text."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.core.errors import ConfigError
from sekkei.rag.chunk import ChunkConfig, chunks
from sekkei.rag.read import Document, read_bytes
from sekkei.rag.structure import boundaries, parts

PIECES = ["# Head\n", "## Sub\n", "\n\n", "\n", " ", "word ", "A sentence. ", "日本語の文。", "```\n# no head\n```\n"]
PIECES += [
    "def f():\n    return 1\n\n\n",
    "class A:\n    x = 1\n\n    def g(self):\n        pass\n",
    "@d\n",
    "\t",
    "\r\n",
    "é",
    "𝕏",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=40).map("".join)


def document(name: str, text: str) -> Document | None:
    found = read_bytes(name, text.encode())
    return found if isinstance(found, Document) else None


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.sampled_from(["a.txt", "a.md", "a.py"]), st.integers(1, 80), st.data(), st.booleans())
def test_chunks_are_exact_slices_that_cover_the_text(
    text: str, name: str, size: int, data: st.DataObject, words: bool
) -> None:
    found = document(name, text)
    if found is None:
        return
    overlap = data.draw(st.integers(0, size // 2))
    config = ChunkConfig(size=size, overlap=overlap, unit="tokens" if words else "characters")
    count = (lambda piece: len(piece.split())) if words else len
    covered = bytearray(len(found.text))
    before = (0, 0)
    for chunk in chunks(found, config, count):
        assert found.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text == chunk.text.strip() != ""
        assert count(chunk.text) <= size
        assert chunk.start >= before[0]
        assert chunk.end > before[1], "a chunk inside the one before it says nothing new"
        assert count(found.text[chunk.start : max(chunk.start, before[1])]) <= overlap
        assert (chunk.source_start, chunk.source_end) == (chunk.start, chunk.end)
        covered[chunk.start : chunk.end] = b"1" * (chunk.end - chunk.start)
        before = (chunk.start, chunk.end)
    missing = [found.text[i] for i, seen in enumerate(covered) if not seen and not found.text[i].isspace()]
    assert missing == []


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(["text", "markdown", "python"]))
def test_parts_lie_side_by_side(text: str, syntax: str) -> None:
    found = parts(text, 0, len(text), syntax)
    assert found[0].start == 0
    assert found[-1].end == len(text)
    assert all(a.end == b.start for a, b in pairwise(found))
    for part in found:
        for places in boundaries(text, part):
            assert places == sorted(places)
            assert all(part.start < place < part.end for place in places)


def test_markdown_headings_are_borders_and_paths() -> None:
    body = "words of some length, enough to stand alone. " * 3
    fence = "```sh\n# no heading\n```"
    text = f"intro {body}\n# A\n{body}\n## B\n{body}\n{fence}\n### C ##\n{body}\n\nD\n---\n{body}\n# E\n{body}"
    found = document("a.md", text)
    assert found is not None
    made = list(chunks(found, ChunkConfig(size=400, overlap=0)))
    assert [chunk.heading for chunk in made] == ["", "A", "A > B", "A > B > C", "A > D", "E"]
    assert "# no heading" in made[2].text


def test_a_bare_heading_is_joined_with_what_follows() -> None:
    text = f"# Title\n\n## First\n\n{'words ' * 40}\n\n## Second\n\n{'words ' * 40}"
    found = document("a.md", text)
    assert found is not None
    first, second = chunks(found, ChunkConfig(size=300, overlap=0))
    assert first.text.startswith("# Title")
    assert (first.heading, second.heading) == ("Title > First", "Title > Second")


def test_python_is_cut_at_functions_and_methods() -> None:
    method = "    def m{0}(self):\n" + "        x = 1\n" * 12 + "\n"
    text = (
        '"""Module."""\n\nimport os\n\n\n@decorator\ndef one():\n'
        + "    y = 2\n" * 20
        + "\n\nclass Two:\n"
        + '    """Doc."""\n\n'
    )
    text += "".join(method.format(i) for i in range(4)) + "\nlast = 3\n" + "other = 4\n" * 12
    ast.parse(text)
    found = document("a.py", text)
    assert found is not None
    made = list(chunks(found, ChunkConfig(size=420, overlap=0)))
    assert [chunk.heading for chunk in made] == ["def one", "class Two", "class Two", ""]
    assert made[0].text.startswith('"""Module."""')
    assert "@decorator" in made[0].text
    assert made[2].text.startswith("def m2(self)")
    assert made[3].text.startswith("last = 3")


def test_python_that_does_not_parse_is_cut_as_text() -> None:
    found = document("a.py", "%magic\n\ndef f(:\n\n" + "words " * 100)
    assert found is not None
    made = list(chunks(found, ChunkConfig(size=100, overlap=0)))
    assert len(made) > 5
    assert all(chunk.heading == "" for chunk in made)


def test_the_strongest_boundary_in_reach_is_taken() -> None:
    text = "One sentence here. Another one here.\n\nA new paragraph. It goes on and on and on and on."
    found = document("a.txt", text)
    assert found is not None
    made = [chunk.text for chunk in chunks(found, ChunkConfig(size=60, overlap=0))]
    assert made == ["One sentence here. Another one here.", "A new paragraph. It goes on and on and on and on."]
    found = document("a.txt", "一つ目の文です。二つ目の文です。三つ目の文です。")
    assert found is not None
    made = [chunk.text for chunk in chunks(found, ChunkConfig(size=10, overlap=0))]
    assert made == ["一つ目の文です。", "二つ目の文です。", "三つ目の文です。"]


def test_neighbours_share_whole_words() -> None:
    found = document("a.txt", " ".join(f"word{i}" for i in range(60)))
    assert found is not None
    made = list(chunks(found, ChunkConfig(size=100, overlap=30)))
    for before, after in pairwise(made):
        shared = found.text[after.start : before.end]
        assert 0 < len(shared) <= 30
        assert shared.split() == before.text.split()[-len(shared.split()) :]


def test_a_title_stands_over_later_chunks() -> None:
    found = document("a.txt", "The title of it\n\n" + "words of the body. " * 20)
    assert found is not None
    first, *rest = chunks(found, ChunkConfig(size=120, overlap=0))
    assert rest
    assert first.context == first.text
    assert all(chunk.context == f"The title of it\n{chunk.text}" for chunk in rest)


def test_chunks_stay_inside_pages_and_cells() -> None:
    import json

    cells = [{"cell_type": "code", "source": f"x{i} = {i}"} for i in range(3)]
    found = read_bytes("a.ipynb", json.dumps({"cells": cells}).encode())
    assert isinstance(found, Document)
    assert [(chunk.place, chunk.text) for chunk in chunks(found, ChunkConfig())] == [
        ("cell 1", "x0 = 0"),
        ("cell 2", "x1 = 1"),
        ("cell 3", "x2 = 2"),
    ]


def test_ids_tell_slices_and_versions_apart() -> None:
    one, two = (document("a.txt", text) for text in ("same words here. " * 9, "same words here. " * 9 + "more"))
    assert one is not None
    assert two is not None
    config = ChunkConfig(size=50, overlap=0)
    ids = [chunk.id for found in (one, one, two) for chunk in chunks(found, config)]
    count = len(list(chunks(one, config)))
    assert ids[:count] == ids[count : 2 * count]
    assert len(set(ids)) == len(ids) - count


@pytest.mark.parametrize(("values", "key"), [({"size": 0}, "size"), ({"size": 10, "overlap": 6}, "overlap")])
def test_wrong_sizes_are_refused(values: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        ChunkConfig(**values)  # type: ignore[arg-type]


def test_this_package_is_cut_without_loss() -> None:
    folder = Path(__file__).parents[2] / "src" / "sekkei" / "rag"
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        found = document(path.name, text)
        if found is not None:
            made = list(chunks(found, ChunkConfig(size=600, overlap=0)))
            assert "".join("".join(chunk.text for chunk in made).split()) == "".join(text.split())
