"""A page that kills the process at work on it is left out with its reason, and the run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.text.pipeline.test_pipeline import BLOCKS, content, corpus, prose

from sekkei.core.errors import UserError
from sekkei.core.progress import Console
from sekkei.text.pipeline import journal, local
from sekkei.text.pipeline.plan import Plan

QUIET = Console(silent=True)
TARGET = "heavy.txt"


@contextlib.contextmanager
def killing(folder: Path, name: str, number: int) -> Iterator[list[int]]:
    """While this stands, every process whose journal names the document is sent a real signal; yields their ids."""
    killed: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.002):
            for path in folder.glob("*"):
                at = journal.last(folder, int(path.name))
                if at and at[1] == name and int(path.name) not in killed:
                    killed.append(int(path.name))
                    os.kill(int(path.name), number)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=lambda n: n.name
)
def test_the_page_goes_and_the_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    folder = corpus(tmp_path / "in", 20)
    without = tmp_path / "without"
    plan = Plan(path=str(folder), work=str(without / "work"), items=BLOCKS)
    local.run(plan, without, 1, QUIET)
    (folder / TARGET).write_text("\n".join(prose(5000 + i) for i in range(1500)), encoding="utf-8")  # seconds of work
    out = tmp_path / "out"
    plan = Plan(path=str(folder), work=str(out / "work"), items=BLOCKS)
    with killing(out / "work" / "now", TARGET, number) as killed:
        summary, written = local.run(plan, out, 2, QUIET)
    assert written
    assert len(killed) == 2  # in the pool, and alone; not a third time
    documents, ledger = content(out)
    known, rows = content(without)
    assert documents == known
    (row,) = [row for row in ledger if row not in rows]
    assert (row.doc_id, row.rule) == (TARGET, "extract.killed")
    assert f"the process at work on it was killed by {number.name}" in row.excerpt
    assert summary["blocks"][0]["rules"]["extract.killed"] == 1
    assert not (out / "work" / "now").exists()
    _, written = local.run(plan, out, 1, QUIET)  # it is known now: nothing is tried again
    assert not written


def test_a_death_that_no_document_explains_ends_the_run(tmp_path: Path) -> None:
    workers = local.Workers(1, tmp_path / "now")
    try:
        with pytest.raises(UserError, match="exited with code 3; what is done is kept"):
            workers.all([_leave], lambda _: None, lambda *_: None)
    finally:
        workers.pool.shutdown()


def _leave() -> None:
    os._exit(3)


def test_the_journal_tells_the_last_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_NOW", None)
    journal.note("nobody", "listens")
    journal.begin(tmp_path)
    assert journal.last(tmp_path, os.getpid()) is None
    journal.note("extract", "a page with a long name" * 10)
    journal.note("scrub", "頁")
    assert journal.last(tmp_path, os.getpid()) == ("scrub", "頁")
    journal.note("x", "n" * 9000)
    assert journal.last(tmp_path, os.getpid()) == ("x", "n" * 4092)
    assert journal.last(tmp_path, 1) is None
