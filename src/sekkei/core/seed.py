"""Random numbers as pure functions of names and counters, so that nothing has to be saved or replayed.

`derive_seed("laptop", 0, "sft", step)` is a 63-bit hash of its parts. `uniform(seeds, counter)` gives
one number in [0, 1) per seed: a counter-based generator (SplitMix64, Steele et al. 2014), so the
n-th draw of a sequence does not depend on which other sequences ran beside it.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from any mix of names and numbers; the same parts give the same seed everywhere."""
    data = json.dumps(parts, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def uniform(seeds: np.ndarray, counter: np.ndarray | int) -> np.ndarray:
    """Draw number `counter` of each seed's own stream.

    Args:
        seeds: [N] uint64 or int64.
        counter: index of the draw, one for all or [N].
    Returns:
        [N] float64 in [0, 1).
    """
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        z = _mix(seeds.astype(np.uint64)) + (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * golden
        return (_mix(z) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
