"""What a person sees while a long job runs: a bar on a terminal, sparse lines elsewhere.

    pretrain.general  ━━━━━━━━━━╸━━━━━  120/2000  0:12:03  loss 3.412  bpb 1.41  gnorm 0.84  lr 3.0e-04  41.2k tok/s

On a terminal the bar is drawn by `rich`; in a log file one line is printed about every ten seconds, so
that the file stays short. Nothing here is written into a run's results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0


class Bar(Protocol):
    """One job's bar."""

    def update(self, done: int, text: str = "") -> None:
        """`done` units of the total are finished; `text` says how it goes."""
        ...


class Console:
    """Prints for people. `quiet` prints nothing but what `say` is told to."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty() and not quiet

    def say(self, text: str = "") -> None:
        """One line above the bar."""
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A bar for a job of `total` units (0: unknown)."""
        if not self.live:
            yield _Lines(title, total, self.quiet)
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as progress:
            task = progress.add_task(title, total=total or None, text="")
            yield _Rich(progress, task)


class _Rich:
    def __init__(self, progress: object, task: object) -> None:
        self.progress, self.task = progress, task

    def update(self, done: int, text: str = "") -> None:
        self.progress.update(self.task, completed=done, text=text)  # type: ignore[attr-defined]


class _Lines:
    def __init__(self, title: str, total: int, quiet: bool) -> None:
        self.title, self.total, self.quiet = title, total, quiet
        self.started = self.printed = time.monotonic()
        self.first: int | None = None  # done at the first update: a resumed job does not begin at 0

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        self.first = done - 1 if self.first is None else self.first
        if self.quiet or now - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        left = (now - self.started) / max(done - self.first, 1) * max(self.total - done, 0)
        of, eta = (f"/{self.total}", f"  eta {left / 60:.1f}m") if self.total else ("", "")
        print(f"{self.title}  step {done}{of}  {text}{eta}", file=sys.stderr, flush=True)
