"""How often documents are read: a cap on passes per source, and long documents more often than short ones.

    share asked    docs .50   code .50          the stage reads 1,000 rows, a pass over docs has 100
    max_epochs     docs 4                       docs gives 400 rows: share .40, from the first row on
    share given    docs .40   code .60          what a source may not give, the others give in proportion

Four passes over the same text cost almost nothing, sixteen little is left of their worth (Muennighoff et al. 2023,
"Scaling Data-Constrained Language Models", section 6): a cap keeps a small source from being learned by heart where
the mixture would ask for it too often. A stage that extends the context has need of texts that fill it; in a corpus
they are few (Fu et al. 2024, "Data Engineering for Scaling Language Models to 128K Context", up-sample them within each
source, so that the mixture of sources stays as it is).

Not handled: weights per document other than by length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sekkei.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How often the documents of a stage are read.

    Args:
        max_epochs: source -> most passes over it in this stage; sources that are not named have no cap.
        long_tokens: documents of at least so many tokens are long; 0 = none is.
        long_times: how often a pass reads a long document (2.5: two times and three times in turn).
    """

    max_epochs: dict[str, float] = field(default_factory=dict)
    long_tokens: int = 0
    long_times: float = 1.0

    def __post_init__(self) -> None:
        for name, passes in self.max_epochs.items():
            if passes <= 0:
                raise ConfigError(f"max_epochs.{name}", f"got {passes:g}, must be > 0")
        if self.long_tokens < 0:
            raise ConfigError("long_tokens", f"got {self.long_tokens}, must be >= 0 (0 = no document is long)")
        if self.long_times < 1:
            raise ConfigError("long_times", f"got {self.long_times:g}, must be >= 1 (1 = as often as the others)")
        if (self.long_times > 1) != (self.long_tokens > 0):
            raise ConfigError("long_tokens", f"{self.long_tokens} and long_times={self.long_times:g} go together")

    def reads(self, lengths: np.ndarray, epoch: int) -> np.ndarray:
        """[D] how often pass `epoch` (from 0) reads documents of `lengths` [D] tokens."""
        times = int(self.long_times * (epoch + 1)) - int(self.long_times * epoch)
        return np.where(lengths >= self.long_tokens, times, 1) if self.long_tokens else np.ones(len(lengths), np.int64)


def capped(
    shares: Sequence[float], rows: int, limit: Callable[[int, int], int], names: Sequence[str], key: str
) -> list[float]:
    """Shares that no source's cap refuses.

    Args:
        shares: of the sources, summing to 1. rows: that are to be dealt out.
        limit: limit(source, wanted) -> rows that the source may give, at most `wanted`.
        key: recipe path for the error.
    Raises:
        ConfigError: all sources together may not give `rows` rows.
    """
    given = np.array(shares, float)
    full: dict[int, int] = {}  # sources at their cap -> rows they give
    while True:
        more = {}
        for i, share in enumerate(given):
            wanted = int(np.ceil(share * rows))
            if i not in full and share > 0 and (may := limit(i, wanted)) < wanted:
                more[i] = may
        if not more:
            return given.tolist()
        full |= more
        left = rows - sum(full.values())
        free = [i for i in range(len(given)) if i not in full]
        asked = sum(shares[i] for i in free)
        if asked <= 0 < left:
            told = ", ".join(f"{names[i]} {count:,}" for i, count in sorted(full.items()))
            raise ConfigError(key, f"lets {rows - left:,} of {rows:,} rows be read ({told}); raise a cap")
        for i in range(len(given)):
            given[i] = full[i] / rows if i in full else shares[i] / asked * left / rows


def within(choice: np.ndarray, limits: Sequence[int]) -> None:
    """Give the few rows by which even filling passes a source's limit to the sources with most room, in place.

    Args:
        choice: [R] the source of each row. limits: rows that each source may give; they sum to R at least.
    """
    counts = np.bincount(choice, minlength=len(limits))
    for source, limit in enumerate(limits):
        for row in np.flatnonzero(choice == source)[limit:]:
            room = np.array(limits) - counts
            room[source] = -1
            other = int(room.argmax())
            assert room[other] > 0  # `capped` saw that the sources can give all rows
            choice[row] = other
            counts[source] -= 1
            counts[other] += 1
