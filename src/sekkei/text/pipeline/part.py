"""A part of the corpus on its way through the blocks: what each block changed, kept by the digest of what went in.

    part = some megabytes of input, read once        state = (digest of its documents, chain of entries)

    entry of a block = which documents stay · those that it changed · its ledger rows · digest of what comes out
                       (the first one: also URLs of pages that became no document)

The documents of a state are the first entry's, with every later change laid over them; nothing is stored twice. A
block is asked for only if the store has no entry for (block, digest of its input). So a changed threshold starts
work at that block, and where the outcome is the same after all, what follows is found again. Blocks that follow each
other without rewriting the text run document by document, since they share the cut text (`quality.view_of`).

An exception inside a block costs that document (rule `BLOCK.error`), not the run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from sekkei.core import atomic
from sekkei.text.document import EXCERPT_CHARS, LEDGER_SCHEMA, Document, Dropped
from sekkei.text.page import Page
from sekkei.text.pipeline import journal
from sekkei.text.pipeline.store import Entry, Store

CHANGED_SCHEMA = pa.schema(
    [("at", pa.int32()), *((name, pa.string()) for name in ("id", "text", "source", "lang", "meta"))]
)
URLS_SCHEMA = pa.schema([("doc_id", pa.string()), ("url", pa.string())])

_BUILT: dict[str, Callable[[Any], tuple[Document | None, list[Dropped]]]] = {}  # by key; what is dear is built once


@dataclass(frozen=True)
class State:
    """The documents of a part at one point of the pipeline.

    Args:
        digest: of all of them, in order. count: how many. chars: characters in them.
        chain: keys of the entries that lead to them, the first one holding all documents.
    """

    digest: str
    count: int
    chars: int
    chain: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """One block as the machinery sees it: its key, and the function that is built when it is first needed."""

    name: str
    key: str
    rewrites: str
    build: Callable[[], Callable[[Any], tuple[Document | None, list[Dropped]]]]


class Recorder:
    """Collects what one block does to the documents of a part."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count_in = self.chars = self.dropped = 0
        self.seconds = 0.0
        self.kept: list[int] = []
        self.changed: list[dict[str, Any]] = []
        self.rows: list[Dropped] = []
        self.urls: list[dict[str, Any]] = []  # of pages that never became documents
        self.digests = hashlib.blake2b(digest_size=20)
        self.rules: Counter[str] = Counter()
        self.spans: Counter[str] = Counter()

    def refuse(self, row: Dropped) -> None:
        """An item that never became a document."""
        self.count_in += 1
        self._locate(row.doc_id, row.url)
        self._note(None, [row])

    def apply(
        self, function: Callable[[Any], tuple[Document | None, list[Dropped]]], item: Any, digest: bytes
    ) -> tuple[Document | None, bytes]:
        """Run the block on one document; returns what is left of it, and its digest."""
        journal.note(self.name, item.id)
        began = time.perf_counter()
        try:
            result, rows = function(item)
        except Exception as error:
            result, rows = None, [_error_row(self.name, item.id, error)]
        self.seconds += time.perf_counter() - began
        at = self.count_in
        self.count_in += 1
        self._note(result, rows)
        if result is None:
            if isinstance(item, Page):
                self._locate(item.id, item.meta.get("url", ""))
            return None, b""
        if result is not item:
            before = item if isinstance(item, Document) else None
            self.changed.append(_difference(len(self.kept), before, result))
            digest = digest_of(result)
        self.kept.append(at)
        self.chars += len(result.text)
        self.digests.update(digest)
        return result, digest

    def _locate(self, name: str, url: str) -> None:
        if url:
            self.urls.append({"doc_id": name, "url": url})

    def _note(self, result: Document | None, rows: Sequence[Dropped]) -> None:
        self.rows += rows
        if result is None:
            self.dropped += 1
            self.rules[rows[-1].rule] += 1  # the row that says why it went; rows before it are spans
        self.spans.update(row.rule for row in (rows if result is not None else rows[:-1]))

    def entry(self) -> Entry:
        """What goes into the store."""
        head = {
            "block": self.name,
            "in": self.count_in,
            "count": len(self.kept),
            "chars": self.chars,
            "digest": self.digests.hexdigest(),
            "rules": dict(sorted(self.rules.items())),
            "spans": dict(sorted(self.spans.items())),
            "kept": None if len(self.kept) == self.count_in else self.kept,
            "seconds": self.seconds,
        }
        ledger = [vars(row) for row in self.rows]
        tables = {"ledger": _table(ledger, LEDGER_SCHEMA), "changed": _table(self.changed, CHANGED_SCHEMA)}
        tables["urls"] = _table(self.urls, URLS_SCHEMA)
        return Entry(head, {name: table for name, table in tables.items() if table.num_rows})


