"""Does the result depend on how the work was cut? Run it several times, differently, and compare.

    1 shard    parts of the usual size   names in order
    2 shards   parts of a sixteenth      backwards
    7 shards   parts of 64 KB            shuffled

Each run has a store of its own. Documents and ledger rows are compared as sets: sorted, then digested. Fields are
compared whole (ids, text, labels, values, offsets, excerpts).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sekkei.core.progress import Console
from sekkei.core.seed import derive_seed
from sekkei.text.pipeline import phases
from sekkei.text.pipeline.part import State, digest_of, documents_of, ledger_of
from sekkei.text.pipeline.plan import Plan

SHARDS = (1, 2, 7)


@dataclass(frozen=True)
class Outcome:
    """What one way of cutting gave.

    Args:
        documents, rows: how many. documents_digest, ledger_digest: SHA-256 of the sorted sets.
    """

    shards: int
    parts: int
    documents: int
    rows: int
    documents_digest: str
    ledger_digest: str
    seconds: float


def verify(plan: Plan, console: Console, shards: Sequence[int] = SHARDS) -> list[Outcome]:
    """Run the plan at each number of shards, cut and ordered differently each time."""
    found = []
    for place, count in enumerate(shards):
        with tempfile.TemporaryDirectory(prefix="sekkei-verify-") as work:
            size = max(1, (plan.part_bytes, plan.part_bytes // 16, 64_000)[min(place, 2)])
            own = dataclasses.replace(plan, work=work, part_bytes=size)
            began = time.monotonic()
            states = run_shards(own, count, place, console)
            found.append(_outcome(own, states, count, time.monotonic() - began))
    return found


def agree(outcomes: Sequence[Outcome]) -> bool:
    """Whether all of them gave the same documents and the same ledger."""
    return len({(outcome.documents_digest, outcome.ledger_digest) for outcome in outcomes}) == 1


def run_shards(plan: Plan, shards: int, order: int, console: Console) -> list[State]:
    """All phases, dealt to `shards` shards that work one after another; as ranks of a cluster would, but in order.

    Args:
        order: 0 by name, 1 backwards, else shuffled.
    """
    tasks = plan.tasks()
    if order == 1:
        tasks.reverse()
    elif order > 1:
        random.Random(derive_seed("verify", order)).shuffle(tasks)
    with console.bar(f"{shards} shards", len(tasks)) as bar:
        states: list[State] = []
        for shard in range(shards):
            for task in tasks[shard::shards]:
                states += phases.read_task(plan, task)
            bar.update(len(tasks) * (shard + 1) // shards)
    for number in range(1, len(plan.segments())):
        decisions = phases.resolve(plan, number, states)
        states = [phases.apply_part(plan, number, *pair) for pair in zip(states, decisions, strict=True)]
    return states


def _outcome(plan: Plan, states: Sequence[State], shards: int, seconds: float) -> Outcome:
    store = plan.store
    documents = sorted(digest_of(document) for state in states for document in documents_of(store, state))
    rows = sorted(_rows(plan, states))
    digests = [hashlib.sha256(b"".join(documents)).hexdigest(), hashlib.sha256("\n".join(rows).encode()).hexdigest()]
    return Outcome(shards, len(states), len(documents), len(rows), *digests, seconds)


def _rows(plan: Plan, states: Sequence[State]) -> Iterator[str]:
    for state in states:
        for table in ledger_of(plan.store, state):
            yield from (json.dumps(row, sort_keys=True) for row in table.to_pylist())
