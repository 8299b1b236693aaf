"""The rows of an update, dealt to data ranks: the same global batch under every layout.

    rows of all micro-batches   0 1 2 3 4 5 6 -        dp = 2, two rows per micro-batch
    data rank 0                 0 1     4 5
    data rank 1                     2 3     6 -        - is an empty row: it has no token, and so no weight

Every rank draws the whole update and keeps its rows. Rows may be dealt because nothing in a loss crosses one: a pair
stands in one row, and a group's advantages are computed before. All ranks get equally many micro-batches of one shape,
at least as many as the pipeline schedule asks for and none larger than the update's own, because their collectives
and their schedules must match.

Shapes: `R` rows of the update, `T` tokens per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sekkei.data.batch import EMPTY, Batch
from sekkei.model.output import Output
from sekkei.parallel.collectives import all_gathered
from sekkei.parallel.layout import CHUNKS, Layout
from sekkei.parallel.mesh import Mesh
from sekkei.train.objective import Metrics, Update
from sekkei.train.step import Step


class DealingStep:
    """A `Step` that is given whole updates and has another take this rank's part of them."""

    def __init__(self, step: Step, mesh: Mesh) -> None:
        self.step, self.mesh, self.layout = step, mesh, mesh.layout

    def score(self, role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        """Whole rows on every rank; each data rank computes its share of them (a pipeline's: all of them)."""
        count, tokens = batch.ids.shape
        ranks = 1 if self.layout.pp > 1 else self.layout.dp
        here = padded(batch, _width(tokens, self.layout))
        if ranks > 1:
            each = -(-count // ranks)
            here = _rows(here, self.mesh.dp_rank * each, each)
        out = self.step.score(role, here, wants, temperature)

        def whole(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            if ranks > 1:
                x = all_gathered(x, self.mesh.dp)[:count]
            return x[:, :tokens]

        return Output(logprobs=whole(out.logprobs), entropy=whole(out.entropy), values=whole(out.values))

    def backward(self, update: Update) -> Metrics:
        own = deal(update.micro_batches, self.layout, self.mesh.dp_rank)
        return self.step.backward(replace(update, micro_batches=own))


def deal(batches: Sequence[Batch], layout: Layout, dp_rank: int) -> list[Batch]:
    """What a data rank does of an update.

    Args:
        batches: all micro-batches of the update, in order.
    """
    tokens = _width(max(batch.ids.shape[1] for batch in batches), layout)
    largest = max(batch.ids.shape[0] for batch in batches)
    rows = _joined([padded(batch, tokens) for batch in batches])
    count = rows.ids.shape[0]
    rounds = layout.pp if layout.pp > 1 else 1  # a schedule's fewest; those with several stages per rank go in rounds
    micro = max(rounds, layout.microbatches, -(-count // (layout.dp * largest)))
    if layout.pp > 1 and CHUNKS[layout.schedule] > 1:
        micro = -(-micro // rounds) * rounds
    each = -(-count // (layout.dp * micro))
    starts = [(number * layout.dp + dp_rank) * each for number in range(micro)]
    return [_rows(rows, start, each) for start in starts]


def padded(batch: Batch, tokens: int) -> Batch:
    """[B, T] -> [B, tokens]: padding at the end of each row."""
    width = batch.ids.shape[1]
    if width == tokens:
        return batch
    more = (0, tokens - width)
    fields = {name: torch.nn.functional.pad(getattr(batch, name), more, value=value) for name, value in EMPTY.items()}
    extra = {
        name: torch.nn.functional.pad(x, more) if x.shape[1] == width else x  # else per segment: S < T always
        for name, x in batch.extra.items()
    }
    return Batch(**fields, extra=extra)


def _width(tokens: int, layout: Layout) -> int:
    """The next length that context and sequence parallelism can cut."""
    parts = 2 * layout.cp if layout.cp > 1 else 1
    parts *= layout.tp if layout.sequence_parallel else 1
    return -(-tokens // parts) * parts


def _joined(batches: Sequence[Batch]) -> Batch:
    """All rows as one batch; extras per segment are widened to the widest."""
    if len(batches) == 1:
        return batches[0]
    fields = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in EMPTY}
    extra = {}
    for name in batches[0].extra:
        parts = [batch.extra[name] for batch in batches]
        widest = max(part.shape[1] for part in parts)
        extra[name] = torch.cat([torch.nn.functional.pad(part, (0, widest - part.shape[1])) for part in parts])
    return Batch(**fields, extra=extra)


def _rows(batch: Batch, start: int, count: int) -> Batch:
    """Rows `start` to `start + count`; those past the end are empty."""
    here = slice(start, start + count)
    missing = (0, 0, 0, count - batch.ids[here].shape[0])
    fields = {
        name: torch.nn.functional.pad(getattr(batch, name)[here], missing, value=value) for name, value in EMPTY.items()
    }
    return Batch(**fields, extra={name: torch.nn.functional.pad(x[here], missing) for name, x in batch.extra.items()})
