"""Removing texts that say the same: equal ones by a hash, nearly equal ones by MinHash.

Near duplicates (Broder 1997; parameters of FineWeb, Penedo et al. 2024, section 3.3):

    words --5-grams--> shingles --112 hashes, minimum of each--> signature [112]
    signature = 14 bands of 8 rows; two texts that share a whole band are joined

The minimum of hash h is the same for two texts with probability J, their Jaccard similarity over
shingles; so a pair is joined with probability 1 - (1 - J^8)^14: 0.924 at J = 0.8, 0.999 at 0.9,
0.18 at 0.6. Joined pairs are closed to clusters by union-find, and of a cluster the text with the
smallest digest stays (`blocks/duplicates.py`). The outcome depends on the set of texts and not on their order.

The 112 hashes are h_i(x) = a_i * x + b_i mod 2^64 with odd a_i (Dietzfelbinger et al. 1997) of a well mixed
64-bit shingle hash. Where a script does not part words, each character is a word.

Not handled: repeated spans inside otherwise different texts (suffix arrays), translations, paraphrase.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from sekkei.core.seed import derive_seed
from sekkei.text.quality import UNSPACED

_WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
_MAX_KNOWN = 1_000_000  # words whose hashes are kept; some 150 MB
_CHUNK = 2048  # shingles hashed at once: 2048 × 112 × 8 bytes = 1.8 MB, which stays in the cache
_KNOWN: dict[str, int] = {}  # hashes of words, a pure function of each: shared by all calls of a process


def normalized(text: str) -> str:
    """Text with case, spacing and Unicode compatibility forms evened out."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def signatures(texts: Sequence[str], ngram: int, count: int) -> np.ndarray:
    """MinHash signatures over word n-grams, [len(texts), count] uint64; a pure function of each text."""
    draws = np.array([[derive_seed("minhash", i, part) for part in ("a", "b")] for i in range(count)], np.uint64)
    a, b = (draws[:, 0] << np.uint64(1)) | np.uint64(1), draws[:, 1]
    result = np.empty((len(texts), count), dtype=np.uint64)
    for index, text in enumerate(texts):
        marks = shingles(text, ngram)
        minimum = np.full(count, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(marks), _CHUNK):
            hashed = marks[start : start + _CHUNK, None] * a + b  # wraps at 2^64: that is the modulus
            np.minimum(minimum, hashed.min(axis=0), out=minimum)
        result[index] = minimum
    return result


def shingles(text: str, ngram: int) -> np.ndarray:
    """The set of a text's word n-grams as sorted 64-bit hashes, [S] uint64, S ≥ 1.

    A text of fewer words than `ngram` is one shingle.
    """
    marks = word_marks(words_of(text))
    width = max(1, min(ngram, len(marks)))
    total = np.zeros(max(1, len(marks) - width + 1), dtype=np.uint64)
    if len(marks):
        for shift in range(width):  # a polynomial in an odd base, so that word order counts
            total = total * np.uint64(0x9E3779B97F4A7C15) + marks[shift : shift + len(total)]
    return np.unique(mixed(total))


def words_of(text: str) -> list[str]:
    """Words in lower case and compatibility form, without punctuation; each character of an unspaced script is one."""
    return _WORD.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).lower())


def word_marks(words: Sequence[str]) -> np.ndarray:
    """[W] uint64: 64 bits of BLAKE2b of each word."""
    if len(_KNOWN) > _MAX_KNOWN:
        _KNOWN.clear()
    for word in set(words).difference(_KNOWN):
        _KNOWN[word] = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest())
    return np.fromiter(map(_KNOWN.__getitem__, words), dtype=np.uint64, count=len(words))


def mixed(z: np.ndarray) -> np.ndarray:
    """MurmurHash3's 64-bit finaliser (Appleby 2011): every input bit reaches every output bit."""
    z = (z ^ (z >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    z = (z ^ (z >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return z ^ (z >> np.uint64(33))


def band_hashes(rows: np.ndarray) -> np.ndarray:
    """[N, R] minima of one band -> [N] uint64: equal for equal bands, and for others with probability 2^-64."""
    total = np.zeros(len(rows), dtype=np.uint64)
    for column in range(rows.shape[1]):
        total = mixed(total * np.uint64(0x9E3779B97F4A7C15) + rows[:, column])
    return total


def join_equal(parent: np.ndarray, keys: np.ndarray) -> None:
    """Union-find over texts whose keys are equal.

    Args:
        parent: [N] int64, the forest, changed in place: `parent[i] <= i`, so the root of a cluster is its first text.
        keys: [N, K] uint64.
    """
    order = np.lexsort(keys.T[::-1])
    same = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    for left, right in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        a, b = _root(parent, left), _root(parent, right)
        if a != b:
            parent[max(a, b)] = min(a, b)


def roots(parent: np.ndarray) -> np.ndarray:
    """[N] root of every text; `parent` is flattened in place."""
    while not np.array_equal(above := parent[parent], parent):
        parent[:] = above
    return parent


def _root(parent: np.ndarray, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]  # halve the path
        index = int(parent[index])
    return index