def advance(store: Store, state: State, steps: Sequence[Step]) -> State:
    """Bring a part through doc-by-doc blocks, doing only what the store lacks."""
    place = 0
    while place < len(steps):
        head = store.head(_key(steps[place], state))
        if head is not None:
            state = after(state, _key(steps[place], state), head)
            place += 1
            continue
        group = _group(steps, place)
        state = run_group(store, state, documents_of(store, state), group)
        place += len(group)
    return state


def run_group(store: Store, state: State, documents: Iterable[Document], group: Sequence[Step]) -> State:
    """Run blocks over documents one by one and keep each block's entry."""
    recorders = [Recorder(step.name) for step in group]
    functions = [_built(step) for step in group]
    for document in documents:
        left: Document | None = document
        digest = digest_of(document)
        for recorder, function in zip(recorders, functions, strict=True):
            left, digest = recorder.apply(function, left, digest)
            if left is None:
                break
    for step, recorder in zip(group, recorders, strict=True):
        key, entry = _key(step, state), recorder.entry()
        store.put(key, entry)
        state = after(state, key, entry.head)
    return state


def _built(step: Step) -> Callable[[Any], tuple[Document | None, list[Dropped]]]:
    if step.key not in _BUILT:
        _BUILT[step.key] = step.build()
    return _BUILT[step.key]


def after(state: State, key: str, head: dict[str, Any]) -> State:
    """The state behind an entry."""
    return State(head["digest"], head["count"], head["chars"], (*state.chain, key))


def documents_of(store: Store, state: State) -> list[Document]:
    """The documents of a state, put together from its entries."""
    documents: list[Document | None] = []
    for place, key in enumerate(state.chain):
        entry = store.get(key)
        kept, count = entry.head["kept"], entry.head["count"]
        if place == 0:
            documents = [None] * count
        elif kept is not None:
            documents = [documents[at] for at in kept]
        if "changed" in entry.tables:
            for row in entry.tables["changed"].to_pylist():
                documents[row["at"]] = _changed(documents[row["at"]], row)
    return documents  # type: ignore[return-value]  # the first entry fills every place


def ledger_of(store: Store, state: State) -> list[pa.Table]:
    """The ledger rows of a part, block by block."""
    tables = (store.get(key).tables.get("ledger") for key in state.chain)
    return [table for table in tables if table is not None]


def digest_of(document: Document) -> bytes:
    """16 bytes that name a document's whole content."""
    found = hashlib.blake2b(digest_size=16)
    meta = json.dumps(document.meta, sort_keys=True, ensure_ascii=False)
    for part in (document.id, document.source, document.lang, meta, document.text):
        data = part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.digest()


def _group(steps: Sequence[Step], start: int) -> Sequence[Step]:
    """The blocks from `start` that look at one and the same text: up to and with the next that rewrites it."""
    end = start + 1
    while end < len(steps) and not steps[end - 1].rewrites:
        end += 1
    return steps[start:end]


def _key(step: Step, state: State) -> str:
    return atomic.sha256_json(["block", step.key, state.digest])


def _difference(at: int, before: Document | None, now: Document) -> dict[str, Any]:
    """A row of what changed; null is unchanged."""
    meta = json.dumps(now.meta, sort_keys=True, ensure_ascii=False)
    if before is None:
        return {"at": at, "id": now.id, "text": now.text, "source": now.source, "lang": now.lang, "meta": meta}
    row: dict[str, Any] = {"at": at}
    for name in ("id", "text", "source", "lang"):
        row[name] = None if getattr(before, name) == getattr(now, name) else getattr(now, name)
    row["meta"] = None if before.meta == now.meta else meta
    return row


def _changed(before: Document | None, row: dict[str, Any]) -> Document:
    values = {name: row[name] for name in ("id", "text", "source", "lang") if row[name] is not None}
    if row["meta"] is not None:
        values["meta"] = json.loads(row["meta"])
    if before is None:
        return Document(**values)
    return Document(**{**vars(before), **values})


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)


def _error_row(block: str, name: str, error: Exception) -> Dropped:
    return Dropped(name, f"{block}.error", 0.0, 0.0, f"{type(error).__name__}: {error}"[:EXCERPT_CHARS])
