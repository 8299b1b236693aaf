"""The file of judgements: what was asked, what was answered, and what was under way when a process died.

    {"sent": KEY}                                                  one line before a request goes out
    {"key": KEY, "reply": "…", "usage": {…}, "model": "…"}         one line when its reply is there
    {"failed": KEY, "why": "…"}                                    it was given up; a later run asks again

KEY is the SHA-256 of judge, messages and settings (llm/protocol.py), so a changed rubric or answer is another request
and an equal one is never paid twice. Lines are appended by one write(2) each: a killed process loses at most the line
that it was writing, and the torn end is cut off by the next run. Keys that were sent and neither answered nor given up
were under way at a kill: they are asked again, and their first cost is unknown (`Ledger.unknown`).
A lock (core/runlog.py) keeps two processes from writing at once. The file is flushed to the disk at the end and about
once a second, so a power cut may lose the last second, which is then asked again.

What it does not handle: several machines, compaction (10,000 judgements are about 10 MB).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sekkei.core.atomic import disk_errors
from sekkei.core.errors import UserError
from sekkei.core.runlog import RunLock
from sekkei.llm.protocol import Reply, Usage

FILE = "judgements.jsonl"
SECONDS_BETWEEN_SYNCS = 1.0


class Ledger:
    """Judgements of one folder; a context manager that holds the folder's lock.

    Attributes:
        replies: reply's text and usage by key. unknown: requests of earlier runs whose reply never arrived.
        sent: requests that this process sent.
    Raises:
        UserError: another process holds the folder, or the file is damaged elsewhere than at its end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE
        self.replies: dict[str, tuple[str, Usage]] = {}
        self.unknown = self.sent = 0
        self._descriptor, self._synced = -1, 0.0
        self._lock = RunLock(folder)

    def __enter__(self) -> Self:
        self._lock.__enter__()
        try:
            with disk_errors(self.path):
                self._read()
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1  # a reply that arrives after Ctrl-C must not be written into whatever file comes next
        self._lock.__exit__(kind, error, trace)

    def send(self, key: str) -> None:
        """A request is about to go out."""
        self.sent += 1
        self._append({"sent": key})

    def answered(self, key: str, reply: Reply) -> None:
        """Its reply is there. A key that is already there is a bug of the caller."""
        if key in self.replies:
            raise ValueError(f"{key} is recorded already")
        self.replies[key] = (reply.text, reply.usage)
        usage = {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens}
        if reply.usage.estimated:
            usage["estimated"] = True
        self._append({"key": key, "reply": reply.text, "usage": usage, "model": reply.model})

    def failed(self, key: str, why: str) -> None:
        """It was given up."""
        self._append({"failed": key, "why": why})

    def _append(self, record: dict[str, Any]) -> None:
        data = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with disk_errors(self.path):
            written = os.write(self._descriptor, data)
            while written < len(data):  # a full disk, or a signal, may cut one write short
                written += os.write(self._descriptor, data[written:])
            if time.monotonic() - self._synced > SECONDS_BETWEEN_SYNCS:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()

    def _read(self) -> None:
        if not self.path.exists():
            return
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(self.path, whole)
        waiting: dict[str, int] = {}
        for number, line in enumerate(text[:whole].split(b"\n")[:-1], start=1):
            try:
                record = json.loads(line)
                if "sent" in record:
                    waiting[record["sent"]] = waiting.get(record["sent"], 0) + 1
                elif "failed" in record:
                    waiting[record["failed"]] -= 1
                else:
                    usage = Usage(**record["usage"])
                    self.replies[record["key"]] = (str(record["reply"]), usage)
                    waiting[record["key"]] -= 1
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path}: line {number} is damaged; remove it, and it is asked again") from None
        self.unknown = sum(waiting.values())
