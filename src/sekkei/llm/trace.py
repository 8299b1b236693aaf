"""Every call as one line of a JSONL file: what was asked, what came back, how long it took, what it cost.

    {"at": "2026-01-01T12:00:00+00:00", "kind": "answer", "model": …, "seconds": 0.41, "messages": […], "settings": {…},
     "replies": [{…}], "usage": {"prompt_tokens": 212, "completion_tokens": 37, …}, "cost": 0.00021, "cached": false}

A call that failed has "error" instead of "replies". `cost` is in the currency of the prices that were given, and absent
without them; a reply from the cache costs 0. Lines are appended as calls end, so a killed process keeps what is done.
The file holds whole prompts: treat it as confidential as they are. Keys and headers never get here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sekkei.core.atomic import disk_errors
from sekkei.core.config import to_mapping
from sekkei.llm.cache import reply_mapping
from sekkei.llm.protocol import Backend, Call, Capabilities, Piece, Reply, Score, Usage, counted


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Price of a million prompt tokens and of a million written ones, in any one currency."""

    prompt: float
    completion: float

    def of(self, usage: Usage) -> float:
        return (self.prompt * usage.prompt_tokens + self.completion * usage.completion_tokens) / 1e6


class Traced:
    """A backend that writes down what it is asked.

    Args:
        path: of the JSONL file; appended to. prices: for "cost"; None leaves it out.
    """

    def __init__(self, inner: Backend, path: Path, prices: Prices | None = None) -> None:
        self._inner, self.path, self._prices = inner, path, prices
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        began = time.perf_counter()
        try:
            replies = await self._inner.answer(call)
        except BaseException as error:
            self._write("answer", call, began, error=error)
            raise
        self._write("answer", call, began, replies=replies)
        return replies

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        began, ended = time.perf_counter(), False
        try:
            async with aclosing(self._inner.stream(call)) as pieces:
                async for piece in pieces:
                    if piece.reply is not None:
                        ended = True
                        self._write("stream", call, began, replies=[piece.reply])
                    yield piece
        except BaseException as error:
            if not ended:
                self._write("stream", call, began, error=error)
            raise

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        began = time.perf_counter()
        try:
            scores = await self._inner.score(call, continuations)
        except BaseException as error:
            self._write("score", call, began, error=error)
            raise
        found = [{"continuation": text, **to_mapping(score)} for text, score in zip(continuations, scores)]
        self._write("score", call, began, usage=counted(scores), scores=found)
        return scores

    async def close(self) -> None:
        await self._inner.close()

    def _write(
        self,
        kind: str,
        call: Call,
        began: float,
        *,
        replies: Sequence[Reply] = (),
        usage: Usage | None = None,
        error: BaseException | None = None,
        **more: Any,
    ) -> None:
        usage = counted(replies) if usage is None else usage
        cached = bool(replies) and all(reply.cached for reply in replies)
        record: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "model": self.name,
            "seconds": round(time.perf_counter() - began, 4),
            **call.mapping(),
            **more,
        }
        if error is not None:
            record["error"] = str(error) or type(error).__name__
        else:
            record |= {"usage": to_mapping(usage), "cached": cached}
            if replies:
                record["replies"] = [reply_mapping(reply) for reply in replies]
            if self._prices is not None:
                record["cost"] = 0.0 if cached else self._prices.of(usage)
        line = json.dumps(record, ensure_ascii=False)
        with self._lock, disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
