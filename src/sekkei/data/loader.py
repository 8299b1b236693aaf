"""Which tokens stand in global row r: a pure function of (seed, r), so nothing needs to be replayed.

1. Which domain: row r falls at frac(r·φ + seed's offset) on [0, 1), cut by the mixture's ratios. Multiples of
   the golden ratio fill the interval evenly, so every stretch of rows holds the mixture. The first rows may have
   ratios of their own (the opening).
2. Which row of the domain: the k-th row of that domain over the run. A domain's documents are cut into
   pieces of at most one context, shuffled anew for each epoch, and packed window by window (best-fit
   decreasing inside a window of pieces), so a row holds whole pieces that do not see each other.

A resumed loader needs only the number of the next row. Ranks take disjoint rows of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.data.packing import pack
from sekkei.data.shards import Shard

GOLDEN = 0.6180339887498949
WINDOW = 256  # pieces packed together: rows are > 97% full, and shuffling stays fine-grained
MIN_PIECE = 8  # tokens; shorter tails of cut documents are left out


class DomainRows:
    """The endless rows of one domain."""

    def __init__(self, shard: Shard, name: str, context: int, seed: int) -> None:
        self.shard, self.name, self.context, self.seed = shard, name, context, seed
        starts = [np.arange(0, max(n - 1, 1), context) for n in shard.lengths]
        self.document = np.repeat(np.arange(len(shard)), [len(s) for s in starts])
        self.start = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        self.length = np.minimum(context, shard.lengths[self.document] - 1 - self.start)
        keep = (self.length >= MIN_PIECE) | ((self.start == 0) & (self.length >= 1))
        self.document, self.start, self.length = self.document[keep], self.start[keep], self.length[keep]
        self.first_row: list[int] = [0]  # of each epoch
        self.epochs: list[list[np.ndarray]] = []

    def row(self, index: int) -> list[Sample]:
        """Samples of the domain's row `index`, counted over all epochs."""
        while index >= self.first_row[-1]:
            self.epochs.append(self._epoch(len(self.epochs)))
            self.first_row.append(self.first_row[-1] + len(self.epochs[-1]))
        epoch = int(np.searchsorted(self.first_row, index, side="right")) - 1
        return [self._sample(piece) for piece in self.epochs[epoch][index - self.first_row[epoch]]]

    def passes(self, rows: int) -> float:
        """How often `rows` rows read the whole domain, in rows of the first pass."""
        self.row(0)
        return rows / self.first_row[1]

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.Generator(np.random.PCG64(derive_seed("rows", self.seed, self.name, epoch)))
        order = rng.permutation(len(self.length))
        rows = []
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            packed = pack(self.length[window].tolist(), self.context)
            rows += [window[packed[i]] for i in rng.permutation(len(packed))]
        return rows

    def _sample(self, piece: int) -> Sample:
        start = int(self.start[piece])
        ids = self.shard[int(self.document[piece])][start : start + int(self.length[piece]) + 1]
        return Sample(ids=ids.astype(np.int64))  # type: ignore[arg-type]


class MixtureLoader:
    """Rows of several domains in target ratios.

    Args:
        shards: by domain. mixture: domain -> share of rows, summing to 1. context: tokens per row.
        total_rows: rows that the whole stage will read.
        token_bytes: bytes of text per id; batches carry `extra["bytes"]` [B, T] for bits per byte.
        opening: the mixture of the first `opening_rows` rows.
        key: recipe path of the mixture, for errors.
    Raises:
        ConfigError: a domain has no text, or the shares do not sum to 1.
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        mixture: Mapping[str, float],
        context: int,
        total_rows: int,
        seed: int,
        token_bytes: Sequence[int],
        key: str = "mixture",
        opening: Mapping[str, float] | None = None,
        opening_rows: int = 0,
    ) -> None:
        check_mixture(mixture, key)
        self.context = context
        self.token_bytes = np.asarray(token_bytes, np.float32)
        parts = [(opening_rows, opening or mixture), (total_rows - opening_rows, mixture)]
        self.domains: list[DomainRows] = []
        for name in dict.fromkeys(name for _, part in parts for name, share in part.items() if share > 0):
            if name not in shards or not len(shards[name]):
                raise ConfigError(f"{key}.{name}", f"no such text; domains here: {', '.join(sorted(shards))}")
            rows = DomainRows(shards[name], name, context, seed)
            if not len(rows.length):
                raise ConfigError(f"{key}.{name}", "none of its documents has 2 tokens: there is nothing to predict")
            self.domains.append(rows)
        offset = derive_seed("mixture", seed) / 2**63
        place = (np.arange(total_rows) * GOLDEN + offset) % 1.0
        shares = np.array([[part.get(domain.name, 0.0) for domain in self.domains] for _, part in parts])
        bounds = np.repeat(np.cumsum(shares, axis=1)[:, :-1], [count for count, _ in parts], axis=0)
        self.choice = (place[:, None] >= bounds).sum(axis=1)  # which domain each row is of
        self.within = np.zeros(total_rows, np.int64)
        for domain in range(len(self.domains)):
            here = self.choice == domain
            self.within[here] = np.arange(int(here.sum()))

    def rows(self, first: int, count: int) -> list[list[Sample]]:
        """Samples of the global rows first … first + count - 1."""
        return [self.domains[self.choice[r]].row(int(self.within[r])) for r in range(first, first + count)]

    def batch(self, first: int, count: int) -> Batch:
        """The same as a batch of `count` rows."""
        batch = lay_out(self.rows(first, count), self.context)
        scored = batch.labels.clamp(min=0).numpy()
        sizes = torch.from_numpy(self.token_bytes[scored]) * (batch.labels >= 0)
        return batch.with_extra(bytes=sizes)

    def epochs(self, rows: int) -> dict[str, float]:
        """How often each domain has been read after `rows` rows of the mixture."""
        return {
            domain.name: domain.passes(int((self.choice[:rows] == i).sum())) for i, domain in enumerate(self.domains)
        }


def check_mixture(mixture: Mapping[str, float], key: str) -> None:
    """Shares are not negative and sum to 1."""
    total = sum(mixture.values())
    if not mixture or min(mixture.values()) < 0 or abs(total - 1) > 1e-6:
        raise ConfigError(key, f"shares {dict(mixture)} sum to {total:.4g}, must be >= 0 and sum to 1")
