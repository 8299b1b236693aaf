from __future__ import annotations

import random

import numpy as np
import pytest

from sekkei.core.errors import ConfigError
from sekkei.text.blocks.block import Marks
from sekkei.text.blocks.duplicates import ExactDuplicates, NearDuplicates
from sekkei.text.dedup import shingles, signatures
from sekkei.text.document import Document

NEAR = NearDuplicates()
WORDS = [f"w{i}" for i in range(5000)]


def pair(seed: int, edits: int, length: int = 300) -> tuple[str, str]:
    """Two texts; the second has `edits` words replaced at random places."""
    rng = random.Random(seed)
    first = rng.choices(WORDS, k=length)
    second = list(first)
    for place in rng.sample(range(length), edits):
        second[place] = f"x{rng.getrandbits(40)}"
    return " ".join(first), " ".join(second)


def jaccard(a: str, b: str, n: int = 5) -> float:
    sets = [{tuple(t.split()[i : i + n]) for i in range(len(t.split()) - n + 1)} for t in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def dropped(block: ExactDuplicates | NearDuplicates, texts: dict[str, str]) -> dict[str, tuple[str, float]]:
    """Which of the texts go, by id: (the text that stays instead, what was measured)."""
    documents = [Document(name, text, "test") for name, text in texts.items()]
    order = np.frombuffer(b"".join(f"{name:>16}".encode() for name in texts), dtype=">u8").reshape(-1, 2)
    [decision] = block.resolve([Marks(order.astype(np.uint64), block.mark(documents), list(texts).__getitem__)])
    rows = [row for place, document in enumerate(documents) for row in block.apply(document, place, decision)[1]]
    return {row.doc_id: (row.excerpt, row.value) for row in rows}


def test_signatures_estimate_jaccard() -> None:
    errors = []
    for seed in range(40):
        a, b = pair(seed, edits=seed // 2)
        rows = signatures([a, b], NEAR.ngram, NEAR.bands * NEAR.rows)
        errors.append((rows[0] == rows[1]).mean() - jaccard(a, b))
    assert abs(np.mean(errors)) < 0.02  # unbiased
    assert np.sqrt(np.mean(np.square(errors))) < 0.05  # sqrt(J(1-J)/112) ≤ 0.047


@pytest.mark.parametrize(("edits", "low", "high"), [(1, 0.97, 1.0), (3, 0.85, 1.0), (40, 0.0, 0.05), (10, 0.2, 0.9)])
def test_found_as_often_as_the_formula_says(edits: int, low: float, high: float) -> None:
    found, expected = [], []
    for seed in range(60):
        a, b = pair(seed, edits)
        expected.append(1 - (1 - jaccard(a, b) ** NEAR.rows) ** NEAR.bands)
        found.append(bool(dropped(NEAR, {"a": a, "b": b})))
    assert low <= np.mean(found) <= high
    assert abs(np.mean(found) - np.mean(expected)) < 0.16  # about 2.5 standard errors


def test_clusters_are_closed_and_keep_the_smallest() -> None:
    a, b = pair(1, 4)
    words = b.split()
    for place in (5, 90, 170, 260):
        words[place] = f"y{place}"
    c = " ".join(words)  # near b, further from a
    other, _ = pair(2, 0)
    texts = {"m": b, "z": a, "k": c, "o": other}
    first = dropped(NEAR, texts)
    for order in (["o", "k", "z", "m"], ["z", "o", "m", "k"]):
        assert dropped(NEAR, {name: texts[name] for name in order}) == first
    assert {name: kept for name, (kept, _) in first.items()} == {"m": "k", "z": "k"}
    assert first["m"][1] > first["z"][1]  # c was made from b


def test_exact_duplicates_look_through_case_spacing_and_form() -> None:
    texts = {"c": "The  Cat\n sat", "b": "the cat sat", "a": "ｔｈｅ cat sat", "d": "the cat sat down"}
    assert dropped(ExactDuplicates(), texts) == {"c": ("a", 1.0), "b": ("a", 1.0)}


def test_order_of_words_counts_and_short_texts_work() -> None:
    words = [f"v{i}" for i in range(100)]
    assert not dropped(NEAR, {"a": " ".join(words), "b": " ".join(reversed(words))})
    assert dropped(NEAR, {"a": "hello world", "b": "Hello, world!"}) == {"b": ("a", 1.0)}
    assert not dropped(NEAR, {"a": "hello world", "b": "hello"})
    assert len(shingles("", 5)) == 1
    assert dropped(NEAR, {}) == {}


def test_unspaced_text_has_more_than_one_shingle() -> None:
    assert len(shingles("吾輩は猫である名前はまだ無い", 5)) == 10


@pytest.mark.parametrize("key", ["ngram", "bands", "rows"])
def test_bad_numbers(key: str) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        NearDuplicates(**{key: 0})
