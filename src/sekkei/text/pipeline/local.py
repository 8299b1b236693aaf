"""The default executor: worker processes on this machine, a progress bar, and going on where a killed run stopped.

    read (tasks) ──> resolve ──> apply (parts) ──> … ──> write        between two phases all parts are waited for

Work that is done is in the store, so a run after kill -9 repeats at most one part per worker. Workers end with their
parent, even if it was killed. One run at a time may use an output folder (a lock in it says so).

Memory: each worker holds one part (some 16 MB of input, its text and its marks), the parent one corpus block's
hashes. It does not grow with the corpus but for those.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.core.progress import Bar, Console
from sekkei.text.pipeline import output, phases
from sekkei.text.pipeline.part import State
from sekkei.text.pipeline.plan import Plan, Task, plan_of

_SECONDS = 0.5  # between looks at the workers' counter
_counter: Any = None  # of bytes read, shared by the workers


def run(plan: Plan, out: Path, workers: int, console: Console) -> tuple[dict[str, Any], bool]:
    """Clean a corpus.

    Args:
        workers: processes; 1 works in this one.
    Returns:
        the summary, and whether anything had to be written.
    Raises:
        UserError: no input, a full disk, another run in the same folder, or a file that kills its reader.
    """
    tasks = plan.tasks()
    with _locked(out), _pool(workers) as pool:
        store = plan.store
        since = store.now()
        with console.bar("read", sum(task.size for task in tasks)) as bar:
            states = [state for found in _read(plan, tasks, pool, bar) for state in found]
        for number in range(1, len(plan.segments())):
            block = plan.segments()[number][0]
            console_title = block.name if block else ""
            with console.bar(console_title, len(states)) as bar:
                decisions = phases.resolve(plan, number, states)
                states = _apply(plan, number, states, decisions, pool, bar)
        key = atomic.sha256_json([plan.key(), [state.digest for state in states], [list(s.chain) for s in states]])
        summary = output.read_summary(out)
        if summary is not None and summary.get("key") == key and output.is_whole(out, summary):
            return summary, False
        with console.bar("write", len(states)) as bar:
            summary = output.write(plan, states, out, key, lambda done, _: bar.update(done))
        store.prune(since)
        return summary, True


def _read(plan: Plan, tasks: Sequence[Task], pool: ProcessPoolExecutor | None, bar: Bar) -> list[list[State]]:
    if pool is None:
        done = 0
        found = []

        def tick(size: int) -> None:
            nonlocal done
            done += size
            bar.update(done)

        for task in tasks:
            found.append(phases.read_task(plan, task, tick))
        return found
    text = plan.to_json()
    with _counter.get_lock():
        _counter.value = 0
    return _all(
        pool, [functools.partial(_read_one, text, task) for task in tasks], lambda _: bar.update(_counter.value)
    )


def _apply(
    plan: Plan,
    number: int,
    states: Sequence[State],
    decisions: Sequence[str],
    pool: ProcessPoolExecutor | None,
    bar: Bar,
) -> list[State]:
    if pool is None:
        found = []
        for state, decision in zip(states, decisions, strict=True):
            found.append(phases.apply_part(plan, number, state, decision))
            bar.update(len(found))
        return found
    text = plan.to_json()
    jobs = [
        functools.partial(_apply_one, text, number, state, decision)
        for state, decision in zip(states, decisions, strict=True)
    ]
    return _all(pool, jobs, bar.update)


def _all(pool: ProcessPoolExecutor, jobs: Sequence[Callable[[], Any]], report: Callable[[int], None]) -> list[Any]:
    """Results of all jobs, in their order."""
    futures: list[Future[Any]] = [pool.submit(job) for job in jobs]
    waiting = set(futures)
    try:
        while waiting:
            _, waiting = wait(waiting, timeout=_SECONDS, return_when=FIRST_COMPLETED)
            report(len(futures) - len(waiting))
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory, or a page that crashes a parser); what is done is kept: run again "
            "with fewer --workers"
        ) from None
    finally:
        for future in waiting:
            future.cancel()


def _read_one(plan: str, task: Task) -> list[State]:
    def tick(size: int) -> None:
        with _counter.get_lock():
            _counter.value += size

    return phases.read_task(_plan(plan), task, tick)


def _apply_one(plan: str, number: int, state: State, decision: str) -> State:
    return phases.apply_part(_plan(plan), number, state, decision)


@functools.lru_cache(maxsize=2)
def _plan(text: str) -> Plan:
    return plan_of(text)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    global _counter  # noqa: PLW0603  # shared with the workers, which can only inherit it
    if workers < 1:
        raise UserError(f"--workers={workers}: must be at least 1")
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    _counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(_counter,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(counter: Any) -> None:
    """Make a worker ready: share the counter, end with the parent, one thread."""
    global _counter  # noqa: PLW0603
    _counter = counter
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    with atomic.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{out}: another sekkei data clean is writing there") from None
            for left in out.glob(".*.tmp"):  # of a killed run
                left.unlink(missing_ok=True)
            yield
