"""Which sequences share a row: best-fit decreasing bin packing (Ding et al. 2024, "Fewer Truncations").

Longest first, each into the fullest row that still has room; ties go to the older row. O(n log n),
deterministic. It does not split sequences: what is longer than the row is the caller's to cut or refuse.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign sequences to rows.

    Args:
        lengths: tokens of each sequence, 1 <= length <= capacity.
        capacity: tokens per row.
    Returns:
        rows of indices into `lengths`; every index once, indices within a row ascending.
    Raises:
        ValueError: a length is out of range.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if not 1 <= length <= capacity:
            raise ValueError(f"sequence {index} has {length} tokens, a row holds 1 to {capacity}")
        slot = bisect.bisect_left(open_rows, (length, -1))
        if slot == len(open_rows):
            rows.append([index])
            room, row = capacity - length, len(rows) - 1
        else:
            room, row = open_rows.pop(slot)
            rows[row].append(index)
            room -= length
        if room:
            bisect.insort(open_rows, (room, row))
    return [sorted(row) for row in rows]
