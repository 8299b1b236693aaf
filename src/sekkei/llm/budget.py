"""A ceiling on tokens, calls and seconds, shared by all backends that are given the same `Budget`.

A call is refused (`BudgetError`) once the budget is spent. What a call will cost is not known before it is answered,
so calls that are under way when the limit is passed are finished and counted: tokens can overshoot by what is in
flight, which the concurrency limit bounds. Seconds run from the first call and also cut off a call under way.
Replies from the cache cost nothing: the cache stands outside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sekkei.core.errors import ConfigError
from sekkei.llm.protocol import Backend, BudgetError, Call, Capabilities, Piece, Reply, Score, Usage, counted

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Most tokens (prompt + completion), calls and seconds; None = no limit."""

    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for key in ("tokens", "calls", "seconds"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, f"got {value}, must be > 0, or null for no limit")


class Budget:
    """What may be spent, and what has been."""

    def __init__(self, config: BudgetConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self._clock = config, clock
        self.usage, self.calls = Usage(), 0
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """Since the first call."""
        return 0.0 if self._began is None else self._clock() - self._began

    def begin(self) -> None:
        """Count a call that is about to be made.

        Raises:
            BudgetError: the budget is spent.
        """
        if self._began is None:
            self._began = self._clock()
        limits, spent = self.config, self.usage.total_tokens
        if limits.calls is not None and self.calls >= limits.calls:
            raise BudgetError(f"the budget of {limits.calls} calls is spent")
        if limits.tokens is not None and spent >= limits.tokens:
            raise BudgetError(f"the budget of {limits.tokens} tokens is spent ({spent} used in {self.calls} calls)")
        self.check_time()
        self.calls += 1

    def check_time(self) -> None:
        """Raise BudgetError if the seconds are over."""
        limit = self.config.seconds
        if limit is not None and self.seconds >= limit:
            raise BudgetError(f"the budget of {limit:g} seconds is spent ({self.calls} calls)")

    def end(self, usage: Usage) -> None:
        """Count what a call cost."""
        self.usage += usage

    async def within(self, work: Awaitable[T]) -> T:
        """Await `work`, no longer than seconds are left.

        Raises:
            BudgetError
        """
        limit = self.config.seconds
        if limit is None:
            return await work
        try:
            async with asyncio.timeout(limit - self.seconds) as timer:
                return await work
        except TimeoutError:
            if timer.expired():
                raise BudgetError(f"the budget of {limit:g} seconds was spent during a call") from None
            raise


class Budgeted:
    """A backend that spends a budget."""

    def __init__(self, inner: Backend, budget: Budget) -> None:
        self._inner, self.budget = inner, budget

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        self.budget.begin()
        replies = await self.budget.within(self._inner.answer(call))
        self.budget.end(counted(replies))
        return replies

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        self.budget.begin()
        pieces = self._inner.stream(call)
        try:
            while (piece := await self.budget.within(anext(pieces, None))) is not None:
                if piece.reply is not None:
                    self.budget.end(piece.reply.usage)
                yield piece
        finally:
            await pieces.aclose()

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        self.budget.begin()
        scores = await self.budget.within(self._inner.score(call, continuations))
        self.budget.end(counted(scores))
        return scores

    async def close(self) -> None:
        await self._inner.close()
