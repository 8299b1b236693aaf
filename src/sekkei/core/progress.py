"""What a person sees while a long job runs: a bar on a terminal, sparse lines elsewhere.

    pretrain.general  ━━━━━━━━━━╸━━━━━  120/2000  0:12:03  loss 3.412  bpb 1.41  gnorm 0.84  lr 3.0e-04  41.2k tok/s

On a terminal the bar is drawn by `rich`; in a log file one line is printed about every ten seconds, so
that the file stays short. Nothing here is written into a run's results.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0
WINDOW = 30  # updates that the time left is estimated from


class Bar(Protocol):
    """One job's bar."""

    def update(self, done: int, text: str = "") -> None:
        """`done` units of the total are finished; `text` says how it goes."""
        ...


class Console:
    """Prints for people. `quiet` prints nothing but what `say` is told to, `silent` nothing at all."""

    def __init__(self, quiet: bool = False, silent: bool = False) -> None:
        self.quiet, self.silent = quiet or silent, silent
        self.live = sys.stderr.isatty() and not self.quiet

    def say(self, text: str = "") -> None:
        """One line above the bar."""
        if not self.silent:
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
        self.printed = time.monotonic()
        self.recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)  # (done, when): the pace changes within a job

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        self.recent.append((done, now))
        if self.quiet or now - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        (first, began), left = self.recent[0], self.total - done
        eta = f"  eta {(now - began) / (done - first) * left / 60:.1f}m" if done > first and left > 0 else ""
        of = f"/{self.total}" if self.total else ""
        print(f"{self.title}  step {done}{of}  {text}{eta}", file=sys.stderr, flush=True)
