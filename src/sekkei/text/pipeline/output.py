"""What a cleaning run leaves: documents-*.parquet, ledger.parquet, and summary.json, which is written last.

    documents-00000.parquet …  {id, text, source, lang, meta}                       in the order of parts
    ledger.parquet             {doc_id, rule, value, threshold, start, end, excerpt} part by part, block by block
    pages.parquet              {doc_id, file, url}                 of the pages that the ledger names
    summary.json               blocks with what went in, came out and why; checksums of the files above

Every file is written aside and renamed, so none is ever half there. `summary.json` is removed before the first rename
and written after the last: where it stands, the output is whole and belongs together. One part is in memory at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sekkei.core import atomic
from sekkei.text.blocks.decontaminate import Decontaminate
from sekkei.text.document import DOCUMENT_SCHEMA, LEDGER_SCHEMA
from sekkei.text.pipeline import declare
from sekkei.text.pipeline.origins import PAGES, PAGES_SCHEMA, pages_of
from sekkei.text.pipeline.part import State, documents_of, ledger_of
from sekkei.text.pipeline.plan import Plan
from sekkei.text.pipeline.store import Store

LEDGER = "ledger.parquet"
SUMMARY = "summary.json"
SHARD_CHARS = 256_000_000


def write(
    plan: Plan, states: Sequence[State], out: Path, key: str, report: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Write the final files of a plan; returns the summary.

    Args:
        key: digest of plan and input, by which a later run sees that nothing is to be done.
        report: called as report(parts done, parts).
    """
    store = plan.store
    with atomic.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / SUMMARY).unlink(missing_ok=True)
    files: dict[str, dict[str, Any]] = {}
    done = 0
    for number, group in enumerate(_shards(states)):
        name = f"documents-{number:05d}.parquet"
        with _parquet(out / name, DOCUMENT_SCHEMA) as writer:
            for state in group:
                if state.count:
                    writer.write_table(_documents(store, state))
                done += 1
                if report:
                    report(done, len(states))
        files[name] = {"documents": sum(state.count for state in group), "sha256": atomic.sha256(out / name)}
    for old in out.glob("documents-*.parquet"):
        if old.name not in files:
            old.unlink()
    with _parquet(out / LEDGER, LEDGER_SCHEMA) as ledger, _parquet(out / PAGES, PAGES_SCHEMA) as pages:
        counts = [0, 0]
        for state in states:
            tables = ledger_of(store, state)
            for table in tables:
                ledger.write_table(table)
                counts[0] += table.num_rows
            if tables:
                pages.write_table(found := pages_of(store, state, tables))
                counts[1] += found.num_rows
    for name, rows in zip((LEDGER, PAGES), counts, strict=True):
        files[name] = {"rows": rows, "sha256": atomic.sha256(out / name)}
    summary = {
        "key": key,
        "input": plan.path,
        "declared": declare.declared(plan.blocks),
        "blocks": tally(store, states),
        "evaluations": _evaluations(plan),
        "documents": sum(state.count for state in states),
        "chars": sum(state.chars for state in states),
        "parts": len(states),
        "files": files,
    }
    atomic.write_json(out / SUMMARY, summary)
    return summary


def key_of(plan: Plan, states: Sequence[State]) -> str:
    """Digest of plan and input, by which a later run sees that nothing is to be done."""
    return atomic.sha256_json([plan.key(), [state.digest for state in states], [list(state.chain) for state in states]])


def tally(store: Store, states: Sequence[State]) -> list[dict[str, Any]]:
    """Per block, summed over parts: documents in and out, characters out, drops and spans by rule, seconds."""
    found: list[dict[str, Any]] = []
    for state in states:
        for place, key in enumerate(state.chain):
            head = store.get(key).head
            if place == len(found):
                found.append({"block": head["block"], "in": 0, "out": 0, "chars": 0, "rules": {}, "spans": {}})
                found[-1]["seconds"] = 0.0
            block = found[place]
            block["in"] += head["in"]
            block["out"] += head["count"]
            block["chars"] += head["chars"]
            block["seconds"] += head["seconds"]
            for kind in ("rules", "spans"):
                for rule, count in head[kind].items():
                    block[kind][rule] = block[kind].get(rule, 0) + count
    return found


def read_summary(out: Path) -> dict[str, Any] | None:
    """The summary of a whole output, or None."""
    try:
        return json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_whole(out: Path, summary: dict[str, Any]) -> bool:
    """Whether every file that the summary names is there and has its checksum."""
    return all(
        (out / name).is_file() and atomic.sha256(out / name) == entry["sha256"]
        for name, entry in summary["files"].items()
    )


def _shards(states: Sequence[State]) -> list[list[State]]:
    """Runs of parts of about SHARD_CHARS each; one empty run for an empty corpus."""
    groups: list[list[State]] = [[]]
    chars = 0
    for state in states:
        if chars >= SHARD_CHARS:
            groups.append([])
            chars = 0
        groups[-1].append(state)
        chars += state.chars
    return groups


def _evaluations(plan: Plan) -> dict[str, int]:
    """Items of every evaluation file that was looked for."""
    found: dict[str, int] = {}
    for block in plan.blocks:
        if isinstance(block, Decontaminate):
            found |= block.evaluation_items()
    return found


def _documents(store: Store, state: State) -> pa.Table:
    rows = [
        {**vars(document), "meta": json.dumps(document.meta, sort_keys=True, ensure_ascii=False)}
        for document in documents_of(store, state)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet file that appears under its name when it is whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with atomic.disk_errors(path):
        try:
            with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
                yield writer
            atomic.sync_file(aside)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
