"""Ctrl-C and SIGTERM as a wish: finish the step, save, then stop.

    with stop_requests() as stop:
        for step in …:
            …
            if stop.requested: save; raise KeyboardInterrupt

The first signal only notes the wish; a second one interrupts at once. Outside of the main thread, where Python
does not allow handlers, nothing is changed. It does not handle several ranks that must agree where to stop.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Whether somebody asked to stop."""

    requested: bool = False


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Note the signals of the block instead of dying of them."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        print("stopping after this step; once more stops at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end the process as Ctrl-C does: with a message, and with what was written aside swept away."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
