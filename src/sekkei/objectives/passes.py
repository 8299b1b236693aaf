"""Passes over a fixed set of examples: every example once per pass, in an order drawn anew for each.

Example number i of the stage is a pure function of (seed, i), so the only state is the next number. It does not handle
sets that grow while they are read.
"""

from __future__ import annotations

import random

from sekkei.core.seed import derive_seed


class Passes:
    """Indices into `size` examples, without end.

    Args:
        name: of what is read; part of the seed.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.order: list[int] = []
        self.order_of: tuple[int, int] | None = None

    def index(self, seed: int, number: int) -> int:
        """Which example is number `number` of the stage with this seed."""
        epoch, within = divmod(number, self.size)
        if self.order_of != (seed, epoch):
            self.order = list(range(self.size))
            random.Random(derive_seed(self.name, seed, epoch)).shuffle(self.order)
            self.order_of = (seed, epoch)
        return self.order[within]
