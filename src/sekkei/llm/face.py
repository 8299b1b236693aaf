"""How people call a backend: `chat`, `sample`, `stream`, `loglikelihood`, plainly or with `await`.

    reply  = llm.chat(messages, settings, tools)            reply  = await llm.achat(…)
    many   = llm.sample(messages, Settings(n=8, …))         many   = await llm.asample(…)
    all_   = llm.chat_many([messages, messages, …])         all at once, under the backend's concurrency limit
    for piece in llm.stream(messages): …                    async for piece in llm.astream(messages): …
    scores = llm.loglikelihood(messages, [" yes", " no"])   scores = await llm.aloglikelihood(…)

The plain methods hand a coroutine to one event loop that runs in a daemon thread of this process and wait for it, so
they work in scripts, in threads and inside a notebook whose own loop is running. Ctrl-C cancels what was handed over.
Only plain calls wait; from inside a coroutine use the async methods, a plain call there blocks that coroutine's loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from typing import Any, Self, TypeVar

from sekkei.llm.protocol import (
    Backend,
    Call,
    Capabilities,
    LLMError,
    Message,
    Piece,
    Reply,
    Score,
    Settings,
    Tool,
)

T = TypeVar("T")
DEFAULT = Settings()
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


class LLM:
    """A backend with a face. Nothing but calling convention lives here.

    Args:
        backend: who answers.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def capabilities(self) -> Capabilities:
        return self.backend.capabilities

    async def achat(
        self,
        messages: Sequence[Message],
        settings: Settings = DEFAULT,
        tools: Sequence[Tool] | None = None,
    ) -> Reply:
        """One reply.

        Raises:
            LLMError: it cannot be answered; `settings.n` is not 1 (several samples come from `asample`).
        """
        if settings.n != 1:
            raise LLMError(f"chat gives one reply, got n={settings.n}: use sample")
        (reply,) = await self.backend.answer(_call(messages, settings, tools))
        return reply

    async def asample(
        self,
        messages: Sequence[Message],
        settings: Settings = DEFAULT,
        tools: Sequence[Tool] | None = None,
    ) -> list[Reply]:
        """`settings.n` replies to one call."""
        return list(await self.backend.answer(_call(messages, settings, tools)))

    async def achat_many(self, conversations: Sequence[Sequence[Message]], settings: Settings = DEFAULT) -> list[Reply]:
        """One reply per conversation, all under way at once; the first failure cancels the rest."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.achat(messages, settings)) for messages in conversations]
        return [task.result() for task in tasks]

    async def astream(
        self,
        messages: Sequence[Message],
        settings: Settings = DEFAULT,
        tools: Sequence[Tool] | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of one reply; the last one holds the whole `Reply` and adds nothing."""
        if settings.n != 1:
            raise LLMError(f"a stream gives one reply, got n={settings.n}: use sample")
        async for piece in self.backend.stream(_call(messages, settings, tools)):
            yield piece

    async def aloglikelihood(
        self, messages: Sequence[Message], continuations: Sequence[str], settings: Settings = DEFAULT
    ) -> list[Score]:
        """Log-likelihood of each text as the beginning of the assistant's turn, or as what continues that turn."""
        return list(await self.backend.score(_call(messages, settings, None), continuations))

    async def aclose(self) -> None:
        await self.backend.close()

    def chat(
        self,
        messages: Sequence[Message],
        settings: Settings = DEFAULT,
        tools: Sequence[Tool] | None = None,
    ) -> Reply:
        """As `achat`, waiting."""
        return wait_for(self.achat(messages, settings, tools))

    def sample(
        self,
        messages: Sequence[Message],
        settings: Settings = DEFAULT,
        tools: Sequence[Tool] | None = None,
    ) -> list[Reply]:
        """As `asample`, waiting."""
        return wait_for(self.asample(messages, settings, tools))

    def chat_many(self, conversations: Sequence[Sequence[Message]], settings: Settings = DEFAULT) -> list[Reply]:
        """As `achat_many`, waiting."""
        return wait_for(_unwrapped(self.achat_many(conversations, settings)))

    def stream(
        self,
        messages: Sequence[Message],
        settings: Settings = DEFAULT,
        tools: Sequence[Tool] | None = None,
    ) -> Iterator[Piece]:
        """As `astream`. Leaving the loop early closes the stream."""
        return _drained(self.astream(messages, settings, tools))

    def loglikelihood(
        self, messages: Sequence[Message], continuations: Sequence[str], settings: Settings = DEFAULT
    ) -> list[Score]:
        """As `aloglikelihood`, waiting."""
        return wait_for(self.aloglikelihood(messages, continuations, settings))

    def close(self) -> None:
        wait_for(self.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the process's background loop and return its result; Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop that the plain face uses, started at the first call in a daemon thread."""
    global _loop  # noqa: PLW0603 (one thread per process is the point)
    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="sekkei-llm", daemon=True).start()
        return _loop


def _call(messages: Sequence[Message], settings: Settings, tools: Sequence[Tool] | None) -> Call:
    return Call(messages=tuple(messages), settings=settings, tools=tuple(tools or ()))


async def _unwrapped(work: Coroutine[Any, Any, T]) -> T:
    """A task group's first failure instead of its exception group: callers catch LLMError."""
    try:
        return await work
    except BaseExceptionGroup as group:
        failure: BaseException = group
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from None


def _drained(pieces: AsyncGenerator[Piece, None]) -> Iterator[Piece]:
    """An async iterator, consumed on the background loop, as a plain one."""
    arrived: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()

    async def pump() -> None:
        try:
            async for piece in pieces:
                arrived.put(piece)
            arrived.put(None)
        except asyncio.CancelledError:
            await pieces.aclose()
            raise
        except BaseException as error:
            arrived.put(error)

    future = asyncio.run_coroutine_threadsafe(pump(), background_loop())
    try:
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        future.cancel()
