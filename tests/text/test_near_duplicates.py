"""MinHash finds pairs as often as theory says, nothing else, and as datasketch does on the same hashes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sekkei.core.seed import derive_seed
from sekkei.text import dedup
from sekkei.text.blocks.block import Marks
from sekkei.text.blocks.duplicates import NearDuplicates
from sekkei.text.document import Document

CONFIG = NearDuplicates()
COMMON = 120  # shingles of a text


def pair(seed: int, edits: int) -> tuple[str, str]:
    """A text of numbered words and a copy with `edits` words changed at random places."""
    rng = random.Random(derive_seed("pairs of the test", seed, edits))
    words = [f"w{seed}x{i}" for i in range(COMMON + 4)]
    copy = list(words)
    for place in rng.sample(range(len(copy)), edits):
        copy[place] = f"v{seed}x{edits}x{place}"
    return " ".join(words), " ".join(copy)


def jaccard(a: str, b: str) -> float:
    one, two = dedup.shingles(a, CONFIG.ngram), dedup.shingles(b, CONFIG.ngram)
    both = len(np.intersect1d(one, two))
    return both / (len(one) + len(two) - both)


EDITS = (1, 2, 3, 4, 5, 6, 8)
Found = list[tuple[float, bool, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def found() -> Found:
    """(exact Jaccard, joined by our bands, both signatures) of 10,500 pairs."""
    pairs = [pair(seed, edits) for seed in range(1500) for edits in EDITS]
    rows = dedup.signatures([text for both in pairs for text in both], CONFIG.ngram, CONFIG.bands * CONFIG.rows)
    result = []
    for number, (a, b) in enumerate(pairs):
        one, two = rows[2 * number], rows[2 * number + 1]
        bands = (one.reshape(CONFIG.bands, -1) == two.reshape(CONFIG.bands, -1)).all(axis=1).any()
        result.append((jaccard(a, b), bool(bands), one, two))
    return result


def test_recall_per_bin_is_the_s_curve(found: Found) -> None:
    bins = 0
    for low in np.arange(0.4, 1.0, 0.1):
        inside = [(j, ours) for j, ours, _, _ in found if low <= j < low + 0.1]
        if len(inside) < 1000:
            continue
        bins += 1
        theory = np.mean([1 - (1 - j**CONFIG.rows) ** CONFIG.bands for j, _ in inside])
        recall = np.mean([ours for _, ours in inside])
        assert abs(recall - theory) < 0.03, (low, recall, theory)  # 1,300 pairs or more scatter by 0.013 at most
    assert bins >= 5
    high = [ours for j, ours, _, _ in found if j >= 0.9]
    assert len(high) > 1000
    assert np.mean(high) >= 0.98


def test_datasketch_agrees_on_the_same_signatures(found: Found) -> None:
    datasketch = pytest.importorskip("datasketch", reason="a development library")
    for _, ours, one, two in found[: 300 * len(EDITS)]:
        index = datasketch.MinHashLSH(num_perm=112, params=(CONFIG.bands, CONFIG.rows))
        index.insert("a", datasketch.MinHash(num_perm=112, hashvalues=one, scheme="legacy"))
        theirs = index.query(datasketch.MinHash(num_perm=112, hashvalues=two, scheme="legacy"))
        assert ours == bool(theirs)


def test_nothing_dissimilar_is_joined() -> None:
    texts = [text for seed in range(150) for text in (pair(seed, 1) if seed % 3 == 0 else pair(seed, 0)[:1])]
    documents = [Document(str(i), text, "test") for i, text in enumerate(texts)]
    order = np.stack([np.arange(len(texts)), np.zeros(len(texts), int)], axis=1).astype(np.uint64)
    [decision] = CONFIG.resolve([Marks(order, CONFIG.mark(documents), str)])
    pairs = zip(decision.places, decision.others, strict=True)
    right = sum(jaccard(texts[i], texts[int(kept)]) >= 0.7 for i, kept in pairs)
    assert len(decision.places) >= 49
    assert right / len(decision.places) >= 0.99
