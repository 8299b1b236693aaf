"""A run as a JSONL file: everything that was asked, answered and decided, so that it can be replayed and shown.

    {"event": "start", "version": 1, "task", "model", "protocol", "system", "config", "tools": [{"schema", …}]}
    {"event": "clock", "elapsed"}                                    whenever the loop looked at the clock
    {"event": "reply", "key", "messages", "settings", "reply", "seconds"}      or "timeout" or "error" for the reply
    {"event": "approval", "tool", "arguments", "allowed", "reason"}
    {"event": "tool", "id", "tool", "arguments", "result", "failed", "seconds"}
    {"event": "end", "outcome"}

"messages" are those that are new since the reply before; "key" is the SHA-256 of the whole call, so the conversation
cannot differ unnoticed. `replay` runs the loop of today on the recorded answers, calls neither model nor tools, and
refuses (`TraceError`) as soon as the run asks for something that the file does not hold, or ends in another way.

Lines are written as things happen, so a run that was killed leaves what it did; it can be shown but not replayed.
The file holds the whole conversation and every result: treat it as confidential as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sekkei.agent.dialect import Asked, Dialect, Shown, Told
from sekkei.agent.loop import VERSION, AgentConfig, Outcome, outcome_mapping, pursue
from sekkei.agent.world import OutOfTimeError
from sekkei.core.atomic import disk_errors
from sekkei.core.config import from_mapping
from sekkei.core.errors import UserError
from sekkei.llm.cache import UNREADABLE, reply_from
from sekkei.llm.face import wait_for
from sekkei.llm.protocol import Call, LLMError, Reply

Event = Mapping[str, Any]


class TraceError(UserError):
    """A file that is no trace, or a run that differs from it."""


class Recorder:
    """A listener that writes events to a file, replacing what stood there. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Recorder:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        return self

    def __call__(self, event: Event) -> None:
        assert self._file is not None, "a recorder listens inside its `with` block"
        with disk_errors(self.path):
            self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a trace; a last line that was torn is left out.

    Raises:
        TraceError: the file cannot be read or is no trace of this version.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise TraceError(f"{path}: line {number} is not JSON") from None
        if not isinstance(event, dict) or "event" not in event:
            raise TraceError(f"{path}: line {number} is no event of an agent's trace")
        events.append(event)
    if not events or events[0]["event"] != "start":
        raise TraceError(f"{path}: is no trace of an agent (it must begin with a start event)")
    if events[0].get("version") != VERSION:
        raise TraceError(f"{path}: has version {events[0].get('version')}, this sekkei reads {VERSION}")
    return events


def replay(path: Path, tools: Iterable[Shown] | None = None, task: str | None = None) -> Outcome:
    """Run again what the trace holds, without model and tools.

    Args:
        tools: the tools of today, to see whether the run would still be the same; None takes the recorded ones.
        task: likewise.

    Returns:
        The outcome, which equals the recorded one.
    Raises:
        TraceError: the run was cut off, or today's loop, tools or task lead to something else.
        LLMError: as the recorded run did.
    """
    events = read(path)
    start = events[0]
    config = from_mapping(AgentConfig, start["config"], "config")
    shown = [_Described(**tool) for tool in start["tools"]] if tools is None else list(tools)
    dialect = Dialect(start["protocol"], shown, start["system"])
    world = _Replayed(path, events)
    outcome = wait_for(pursue(start["task"] if task is None else task, dialect, config, world))
    world.finish(outcome)
    return outcome


@dataclass(frozen=True)
class _Described:
    """A tool that can be shown and not called."""

    schema: Mapping[str, Any]
    only_argument: str | None
    writes: bool

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])


class _Replayed:
    """A `World` whose every answer comes from the file, in its order."""

    def __init__(self, path: Path, events: Sequence[dict[str, Any]]) -> None:
        self.path, self.events = path, events
        self.place = 1

    def elapsed(self) -> float:
        return float(self._next("clock", "looks at the clock")["elapsed"])

    async def reply(self, call: Call, seconds: float) -> Reply:
        event = self._next("reply", "asks the model")
        if event["key"] != call.key(self.events[0]["model"]):
            raise self._differs("asks the model something else than was recorded")
        if event.get("timeout"):
            raise OutOfTimeError
        if "error" in event:
            raise LLMError(event["error"])
        try:
            return reply_from(event["reply"])
        except UNREADABLE as error:
            raise TraceError(f"{self.path}: line {self.place} holds no reply ({error})") from None

    async def use(self, asked: Sequence[Asked], seconds: float) -> list[Told]:
        while self._kind() == "approval":
            self.place += 1
        told = []
        for one in asked:
            event = self._next("tool", f"calls {one.name or 'a tool'}")
            if (event["tool"], event["arguments"]) != (one.name, one.arguments):
                raise self._differs(
                    f"calls {one.name}({one.arguments}), recorded is {event['tool']}({event['arguments']})"
                )
            told.append(Told(one, str(event["result"]), bool(event["failed"])))
        return told

    def finish(self, outcome: Outcome) -> None:
        """Compare the end."""
        recorded = self._next("end", "ends")["outcome"]
        found = json.loads(json.dumps(outcome_mapping(outcome)))
        for key, value in found.items():
            if value != recorded.get(key):
                raise self._differs(f"ends with {key}={value!r}, recorded is {recorded.get(key)!r}")

    def _kind(self) -> str:
        return str(self.events[self.place]["event"]) if self.place < len(self.events) else ""

    def _next(self, kind: str, doing: str) -> dict[str, Any]:
        if not self._kind():
            raise TraceError(
                f"{self.path}: ends after line {self.place}, before the run did; it can be shown, not replayed"
            )
        if self._kind() != kind:
            raise self._differs(f"{doing}, recorded is {self._kind()!r}")
        self.place += 1
        return self.events[self.place - 1]

    def _differs(self, how: str) -> TraceError:
        return TraceError(f"{self.path}: line {self.place + (self._kind() == '')}: the run of today {how}")
