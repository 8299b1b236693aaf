"""The default executor: worker processes on this machine, a progress bar, and going on where a killed run stopped.

    read (tasks) ──> resolve ──> apply (parts) ──> … ──> write        between two phases all parts are waited for

Work that is done is in the store, so a run after kill -9 repeats at most one part per worker. Workers end with their
parent, even if it was killed. One run at a time may use an output folder (a lock in it says so).

A page that kills its worker (a crash in a parser, the kernel's kill for want of memory) costs that page: the tasks that
were at work are run again one by one, each in a process of its own; what that process was at when it died (`journal`)
is left out, with a row `extract.killed`, and the rest goes on. With one worker the work is done in this process, and
such a page ends the run.

Memory: each worker holds one part (some 16 MB of input, its text and its marks), the parent one corpus block's
hashes. It does not grow with the corpus but for those.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import os
import shutil
import signal
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
from sekkei.text.pipeline import journal, output, phases
from sekkei.text.pipeline.part import State
from sekkei.text.pipeline.plan import Plan, Task, plan_of

_SECONDS = 0.5  # between looks at the workers' counter
_MOST_KILLERS = 50  # documents of one task that kill the process; more are a machine without memory
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
    with _locked(out), _workers(workers, Path(plan.work) / "now") as pool:
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
        key = output.key_of(plan, states)
        summary = output.read_summary(out)
        if summary is not None and summary.get("key") == key and output.is_whole(out, summary):
            return summary, False
        with console.bar("write", len(states)) as bar:
            summary = output.write(plan, states, out, key, lambda done, _: bar.update(done))
        store.prune(since)
        return summary, True


def _read(plan: Plan, tasks: Sequence[Task], pool: Workers | None, bar: Bar) -> list[list[State]]:
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

    def leave_out(number: int, at: tuple[str, str], how: str) -> None:
        phases.leave_out(plan, tasks[number], at[1], at[0], how)

    jobs = [functools.partial(_read_one, text, task) for task in tasks]
    return pool.all(jobs, lambda _: bar.update(_counter.value), leave_out)


def _apply(
    plan: Plan,
    number: int,
    states: Sequence[State],
    decisions: Sequence[str],
    pool: Workers | None,
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
    return pool.all(jobs, bar.update)


class Workers:
    """Processes that do jobs, and are replaced when one dies.

    Args:
        count: how many. folder: of their journals.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.count, self.folder = count, folder
        self.context = multiprocessing.get_context("spawn")
        self.counter = self.context.Value("q", 0)
        self.pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        begin = (self.counter, self.folder)
        return ProcessPoolExecutor(self.count, mp_context=self.context, initializer=_begin, initargs=begin)

    def all(
        self,
        jobs: Sequence[Callable[[], Any]],
        report: Callable[[int], None],
        leave_out: Callable[[int, tuple[str, str], str], None] | None = None,
    ) -> list[Any]:
        """Results of all jobs, in their order.

        Args:
            leave_out: called with a job's number, the (block, document) that killed its process, and how; after that
                the job must be able to go on. None: such a document ends the run.
        Raises:
            UserError: a process died, and nothing can be left out for it.
        """
        results: dict[int, Any] = {}
        while len(results) < len(jobs):
            left = [number for number in range(len(jobs)) if number not in results]
            futures: dict[Future[Any], int] = {}
            try:
                futures.update((self.pool.submit(jobs[number]), number) for number in left)
                self._wait(futures, results, report)
            except BrokenProcessPool:
                self.pool.shutdown(wait=True, cancel_futures=True)
                self.pool = self._new()
                # jobs begin in their order, so those at work are the first that have not ended
                for number in [number for number in left if number not in results][: self.count]:
                    results[number] = self._alone(number, jobs[number], leave_out)
                    report(len(results))
            finally:
                for future in futures:
                    future.cancel()
        return [results[number] for number in range(len(jobs))]

    def _wait(self, futures: dict[Future[Any], int], results: dict[int, Any], report: Callable[[int], None]) -> None:
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=_SECONDS, return_when=FIRST_COMPLETED)
            broken = None
            for future in done:  # those that ended well count, whatever became of the others
                error = future.exception()
                if error is None:
                    results[futures[future]] = future.result()
                broken = broken or error
            report(len(results))
            if broken is not None:
                raise broken

    def _alone(
        self, number: int, job: Callable[[], Any], leave_out: Callable[[int, tuple[str, str], str], None] | None
    ) -> Any:
        """The result of a job that may kill its process, from a process of its own."""
        for _ in range(_MOST_KILLERS):
            receive, send = self.context.Pipe(duplex=False)
            process = self.context.Process(target=_send_back, args=(send, self.counter, self.folder, job))
            process.start()
            send.close()
            try:
                result, error = receive.recv()
            except EOFError:
                result, error = None, None
                died = True
            else:
                died = False
            process.join()
            if error is not None:
                raise error
            if not died:
                return result
            at, how = journal.last(self.folder, process.pid or 0), _end_of(process.exitcode or 0)
            if at is None or leave_out is None:
                where = f" at block {at[0]!r} of document {at[1]!r}" if at else ""
                raise UserError(f"a worker process {how}{where}; what is done is kept: run again with fewer --workers")
            leave_out(number, at, how)
        raise UserError(f"more than {_MOST_KILLERS} documents of one task killed the process; is there enough memory?")


def _end_of(code: int) -> str:
    """How a process ended, by its exit code."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _send_back(send: connection.Connection, counter: Any, folder: Path, job: Callable[[], Any]) -> None:
    """Do one job in a process of its own."""
    _begin(counter, folder)
    try:
        send.send((job(), None))
    except Exception as error:
        send.send((None, error))


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
def _workers(count: int, folder: Path) -> Iterator[Workers | None]:
    global _counter  # noqa: PLW0603  # shared with the workers, which can only inherit it
    if count < 1:
        raise UserError(f"--workers={count}: must be at least 1")
    if count == 1:
        yield None
        return
    workers = Workers(count, folder)
    _counter = workers.counter
    try:
        yield workers
    finally:
        workers.pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)


def _begin(counter: Any, folder: Path) -> None:
    """Make a worker ready: share the counter, keep a journal, end with the parent, one thread."""
    global _counter  # noqa: PLW0603
    _counter = counter
    journal.begin(folder)
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
