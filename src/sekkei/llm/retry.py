"""Try again after a failure that may pass, with growing waits and jitter.

    wait before try i = u · min(max_wait_s, base_s · 2^(i-1)),  u uniform in (0, 1)       "full jitter"
                        and never less than the server's Retry-After

Jitter spreads the callers that were refused together (Brooker 2015, Exponential Backoff and Jitter, AWS Architecture
Blog). A server that asks for more than `max_wait_s` is believed: the call fails at once and says so. A stream is
tried again only while nothing of it has been passed on. The draws are a function of the seed, the call and the try.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.llm.protocol import Backend, Call, Capabilities, LLMError, Piece, Reply, Score, TransientError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """`attempts` in all (1 = no retry); waits in seconds, see the header."""

    attempts: int = 5
    base_s: float = 0.5
    max_wait_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError("attempts", f"got {self.attempts}, must be >= 1 (1 = no retry)")
        if self.base_s < 0 or self.max_wait_s < 0:
            raise ConfigError("base_s", f"base_s={self.base_s} and max_wait_s={self.max_wait_s} must be >= 0 seconds")


class Retrying:
    """A backend that tries again.

    Args:
        sleep: waits; tests put their own here.
    """

    def __init__(
        self, inner: Backend, config: RetryConfig, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._inner, self._config, self._sleep = inner, config, sleep

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        return await self._again(call, lambda: self._inner.answer(call))

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        return await self._again(call, lambda: self._inner.score(call, continuations))

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        attempt = 1
        while True:
            begun = False
            try:
                async with aclosing(self._inner.stream(call)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except TransientError as error:
                if begun:
                    raise
                await self._wait(call, attempt, error)
            attempt += 1

    async def close(self) -> None:
        await self._inner.close()

    async def _again(self, call: Call, ask: Callable[[], Awaitable[T]]) -> T:
        attempt = 1
        while True:
            try:
                return await ask()
            except TransientError as error:
                await self._wait(call, attempt, error)
            attempt += 1

    async def _wait(self, call: Call, attempt: int, error: TransientError) -> None:
        """Wait before the next try, or give up.

        Raises:
            LLMError: that was the last try, or the server asks for too long a wait.
        """
        config = self._config
        if attempt >= config.attempts:
            raise LLMError(f"{error} (tried {attempt} times)" if attempt > 1 else str(error)) from error
        asked = error.retry_after or 0.0
        if asked > config.max_wait_s:
            raise LLMError(f"{error}; the server asks to wait {asked:.0f} s, more than max_wait_s") from error
        draw = derive_seed(config.seed, call.key(self.name), attempt) / 2**63
        backoff = draw * min(config.max_wait_s, config.base_s * 2 ** (attempt - 1))
        await self._sleep(max(backoff, asked))
