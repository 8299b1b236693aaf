"""The data stage's cleaning: labelled pages, the embedded ones, and what a recipe may say about it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.progress import Console
from sekkei.data.corpus import PAGE_BLOCKS, CleanConfig
from sekkei.data.pages import PagesConfig, render_pages
from sekkei.stages import cleaning
from sekkei.stages.cleaning import clean_pages, cleaned_documents, pages_digest
from sekkei.text.document import Document, Dropped, read_ledger

ARTICLE = """The heron stands in the shallow water for hours and does not move, so that the fish forget it.
Then its neck unfolds like a spring, and the beak is back above the water with a fish before you have seen it go.

Farmers used to dislike the bird because they believed that it emptied their ponds in a single night.
Counting what herons really eat showed that most of it is frogs and mice, and no pond with reeds has to fear.

In winter herons gather where rivers stay open. They stand apart, each with a stretch of bank of its own.
"""
REFERENCE = """heapq.heappush(heap, item)
Push item onto heap, maintaining the heap invariant.

heapq.heappop(heap)
Pop the smallest item off the heap, and return it to the caller.

>>> from heapq import heappush, heappop
>>> heap = []
>>> heappush(heap, 3)
>>> heappop(heap)
3

A heap is a binary tree in which every parent has a value that is less than or equal to that of its children.
The smallest element is always the root, heap[0], and to sort with it is to push all values and pop them one by one.
"""
OTHER = """Bread needs flour, water, salt and time. The last of these is what most kitchens do not have, and it shows.
A dough that has stood in the cold for a day tastes of more than one that was hurried along with a lot of yeast.

