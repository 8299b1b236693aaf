"""Ask for many replies or scores at once, in order, with progress: a model decodes them together.

    conversations ──asample, `WINDOW` under way──> replies of each

Endpoints have their own limit of concurrency (llm/limit.py); our own engine batches what waits together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from sekkei.llm.face import LLM, wait_for
from sekkei.llm.protocol import Message, Reply, Score, Settings

T = TypeVar("T")
Progress = Callable[[int], None]
WINDOW = 256  # conversations under way at once; more only cost memory


def no_progress(done: int) -> None:
    """Say nothing."""


def sample_all(
    llm: LLM, conversations: Sequence[Sequence[Message]], settings: Settings, progress: Progress = no_progress
) -> list[list[Reply]]:
    """`settings.n` replies to each conversation; the i-th is asked with its own seed, `settings.seed` + i · n.

    Raises:
        LLMError: one of them cannot be answered; the others are given up.
    """

    def ask(place: int) -> Awaitable[list[Reply]]:
        own = replace(settings, seed=settings.seed + place * settings.n)
        return llm.asample(conversations[place], own)

    return wait_for(_all(ask, len(conversations), progress))


def score_all(
    llm: LLM,
    questions: Sequence[tuple[Sequence[Message], Sequence[str]]],
    settings: Settings,
    progress: Progress = no_progress,
) -> list[list[Score]]:
    """Log-likelihoods of each question's continuations. Raises as `sample_all`."""

    def ask(place: int) -> Awaitable[list[Score]]:
        messages, continuations = questions[place]
        return llm.aloglikelihood(messages, continuations, settings)

    return wait_for(_all(ask, len(questions), progress))


async def _all(ask: Callable[[int], Awaitable[T]], count: int, progress: Progress) -> list[T]:
    gate, done = asyncio.Semaphore(WINDOW), 0
    found: list[T | None] = [None] * count

    async def one(place: int) -> None:
        nonlocal done
        async with gate:
            found[place] = await ask(place)
        done += 1
        progress(done)

    tasks = [asyncio.create_task(one(place)) for place in range(count)]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return found  # type: ignore[return-value]
