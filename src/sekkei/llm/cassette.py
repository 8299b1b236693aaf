"""Record a conversation with a model once, replay it offline for ever.

    line 1      {"cassette": 1, "model": …, "capabilities": {…}}
    line 2 …    {"kind": "answer" | "score", "key": SHA-256, "call": {…}, "replies": […] or "scores": […]}

A recording stands in `PATH.part` while it grows and becomes `PATH` when the backend is closed, so a cassette is whole
or absent. Replaying, the i-th time that a call is made gives its i-th recording (calls may come in another order than
they were recorded in: concurrent ones do). A call that was not recorded is refused, and the error names the first
difference from the recording that is most alike. Nothing is asked of anybody while replaying.
"""

from __future__ import annotations

import difflib
import json
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TextIO

from sekkei.core.atomic import disk_errors
from sekkei.core.config import from_mapping, to_mapping
from sekkei.llm.cache import UNREADABLE, reply_from, reply_mapping, score_from, whole
from sekkei.llm.protocol import Backend, Call, Capabilities, LLMError, Piece, Reply, Score

VERSION = 1


class CassetteError(LLMError):
    """A call that the cassette does not hold, or a file that is no cassette."""


class Recording:
    """A backend that writes down every answer of another.

    Args:
        path: of the cassette; it appears when `close` is called.
    """

    def __init__(self, inner: Backend, path: Path) -> None:
        self._inner, self.path = inner, path
        self._part = path.with_name(path.name + ".part")
        self._file: TextIO | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        replies = await self._inner.answer(call)
        self._write(call, "answer", replies=[reply_mapping(reply) for reply in replies])
        return replies

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._inner.stream(call)) as pieces:
            async for piece in pieces:
                if piece.reply is not None:
                    self._write(call, "answer", replies=[reply_mapping(piece.reply)])
                yield piece

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        scores = await self._inner.score(call, continuations)
        self._write(call, "score", continuations=list(continuations), scores=to_mapping(scores))
        return scores

    async def close(self) -> None:
        await self._inner.close()
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
                self._part.replace(self.path)

    def _write(self, call: Call, kind: str, **found: Any) -> None:
        key = call.key(self.name, kind, *found.get("continuations", ()))
        line = json.dumps({"kind": kind, "key": key, "call": call.mapping(), **found}, ensure_ascii=False)
        with self._lock, disk_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                head = {"cassette": VERSION, "model": self.name, "capabilities": to_mapping(self.capabilities)}
                self._file = self._part.open("w", encoding="utf-8")
                self._file.write(json.dumps(head) + "\n")
            self._file.write(line + "\n")
            self._file.flush()


class Replay:
    """A backend that plays a cassette.

    Raises:
        CassetteError: the file is missing or is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
            if head["cassette"] != VERSION:
                raise CassetteError(
                    f"{path}: is a cassette of version {head['cassette']}, this is {VERSION}; record anew"
                )
            self._name, self._can = str(head["model"]), from_mapping(Capabilities, head["capabilities"])
            self._tracks: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for line in lines:
                self._tracks[line["key"]].append(line)
        except FileNotFoundError:
            raise CassetteError(f"{path}: no such cassette; record one with cassette:{path}=SPEC") from None
        except CassetteError:
            raise
        except UNREADABLE as error:
            raise CassetteError(f"{path}: is no cassette ({' '.join(str(error).split())}); record it anew") from None
        self._played: dict[str, int] = defaultdict(int)

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._can

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        line = self._next(call, "answer")
        return tuple(reply_from(item) for item in line["replies"])

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        (reply,) = await self.answer(call)
        for piece in whole(reply):
            yield piece

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        line = self._next(call, "score", *continuations)
        return tuple(score_from(item) for item in line["scores"])

    async def close(self) -> None:
        return None

    def _next(self, call: Call, kind: str, *more: str) -> dict[str, Any]:
        key = call.key(self._name, kind, *more)
        tracks = self._tracks.get(key, ())
        place = self._played[key]
        if place < len(tracks):
            self._played[key] += 1
            return tracks[place]
        if tracks:
            raise CassetteError(f"{self.path}: a call that was recorded {len(tracks)} times is made again; record anew")
        raise CassetteError(
            f"{self.path}: this call was not recorded: {self._difference(call, kind, more)}; record anew"
        )

    def _difference(self, call: Call, kind: str, more: Sequence[str]) -> str:
        """Where the call departs from the recording that is most like it."""
        recorded = [line for tracks in self._tracks.values() for line in tracks if line["kind"] == kind]
        if not recorded:
            return f"the cassette holds no call of kind {kind!r}"
        asked = call.mapping()
        text = _words(asked)
        matcher = difflib.SequenceMatcher(b=text)

        def likeness(line: dict[str, Any]) -> float:
            matcher.set_seq1(_words(line["call"]))
            return matcher.quick_ratio()

        nearest = max(recorded, key=likeness)
        found = nearest["call"]
        for key, value in asked["settings"].items():
            if found["settings"].get(key) != value and found["messages"] == asked["messages"]:
                return f"settings.{key} is {value!r}, recorded was {found['settings'].get(key)!r}"
        for i, message in enumerate(asked["messages"]):
            if i >= len(found["messages"]):
                return f"it has {len(asked['messages'])} messages, the nearest recording {len(found['messages'])}"
            if message != found["messages"][i]:
                here, there = _apart(str(message.get("content")), str(found["messages"][i].get("content")))
                return f"message {i} ({message['role']}) reads {here!r} where the nearest recording has {there!r}"
        if len(asked["messages"]) != len(found["messages"]):
            return f"it has {len(asked['messages'])} messages, the nearest recording {len(found['messages'])}"
        if asked["tools"] != found["tools"]:
            return "its tools differ"
        return f"its continuations {list(more)[:3]!r} differ from {nearest.get('continuations', [])[:3]!r}"


def record_or_replay(path: Path, make: Callable[[], Backend] | None) -> Backend:
    """Play the cassette if it is there, else record one from the backend that `make()` opens (None: play only).

    Raises:
        UserError: as `Replay` and `make` do.
    """
    if path.exists() or make is None:
        return Replay(path)
    return Recording(make(), path)


def _words(call: dict[str, Any]) -> str:
    return "\n".join(str(message.get("content")) for message in call["messages"])


def _apart(here: str, there: str, width: int = 40) -> tuple[str, str]:
    """The two texts from a little before where they part."""
    same = next((i for i, (a, b) in enumerate(zip(here, there)) if a != b), min(len(here), len(there)))
    begin = max(same - width // 4, 0)
    return here[begin : begin + width], there[begin : begin + width]
