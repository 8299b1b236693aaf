"""`metrics.jsonl`, mirrored to a tracker where the recipe asks for one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sekkei.core.runlog import RunLog
from sekkei.core.tracker import Tracker


class TrackedLog(RunLog):
    """The run's log; every record also goes to the tracker.

    A resumed run sends the steps since its checkpoint again; what a tracker makes of that is told in core/tracker.py.
    """

    def __init__(self, path: Path, tracker: Tracker) -> None:
        super().__init__(path)
        self.tracker = tracker

    def write(self, record: Mapping[str, Any]) -> None:
        super().write(record)
        self.tracker.log(record)
