"""At most `concurrency` calls under way at once; the others wait their turn.

The count holds per event loop (a process normally has one that asks: the background loop of `face.py`, or the
caller's own). A stream counts until it is read to its end or closed.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from sekkei.core.errors import ConfigError
from sekkei.llm.protocol import Backend, Call, Capabilities, Piece, Reply, Score


class Limited:
    """A backend that lets few calls through at a time."""

    def __init__(self, inner: Backend, concurrency: int) -> None:
        if concurrency < 1:
            raise ConfigError("concurrency", f"got {concurrency}, must be >= 1")
        self._inner, self.concurrency = inner, concurrency
        self._gates: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    @property
    def _gate(self) -> asyncio.Semaphore:
        return self._gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.concurrency))

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        async with self._gate:
            return await self._inner.answer(call)

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        async with self._gate, aclosing(self._inner.stream(call)) as pieces:
            async for piece in pieces:
                yield piece

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        async with self._gate:
            return await self._inner.score(call, continuations)

    async def close(self) -> None:
        await self._inner.close()
