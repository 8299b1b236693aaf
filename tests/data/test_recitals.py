"""Recitals: a passage of real text, said again so that it becomes the same tokens."""

from __future__ import annotations

import random

import pytest

from sekkei.core.errors import UserError
from sekkei.data.recitals import LONGEST, SHORTEST, TIMES, recital, recitals
from sekkei.text.document import Document

WORDS = "the model reads what stands before and says it again with every comma, word and line in its place"
TEXT = " ".join(f"{word} {i}" for i in range(40) for word in WORDS.split())


def repeats(text: str) -> list[int]:
    return [times for times in TIMES if len(text) % times == 0 and text == text[: len(text) // times] * times]


def test_a_recital_is_a_passage_of_the_text_said_again() -> None:
    times, lengths = set(), []
    for seed in range(300):
        said = recital(random.Random(seed), TEXT)
        found = repeats(said)
        assert found, said
        passage = said[: len(said) // found[-1]]
        assert passage in TEXT
        assert passage[0] == " "  # begins as it goes on: the same tokens each time
        times.add(found[-1])
        lengths.append(len(passage))
    assert times == set(TIMES)
    assert max(lengths) <= LONGEST
    assert min(lengths) < 2 * SHORTEST
    assert max(lengths) > LONGEST / 2  # no single distance that a head could learn instead of looking


def test_text_without_breaks_still_gives_a_recital() -> None:
    assert repeats(recital(random.Random(0), "x" * (LONGEST + 1)))


def test_recitals_are_a_function_of_seed_and_number() -> None:
    documents = [Document(id="a", text=TEXT, source="t"), Document(id="b", text="short", source="t")]
    few, many = recitals(documents, 20, 3), recitals(documents, 50, 3)
    assert [d.text for d in few] == [d.text for d in many[: len(few)]]
    assert len({d.text for d in many}) == len(many)
    assert [d.text for d in recitals(documents, 20, 4)] != [d.text for d in few]


def test_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match=f"more than {LONGEST} characters"):
        recitals([Document(id="a", text="short", source="t")], 5, 0)
