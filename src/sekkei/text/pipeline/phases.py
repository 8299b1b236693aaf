"""The pipeline as phases, each a set of independent tasks; a runner deals them out and waits in between.

    read      per task   files -> parts: read, extract, doc-by-doc blocks up to the first corpus block, its marks
    resolve   once       marks of all parts -> one decision per part
    apply     per part   decision, doc-by-doc blocks up to the next corpus block, its marks       (… resolve, apply …)

Every function here is pure in what the store holds: called again, on whatever machine, it finds its result or makes
the same one. `resolve` is given the parts in the order of their names, and sees them as a set.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sekkei.core import atomic
from sekkei.text.blocks.block import CorpusBlock, Decision, Marks
from sekkei.text.document import Document, Dropped
from sekkei.text.page import Page
from sekkei.text.pipeline import declare, journal
from sekkei.text.pipeline.part import Recorder, State, Step, advance, after, digest_of, documents_of
from sekkei.text.pipeline.plan import Plan, Task, cut, steps_of
from sekkei.text.pipeline.store import Entry, LazyArrays, Store
from sekkei.text.read.files import read_file
from sekkei.text.read.hub import fingerprint, is_hub

_EMPTY = State("", 0, 0, ())
Tick = Callable[[int], None]


def read_task(plan: Plan, task: Task, tick: Tick | None = None) -> list[State]:
    """The first phase of one task.

    Args:
        tick: called with bytes of input that were dealt with.
    Returns:
        one state per part.
    """
    store = plan.store
    key = _task_key(plan, task)
    killers = store.head(_killers_key(key)) or {}
    if killers:  # other results, under another key
        key = atomic.sha256_json(["without", key, killers])
    done = store.head(key)
    states = _found(store, key, done["parts"]) if done else None
    if states is None:
        states = []
        function = functools.cache(plan.extract.build)
        for part in cut(_items(plan, task, tick, killers), plan.part_bytes):
            states.append(_extract(store, _part_key(key, len(states)), part, function))
        store.put(key, Entry({"parts": len(states)}))
    elif tick:
        tick(task.size)
    (_, steps), following = plan.segments()[0], _following(plan, 0)
    return [_finish(store, state, steps_of(steps), following) for state in states]


def leave_out(plan: Plan, task: Task, name: str, block: str, how: str) -> None:
    """From now on the task is read without a document (or file) that killed the process at work on it.

    Args:
        name: id of the document. block: that it was in. how: the process ended, for the ledger.
    """
    key = _killers_key(_task_key(plan, task))
    plan.store.put(key, Entry({**(plan.store.head(key) or {}), name: f"{block}: the process at work on it {how}"}))


def apply_part(plan: Plan, number: int, state: State, decision: str) -> State:
    """What a corpus block decided about one part, and the blocks behind it.

    Args:
        number: of the segment that the corpus block opens, from 1. decision: key of the part's decision.
    """
    store = plan.store
    block, blocks = plan.segments()[number]
    assert block is not None
    key = atomic.sha256_json(["apply", declare.key_of(block), state.digest, decision])
    head = store.head(key)
    if head is None:
        head = _apply(store, key, block, state, decision)
    return _finish(store, after(state, key, head), steps_of(blocks), _following(plan, number))


def resolve(plan: Plan, number: int, states: Sequence[State]) -> list[str]:
    """The decisions of the corpus block that opens segment `number`, one key per part."""
    store = plan.store
    block = plan.segments()[number][0]
    assert block is not None
    keys = [_marks_key(block, state) for state in states]
    memo = atomic.sha256_json(["resolve", declare.key_of(block), keys])
    head = store.head(memo)
    if head is not None and all(store.head(key) is not None for key in head["decisions"]):
        return head["decisions"]
    marks = [_marks(store, key) for key in keys]
    decisions = [_put_decision(store, decision) for decision in block.resolve(marks)]
    store.put(memo, Entry({"decisions": decisions}))
    return decisions


def _items(plan: Plan, task: Task, tick: Tick | None, killers: Mapping[str, str]) -> Iterator[Page | Dropped]:
    for name, path, source in task.files:
        if f"read\t{name}" in killers:
            yield Dropped(name, "read.killed", 1.0, 0.0, killers[f"read\t{name}"])
        else:
            journal.note("read", f"read\t{name}")
            for item in read_file(Path(path), name, source, plan.read):
                if isinstance(item, Page) and item.id in killers:
                    item = Dropped(item.id, "extract.killed", 1.0, 0.0, killers[item.id], url=item.meta.get("url", ""))  # noqa: PLW2901
                yield item
                journal.note("read", f"read\t{name}")
        if tick:
            tick(_size(path))


def _task_key(plan: Plan, task: Task) -> str:
    content = [[name, source, _file_digest(path)] for name, path, source in task.files]
    made_with = [declare.key_of(plan.read), declare.key_of(plan.extract), plan.part_bytes]
    return atomic.sha256_json(["task", content, made_with])


def _killers_key(task: str) -> str:
    """Of what must be left out of a task: the one kind of entry that grows."""
    return atomic.sha256_json(["killers", task])


def _extract(store: Store, key: str, part: Sequence[Any], function: Callable[[], Any]) -> State:
    head = store.head(key)
    if head is None:
        recorder = Recorder("extract")
        for item in part:
            if isinstance(item, Dropped):
                recorder.refuse(item)
            else:
                recorder.apply(function(), item, b"")
        entry = recorder.entry()
        store.put(key, entry)
        head = entry.head
    return after(_EMPTY, key, head)


def _found(store: Store, key: str, count: int) -> list[State] | None:
    states = []
    for number in range(count):
        head = store.head(_part_key(key, number))
        if head is None:
            return None
        states.append(after(_EMPTY, _part_key(key, number), head))
    return states


def _finish(store: Store, state: State, steps: Sequence[Step], following: CorpusBlock | None) -> State:
    """The doc-by-doc blocks of a segment, and the marks that the next corpus block will ask for."""
    state = advance(store, state, steps)
    if following is not None and store.head(key := _marks_key(following, state)) is None:
        journal.note("", "")  # all documents at once: none to blame
        documents = documents_of(store, state)
        arrays = {"order": _order(documents), **_strings("ids", [document.id for document in documents])}
        arrays |= {f"m.{name}": array for name, array in following.mark(documents).items()}
        store.put(key, Entry({"count": len(documents)}, {}, arrays))
    return state


def _following(plan: Plan, number: int) -> CorpusBlock | None:
    segments = plan.segments()
    return segments[number + 1][0] if number + 1 < len(segments) else None


def _apply(store: Store, key: str, block: CorpusBlock, state: State, decision_key: str) -> dict[str, Any]:
    decision = _decision(store, decision_key)
    recorder = Recorder(block.name)
    for place, document in enumerate(documents_of(store, state)):
        recorder.apply(functools.partial(_judged, block, place, decision), document, digest_of(document))
    entry = recorder.entry()
    store.put(key, entry)
    return entry.head


def _judged(block: CorpusBlock, place: int, decision: Decision, document: Document) -> Any:
    return block.apply(document, place, decision)


def _marks_key(block: CorpusBlock, state: State) -> str:
    return atomic.sha256_json(["marks", declare.key_of(block), state.digest])


def _marks(store: Store, key: str) -> Marks:
    arrays = LazyArrays(store, key)
    own = _Prefixed(arrays)
    return Marks(np.array(arrays["order"]), own, functools.partial(_string, arrays, "ids"))


class _Prefixed(dict[str, np.ndarray]):
    """A block's own arrays, opened when asked for."""

    def __init__(self, arrays: LazyArrays) -> None:
        super().__init__()
        self.arrays = arrays

    def __missing__(self, name: str) -> np.ndarray:
        return self.arrays[f"m.{name}"]


