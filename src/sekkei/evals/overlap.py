"""Contamination: which evaluation items stand, in part, in what the model was trained on.

    item ──13-grams of words──> found in a training document?  -> the item overlaps        Brown et al. 2020, appendix C

Words are compared without case and punctuation; where a script does not part words each character counts as one, and
n is 40. Items shorter than n are looked for as a whole from 8 words on, still shorter ones cannot be told from
chance and are counted apart. n-grams that several items share are templates of the benchmark and do not count: the
same rules as text/blocks/decontaminate.py, which drops such documents before training. Here they are only counted.

What it does not handle: rewordings and translations, and text that the model saw elsewhere (a checkpoint that was
trained by others): then the answer is "unknown", not "none".

Shapes: `W` words of a text, `G` n-grams.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sekkei.text.dedup import word_marks
from sekkei.text.quality import UNSPACED
from sekkei.tools.statistics import wilson

NGRAM, NGRAM_UNSPACED, MIN_WORDS = 13, 40, 8
EXAMPLES = 5
_WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def unknown(why: str) -> dict[str, Any]:
    """What a result file says where nobody can know."""
    return {"overlap": "unknown", "why": why}


def overlap(texts: Sequence[Sequence[str]], documents: Iterable[str], against: str) -> dict[str, Any]:
    """How many items share an n-gram with a document.

    Args:
        texts: of each item, one or several. documents: of training, read once. against: what they are, for the file.
    Returns:
        plain JSON values: "items", "overlapping", "share" with "low" and "high", "too_short", "places" (numbers of
        the overlapping items) and "examples" (item, words).
    """
    grams: dict[int, dict[int, tuple[int, str]]] = {}  # n -> hash -> (item, words); item -1: several items have it
    checked = set()
    for item, parts in enumerate(texts):
        for text in parts:
            words = _words(text)
            if len(words) < MIN_WORDS:
                continue
            checked.add(item)
            n = min(NGRAM_UNSPACED if 2 * len(_UNSPACED.findall(text)) > len(text) else NGRAM, len(words))
            known = grams.setdefault(n, {})
            for start, gram in enumerate(_ngrams(words, n).tolist()):
                owner = known.get(gram, (item, ""))[0]
                known[gram] = (item if owner == item else -1, " ".join(words[start : start + n]))
    tables = {n: np.array(sorted(known), dtype=np.uint64) for n, known in grams.items()}
    hits: dict[int, str] = {}
    for document in documents:
        words = _words(document)
        for n, table in tables.items():
            if len(words) < n:
                continue
            for gram in np.intersect1d(_ngrams(words, n), table).tolist():
                owner, shown = grams[n][gram]
                if owner >= 0:
                    hits.setdefault(owner, shown)
    low, high = wilson(len(hits), len(texts))
    return {
        "against": against,
        "ngram": NGRAM,
        "items": len(texts),
        "overlapping": len(hits),
        "share": len(hits) / len(texts),
        "low": low,
        "high": high,
        "too_short": len(texts) - len(checked),
        "places": sorted(hits),
        "examples": [{"item": item, "words": hits[item]} for item in sorted(hits)[:EXAMPLES]],
    }


def _words(text: str) -> list[str]:
    return [unicodedata.normalize("NFKC", word).lower() for word in _WORD.findall(text)]


def _ngrams(words: Sequence[str], n: int) -> np.ndarray:
    """[G] uint64: a hash of every n words in a row."""
    marks = word_marks(words)
    total = np.zeros(len(marks) - n + 1, dtype=np.uint64)
    for shift in range(n):
        total = total * _BASE + marks[shift : shift + len(total)]
    return total
