"""Which blocks of the key/value store are free, held or kept for later. Plain Python, no tensors.

    take()  ──> held (refs >= 1) ──release──> refs 0 ──┬── has a digest: kept, oldest first out
     ^             ^       hold / find ────────────────┘
     └── free: lowest id first (live blocks stay close together), else the oldest kept one is given up

A full block of tokens is named by a digest of everything up to its end,

    digest_i = blake2b(digest_{i-1} | tokens of block i),

so two sequences that begin with the same tokens find each other's blocks, whoever came first (the prefix
caching of Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention",
section 4.4). 16-byte digests: a collision would mix up two prompts, so Python's `hash` would not do.

It does not handle which sequence gets a block (scheduler.py) or what a block holds (cache.py).
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Sequence


def chain_digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """Name of a full block: of its tokens and, through `before`, of all that stand before it."""
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=16, key=before).digest()


class BlockPool:
    """`count` blocks of `size` tokens each.

    Attributes:
        refs: by block, how many sequences hold it.
        used: blocks below this id have been taken at least once.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.refs = [0] * count
        self.used = 0
        self._digest: list[bytes | None] = [None] * count
        self._by_digest: dict[bytes, int] = {}
        self._free = list(range(count))  # a heap
        self._kept: OrderedDict[int, None] = OrderedDict()  # refs 0 and a digest, oldest first

    @property
    def available(self) -> int:
        """Blocks that `take` can still give."""
        return len(self._free) + len(self._kept)

    @property
    def held(self) -> int:
        """Blocks that some sequence holds."""
        return self.count - self.available

    def take(self) -> int:
        """A block for new content, held once.

        Raises:
            IndexError: none is available; ask `available` first.
        """
        if self._free:
            block = heapq.heappop(self._free)
        elif self._kept:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
        else:
            raise IndexError("no block is available")
        self.refs[block] = 1
        self.used = max(self.used, block + 1)
        return block

    def hold(self, block: int) -> None:
        """One more holder of a block that is held or kept."""
        if self.refs[block] == 0:
            del self._kept[block]
        self.refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each, the last first: of a prefix, the end is given up before the beginning."""
        for block in reversed(blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                if self._digest[block] is None:
                    heapq.heappush(self._free, block)
                else:
                    self._kept[block] = None

    def seal(self, block: int, digest: bytes) -> None:
        """A held block is full and will not change; the first of several equal ones gets the name."""
        if digest not in self._by_digest:
            self._by_digest[digest] = block
            self._digest[block] = digest

    def find(self, digest: bytes) -> int | None:
        """The block of that content, held or kept."""
        return self._by_digest.get(digest)

    def forget_all(self) -> None:
        """The weights have changed: no block can be found any more."""
        for block in list(self._kept):
            heapq.heappush(self._free, block)
        self._kept.clear()
        self._by_digest.clear()
        self._digest = [None] * self.count

    def _forget(self, block: int) -> None:
        digest = self._digest[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digest[block] = None