def _order(documents: Sequence[Document]) -> np.ndarray:
    """[N, 2] uint64: 64 bits of each text's digest, and 64 of its id's for texts that are equal."""
    data = b"".join(
        hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for document in documents
        for value in (document.text, document.id)
    )
    return np.frombuffer(data, dtype="<u8").reshape(-1, 2)


def _strings(name: str, values: Sequence[str]) -> dict[str, np.ndarray]:
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}.ends": ends}


def _string(arrays: Any, name: str, index: int) -> str:
    ends = arrays[f"{name}.ends"]
    start = int(ends[index - 1]) if index else 0
    return arrays[name][start : int(ends[index])].tobytes().decode("utf-8", "surrogatepass")


def _put_decision(store: Store, decision: Decision) -> str:
    arrays = {
        "places": decision.places.astype("<i8"),
        "values": decision.values.astype("<f8"),
        "hashes": decision.hashes.astype("<u8"),
        **_strings("others", decision.others),
    }
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode() + len(array).to_bytes(8, "little") + array.tobytes())
    key = digest.hexdigest()
    if store.head(key) is None:
        store.put(key, Entry({"rows": len(decision.places)}, {}, arrays))
    return key


def _decision(store: Store, key: str) -> Decision:
    arrays = store.get(key).arrays
    others = [_string(arrays, "others", i) for i in range(len(arrays["places"]))]
    return Decision(arrays["places"], others, arrays["values"], arrays["hashes"])


def _part_key(task: str, number: int) -> str:
    return atomic.sha256_json(["part", task, number])


def _file_digest(path: str) -> str:
    """SHA-256 of a file, or why it has none: the reader will meet the same error and write it into the ledger."""
    if is_hub(path):
        return fingerprint(path)
    try:
        return atomic.sha256(Path(path))
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _size(path: str) -> int:
    """Bytes of a file, the unit of progress; 1 for a shard of the hub, whose size nobody knows."""
    if is_hub(path):
        return 1
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
