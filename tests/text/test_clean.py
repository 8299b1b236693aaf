from __future__ import annotations

import random

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.text.clean import CleanConfig, clean
from sekkei.text.dedup import DedupConfig
from sekkei.text.document import Document
from sekkei.text.quality import QualityConfig

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


def test_labelled_pages_are_kept_or_dropped_by_the_right_rule() -> None:
    documents, ledger = clean([(name, data) for name, (data, _) in LABELLED.items()], CleanConfig())
    kept, dropped = {d.id: d for d in documents}, {row.doc_id: row for row in ledger}
    assert set(kept) | set(dropped) == set(LABELLED)
    assert len(kept) + len(dropped) == len(documents) + len(ledger) == len(LABELLED)
    for name, (_, rule) in LABELLED.items():
        if not rule:
            assert name in kept, dropped.get(name)
        elif rule == "any":
            assert name in dropped
        else:
            assert dropped[name].rule == rule
    assert dropped["cookies.html"].value < dropped["cookies.html"].threshold == 50
    assert dropped["cookies.html"].excerpt.startswith("We use cookies.")
    assert dropped["cookies.html"].end == len(dropped["cookies.html"].excerpt)
    assert dropped["copy.html"].excerpt == "article.html"  # the page that was kept instead
    assert dropped["edited.html"].excerpt == "article.html"
    assert kept["article.html"].text.startswith("The heron stands")
    assert (kept["article.html"].source, kept["article.html"].lang) == ("pages", "en")


def test_the_order_of_pages_does_not_matter() -> None:
    pages = [(name, data) for name, (data, _) in LABELLED.items()]
    assert clean(pages, CleanConfig()) == clean(iter(reversed(pages)), CleanConfig())


def test_switches_do_what_they_say() -> None:
    pages = [(name, data) for name, (data, _) in LABELLED.items()]
    everything = CleanConfig(
        languages=(),
        min_language_probability=0,
        quality=QualityConfig(enabled=False),
        dedup=DedupConfig(exact=False, near=False),
    )
    _, ledger = clean(pages, everything)
    assert {row.rule for row in ledger} == {"empty", "not_text"}
    german = CleanConfig(languages=("de",), quality=QualityConfig(enabled=False))
    assert [d.id for d in clean(pages, german)[0]] == ["german.html"]
    one = [d for d in clean(pages, CleanConfig(dedup=DedupConfig(exact=False)))[1] if d.doc_id == "copy.html"]
    assert one[0].rule == "near_duplicate"


def test_a_probability_limit_names_itself() -> None:
    with pytest.raises(UserError, match=r"'language_probability'; change data.clean.min_language_probability"):
        clean([("a.html", paragraphs(GERMAN))], CleanConfig(languages=(), min_language_probability=1.0))


def test_progress_counts_every_page() -> None:
    calls: list[tuple[str, int, int]] = []
    pages = [(name, data) for name, (data, _) in LABELLED.items()]
    clean(pages, CleanConfig(), lambda *call: calls.append(call))
    assert [c for c in calls if c[0] == "filter"][-1] == ("filter", len(LABELLED), len(LABELLED))
    near = [c for c in calls if c[0] == "near duplicates"]
    assert near[-1][1] == near[-1][2] > 0


@pytest.mark.parametrize(
    ("pages", "match"),
    [
        ([], "no pages.*data.pages.path"),
        ([("a", b"x")] * 2, "two pages are named 'a'"),
        ([(str(i), page(COOKIES)) for i in range(3)], "all 3 pages.*'words'; change data.clean.quality.min_words=50"),
        ([("g", paragraphs(GERMAN))], "'language_de'; change data.clean.languages"),
        ([("b", b"\x00\x01" * 99)], "'not_text'; data.pages.path"),
    ],
)
def test_errors_name_the_rule_and_the_key(pages: list[tuple[str, bytes]], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        clean(pages, CleanConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"languages": ("english",)}, "languages"),
        ({"min_language_probability": 1.5}, "min_language_probability"),
        ({"skip_elements": ("td..[",)}, "skip_elements"),
    ],
)
def test_bad_configs(values: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CleanConfig(**values)  # type: ignore[arg-type]
    assert caught.value.key == key


def test_documents_are_plain_values() -> None:
    assert Document("a", "b", "c") == Document("a", "b", "c")