Fold it rather than knead it, and be gentle, because the air that is to lift the loaf is already in there.
"""
GERMAN = (
    "Der Reiher steht stundenlang im flachen Wasser und bewegt sich nicht, bis die Fische ihn vergessen haben. " * 4
)
NAVIGATION = "".join(f'<li><a href="/{i}">Category number {i}</a></li>' for i in range(80))
COOKIES = "<p>We use cookies. Accept all. Reject all. Privacy policy. Terms of use.</p>"


def page(body: str) -> bytes:
    return f"<html><head><title>t</title></head><body>{body}</body></html>".encode()


def paragraphs(text: str) -> bytes:
    return page("".join(f"<p>{part}</p>" for part in text.split("\n\n")))


LABELLED: dict[str, tuple[bytes, str]] = {
    "article.html": (paragraphs(ARTICLE), ""),
    "other.txt": (OTHER.encode(), ""),
    "reference.html": (page(f"<pre>{REFERENCE}</pre>"), ""),
    "german.html": (paragraphs(GERMAN), "language_de"),
    "cookies.html": (page(COOKIES), "words"),
    "links.html": (page(f"<ul>{NAVIGATION}</ul>"), "any"),
    "empty.html": (page("<script>var a = 1</script>"), "empty"),
    "nothing.html": (b"", "empty"),
    "binary.html": (random.Random(1).randbytes(5000), "not_text"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n" + random.Random(2).randbytes(5000), "not_text"),
    "lorem.html": (paragraphs(ARTICLE + "\n\nLorem ipsum dolor sit amet."), "lorem_ipsum"),
    "spam.html": (page("<p>" + "the best and cheapest shoes to have with you. " * 60 + "</p>"), "any"),
    "copy.html": (paragraphs(ARTICLE.upper()), "exact_duplicate"),
    "edited.html": (paragraphs(ARTICLE.replace("used to dislike", "once hated")), "near_duplicate"),
}


EITHER = {"edited.html", "article.html", "copy.html"}  # one text in three dresses: which stays is told by digests


def cleaned(folder: Path, pages: dict[str, bytes], config: CleanConfig | None = None) -> tuple[Any, Any, Any]:
    """(kept by id, ledger rows by id, figures) of some pages."""
    (folder / "pages").mkdir(parents=True)
    for name, data in pages.items():
        (folder / "pages" / name).write_bytes(data)
    figures = clean_pages(config or CleanConfig(), folder / "pages", folder / "out", Console(silent=True))
    kept: dict[str, Document] = {d.id: d for d in cleaned_documents(folder / "out")}
    rows: dict[str, Dropped] = {r.doc_id: r for r in read_ledger(folder / "out" / "cleaned" / "ledger.parquet")}
    return kept, rows, figures


def test_labelled_pages_are_kept_or_dropped_by_the_right_rule(tmp_path: Path) -> None:
    kept, dropped, figures = cleaned(tmp_path, {name: data for name, (data, _) in LABELLED.items()})
    assert set(kept) | set(dropped) == set(LABELLED)
    assert len(kept) + len(dropped) == figures["data.pages"] == len(LABELLED)
    assert figures["data.kept"] == len(kept)
    for name, (_, rule) in LABELLED.items():
        if name in EITHER:
            continue
        if not rule:
            assert name in kept, dropped.get(name)
        elif rule == "any":
            assert name in dropped
        else:
            assert dropped[name].rule == rule
            assert figures[f"data.dropped.{rule}"] >= 1
    assert dropped["cookies.html"].value < dropped["cookies.html"].threshold == 50
    assert dropped["cookies.html"].excerpt.startswith("We use cookies.")
    [stays] = EITHER & set(kept)
    others = [dropped[name] for name in EITHER - {stays}]
    assert {row.rule for row in others} <= {"exact_duplicate", "near_duplicate"}
    assert {row.excerpt for row in others} <= EITHER
    assert kept["reference.html"].text.startswith("heapq.heappush(heap, item)")
    assert (kept["reference.html"].source, kept["reference.html"].lang) == ("pages", "en")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cleaned"]


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {name: data for name, (data, _) in LABELLED.items()}
    cleaned(tmp_path / "one", pages)
    (tmp_path / "two").mkdir()
    monkeypatch.setattr(cleaning, "TASKS_PER_WORKER", 1)
    monkeypatch.setattr(cleaning.Plan, "tasks", _single_files(cleaning.Plan.tasks))
    monkeypatch.setattr(cleaning.hardware, "cores", lambda: 2)
    clean_pages(CleanConfig(), tmp_path / "one" / "pages", tmp_path / "two" / "out", Console(silent=True))
    one, two = (list(cleaned_documents(tmp_path / name / "out")) for name in ("one", "two"))
    assert one == two


def _single_files(tasks: Any) -> Any:
    """Every file is a task of its own."""

    def cut(plan: Any) -> Any:
        return [type(task)((file,), 1) for task in tasks(plan) for file in task.files]

    return cut


def test_the_recipe_names_the_blocks(tmp_path: Path) -> None:
    pages = {name: data for name, (data, _) in LABELLED.items()}
    _, rows, _ = cleaned(tmp_path / "all", pages, CleanConfig(blocks=("extract",)))
    assert {row.rule for row in rows.values()} == {"empty", "not_text"}
    german = CleanConfig(blocks=("extract", {"language": {"keep": ["de"]}}))
    assert list(cleaned(tmp_path / "german", pages, german)[0]) == ["german.html"]
    near = CleanConfig(blocks=tuple(block for block in PAGE_BLOCKS if block != "exact_duplicates"))
    _, rows, _ = cleaned(tmp_path / "near", pages, near)
    assert [rows[name].rule for name in EITHER if name in rows] == ["near_duplicate"] * 2


def test_what_is_left_is_the_output_of_data_clean(tmp_path: Path) -> None:
    """`sekkei data report` and `why` read it; the same pages leave the same bytes elsewhere."""
    pages = {name: data for name, (data, _) in LABELLED.items()}
    for name in ("one", "two"):
        cleaned(tmp_path / name, pages)
    one, two = (atomic.sha256(tmp_path / name / "out" / "cleaned") for name in ("one", "two"))
    assert one == two
    summary = json.loads((tmp_path / "one" / "out" / "cleaned" / "summary.json").read_text())
    assert summary["input"] == "pages"
    assert [block["block"] for block in summary["blocks"]][:2] == ["extract", "language"]


def test_a_kill_between_cleaning_and_the_record_changes_nothing(tmp_path: Path) -> None:
    """The stage begins anew over what stands there whole."""
    pages = {name: data for name, (data, _) in LABELLED.items()}
    _, _, figures = cleaned(tmp_path, pages)
    before = atomic.sha256(tmp_path / "out" / "cleaned")
    again = clean_pages(CleanConfig(), tmp_path / "pages", tmp_path / "out", Console(silent=True))
    assert again == figures
    assert atomic.sha256(tmp_path / "out" / "cleaned") == before


def test_a_changed_page_has_another_digest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.html").write_bytes(b"a")
    before = pages_digest(tmp_path)
    (tmp_path / "sub" / "a.html").write_bytes(b"b")
    assert pages_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("pages", "match"),
    [
        (
            {f"{i}.html": page(f"{i} {COOKIES}") for i in range(3)},
            "all 3 pages.*'words' of the block reference; change",
        ),
        ({"g.html": paragraphs(GERMAN)}, "'language_de' of the block language; change it in data.clean.blocks"),
        ({"b.html": b"\x00\x01" * 99}, "'not_text'; data.pages.path"),
        ({"a.pdf": b"%PDF"}, "'read.unknown_format'; data.pages.path must name pages: HTML, text, WARC"),
    ],
)
def test_errors_name_the_rule_and_the_key(pages: dict[str, bytes], match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match) as caught:
        cleaned(tmp_path, pages)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        (("extract", {"language": {"keep": ["english"]}}), "language.keep: 'english' is not one of"),
        (("extract", {"language": {"min_probability": 1.5}}), "language.min_probability: 1.5 must lie in 0"),
        (({"extract": {"skip_elements": ["td..["]}},), "extract.skip_elements: "),
        (("extract", "near_duplicate"), "no block is named 'near_duplicate'; did you mean 'near_duplicates'?"),
        (("language",), "extract must stand first"),
    ],
)
def test_bad_configs(blocks: tuple[Any, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CleanConfig(blocks=blocks)
    assert told in str(caught.value)


def test_most_of_the_embedded_pages_survive_and_read_well(tmp_path: Path) -> None:
    render_pages(tmp_path / "pages", PagesConfig(modules="few"))
    figures = clean_pages(CleanConfig(), tmp_path / "pages", tmp_path / "out", Console(silent=True))
    assert figures["data.kept"] >= 0.9 * figures["data.pages"]
    text = {d.id: d.text for d in cleaned_documents(tmp_path / "out")}
    assert sum(map(len, text.values())) > 100_000
    assert "\n\nloads(s, *, cls=None" in text["json.html"]
    assert "Deserialize ``s`` (a ``str``, ``bytes`` or ``bytearray`` instance" in text["json.html"]
    assert text["topic.while.html"].startswith('The "while" statement\n*')
    assert not any("\t" in t or "\xa0" in t for t in text.values())


def test_a_run_is_looked_at_without_touching_it(copy: Path, call: Callable[..., tuple[int, str]]) -> None:
    """The report lies beside the artifact, which stays what its record says."""
    for folder in (copy, copy / "data" / "cleaned"):
        assert call("data", "report", folder, "--samples", "2")[0] == 0
        assert "From pages to documents" in (copy / "data-report.html").read_text()
        (copy / "data-report.html").unlink()
    assert call("data", "why", copy, "json.html")[0] == 0
    code, shown = call("run", "smoke", "--run-dir", copy, "--until", "tokenizer")
    assert code == 0, shown
    assert "data" in [line.split()[0] for line in shown.splitlines() if line.endswith(" reused")]
