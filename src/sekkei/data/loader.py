"""Which tokens stand in global row r: a pure function of (seed, r), so nothing needs to be replayed.

1. Which domain: row r falls at frac(r·φ + seed's offset) on [0, 1), cut by the mixture's ratios. Multiples of
   the golden ratio fill the interval evenly, so every stretch of rows holds the mixture. The first rows may have
   ratios of their own (the opening).
2. Which row of the domain: the k-th row of that domain over the run. A domain's documents are cut into
   pieces of at most one context, shuffled anew for each epoch, and packed window by window (best-fit
   decreasing inside a window of pieces), so a row holds whole pieces that do not see each other.

A resumed loader needs only the number of the next row; `state` writes out what that means (where each source stands:
epoch, shard, document, offset) beside a fingerprint of everything that decides the rows, and `resume` refuses a state
of other data. Ranks take disjoint rows of a step (train/deal.py), so the union is the same at every world size.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.data.packing import pack
from sekkei.data.sampling import SamplingConfig, capped, within
from sekkei.data.shards import Shard

GOLDEN = 0.6180339887498949
WINDOW = 256  # pieces packed together: rows are > 97% full, and shuffling stays fine-grained
MIN_PIECE = 8  # tokens; shorter tails of cut documents are left out
AS_THEY_ARE = SamplingConfig()


class DomainRows:
    """The endless rows of one domain; `sampling` says how often long documents are read in a pass."""

    def __init__(
        self, shard: Shard, name: str, context: int, seed: int, sampling: SamplingConfig = AS_THEY_ARE
    ) -> None:
        self.shard, self.name, self.context, self.seed, self.sampling = shard, name, context, seed, sampling
        starts = [np.arange(0, max(n - 1, 1), context) for n in shard.lengths]
        self.document = np.repeat(np.arange(len(shard)), [len(s) for s in starts])
        self.start = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        self.length = np.minimum(context, shard.lengths[self.document] - 1 - self.start)
        keep = (self.length >= MIN_PIECE) | ((self.start == 0) & (self.length >= 1))
        self.document, self.start, self.length = self.document[keep], self.start[keep], self.length[keep]
        self.first_row: list[int] = [0]  # of each epoch
        self.epochs: list[list[np.ndarray]] = []
        self._lock = threading.Lock()  # rows may be read ahead while others ask where they stand

    def row(self, index: int) -> list[Sample]:
        """Samples of the domain's row `index`, counted over all epochs."""
        return [self._sample(piece) for piece in self._pieces(index)[1]]

    def place(self, index: int) -> dict[str, Any]:
        """Where row `index` begins: epoch, shard file, document in it, offset in the document (in tokens)."""
        epoch, pieces = self._pieces(index)
        shard, document = self.shard.place(int(self.document[pieces[0]]))
        return {"epoch": epoch, "shard": shard, "document": document, "offset": int(self.start[pieces[0]])}

    def limit(self, wanted: int) -> int:
        """Rows of at most `wanted` that the domain may give before its cap of passes is reached."""
        passes = self.sampling.max_epochs.get(self.name)
        if passes is None:
            return wanted
        whole, rest = divmod(passes, 1)
        while len(self.epochs) <= whole and self.first_row[-1] < wanted:
            self._next_epoch()
        if len(self.epochs) <= whole:
            return wanted
        first = self.first_row[int(whole)]
        return min(wanted, first + int(rest * len(self.epochs[int(whole)])))

    def passes(self, rows: int) -> float:
        """How often `rows` rows read the whole domain, in rows of the first pass."""
        self.row(0)
        return rows / self.first_row[1]

    def _pieces(self, index: int) -> tuple[int, np.ndarray]:
        """(epoch, pieces) of row `index`."""
        with self._lock:
            while index >= self.first_row[-1]:
                self._next_epoch()
            epoch = bisect.bisect_right(self.first_row, index) - 1
        return epoch, self.epochs[epoch][index - self.first_row[epoch]]

    def _next_epoch(self) -> None:
        self.epochs.append(self._epoch(len(self.epochs)))
        self.first_row.append(self.first_row[-1] + len(self.epochs[-1]))

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.Generator(np.random.PCG64(derive_seed("rows", self.seed, self.name, epoch)))
        reads = self.sampling.reads(self.shard.lengths[self.document], epoch)
        order = rng.permutation(np.repeat(np.arange(len(self.length)), reads))
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
        sampling: caps on passes, and how often long documents are read.
        key: recipe path of the mixture, for errors.
    Raises:
        ConfigError: a domain has no text, the shares do not sum to 1, or caps leave too little to read.
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
        sampling: SamplingConfig = AS_THEY_ARE,
    ) -> None:
        check_mixture(mixture, key)
        self.context, self.sampling = context, sampling
        self.token_bytes = np.asarray(token_bytes, np.float32)
        parts = [(opening_rows, opening or mixture), (total_rows - opening_rows, mixture)]
        self.domains: list[DomainRows] = []
        for name in dict.fromkeys(name for _, part in parts for name, share in part.items() if share > 0):
            if name not in shards or not len(shards[name]):
                raise ConfigError(f"{key}.{name}", f"no such text; domains here: {', '.join(sorted(shards))}")
            rows = DomainRows(shards[name], name, context, seed, sampling)
            if not len(rows.length):
                raise ConfigError(f"{key}.{name}", "none of its documents has 2 tokens: there is nothing to predict")
            self.domains.append(rows)
        for name in sampling.max_epochs:
            if name not in shards:
                raise ConfigError(f"sampling.max_epochs.{name}", f"no such text; domains here: {', '.join(shards)}")
        self.choice = self._choose(parts, seed)  # which domain each row is of
        self.within = np.zeros(total_rows, np.int64)
        for domain in range(len(self.domains)):
            here = self.choice == domain
            self.within[here] = np.arange(int(here.sum()))
        decides: dict[str, Any] = {"context": context, "seed": seed}
        decides["mixture"] = [[opening_rows, list((opening or mixture).items())], list(mixture.items())]
        decides["sampling"] = [vars(sampling), total_rows if sampling.max_epochs else None]
        decides |= {f"source {domain.name}": domain.shard.digest() for domain in self.domains}
        self.fingerprint = {name: atomic.sha256_json(value)[:16] for name, value in decides.items()}

    def _choose(self, parts: Sequence[tuple[int, Mapping[str, float]]], seed: int) -> np.ndarray:
        """[R] the domain of each row."""
        total = sum(count for count, _ in parts)
        place = (np.arange(total) * GOLDEN + derive_seed("mixture", seed) / 2**63) % 1.0
        names = [domain.name for domain in self.domains]
        shares = [[part.get(name, 0.0) for name in names] for _, part in parts]
        if self.sampling.max_epochs:
            (opening, _), (rest, _) = parts
            used = [int(np.ceil(share * opening)) for share in shares[0]]

            def limit(source: int, wanted: int) -> int:
                return max(0, self.domains[source].limit(wanted + used[source]) - used[source])

            for source, count in enumerate(used):
                if (may := self.domains[source].limit(count)) < count:
                    at = f"sampling.max_epochs.{names[source]}"
                    raise ConfigError(at, f"lets {may:,} rows be read, the opening alone asks for {count:,}")
            shares[1] = capped(shares[1], rest, limit, names, "sampling.max_epochs")
        bounds = np.repeat(np.cumsum(shares, axis=1)[:, :-1], [count for count, _ in parts], axis=0)
        choice = (place[:, None] >= bounds).sum(axis=1)
        if self.sampling.max_epochs:
            counts = np.bincount(choice, minlength=len(names)).tolist()
            within(choice, [d.limit(total) if s > 0 else n for d, s, n in zip(self.domains, shares[1], counts)])
        return choice

    @property
    def total_rows(self) -> int:
        """Rows that the whole stage will read."""
        return len(self.choice)

    def state(self, row: int) -> dict[str, Any]:
        """Everything that a resume before global row `row` needs, and says of itself; plain data."""
        counts = np.bincount(self.choice[:row], minlength=len(self.domains))
        sources = {domain.name: domain.place(int(count)) for domain, count in zip(self.domains, counts)}
        return {"row": row, "sources": sources, "fingerprint": self.fingerprint}

    def resume(self, state: Mapping[str, Any], key: str = "mixture") -> int:
        """The global row that a `state` stands before.

        Raises:
            UserError: it was written over other data, or with another mixture, context or seed.
        """
        before = state["fingerprint"]
        changed = [name for name in {**before, **self.fingerprint} if before.get(name) != self.fingerprint.get(name)]
        if changed:
            raise UserError(
                f"{key}: the checkpoint stands at row {state['row']:,} of other data ({', '.join(changed)} changed); "
                "give back what was there, or begin the stage anew (--from)"
            )
        row = int(state["row"])
        if self.state(row)["sources"] != state["sources"]:
            raise UserError(f"{key}: row {row:,} is not where the checkpoint says; it was written by another version")
        return row

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
