"""Asking judges: many requests at once, each paid once, a run that goes on where it was cut off.

    requests ──> [already in the ledger? done] ──> at most `concurrency` under way per judge ──> ledger

Retries after faults are the llm/ layer's work (llm/retry.py); what still fails is noted and asked again by the next
run. If the first 20 all fail (a wrong key, a server that is down) the run stops, since the others would fail too. A
spent budget stops the run and keeps what is done. Tasks are dealt from one list, never put
under way all at once, so that a kill leaves at most `concurrency` requests whose cost is unknown.

What it does not handle: batch endpoints (asked for by file, answered within a day), rate limits by tokens a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sekkei.judge.ledger import Ledger
from sekkei.llm.face import LLM, wait_for
from sekkei.llm.protocol import BudgetError, Call, LLMError, Message, Settings, Usage

CHARACTERS_PER_TOKEN = 4.0
GIVE_UP_AFTER = 20  # failures without one success


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to one judge. `judge` is its place in the list of judges; `key` its address in the ledger."""

    judge: int
    call: Call
    key: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will send at most: requests that are not in the ledger yet, and their tokens (characters / 4)."""

    requests: int
    done: int
    prompt_tokens: int
    completion_tokens: int

    def cost(self, price_prompt: float, price_completion: float) -> float:
        """In the currency of the prices, which are per million tokens."""
        return (price_prompt * self.prompt_tokens + price_completion * self.completion_tokens) / 1e6


@dataclass(kw_only=True)
class Outcome:
    """What a run did: replies that arrived in it, what they cost, and why the rest is missing."""

    answered: int = 0
    usage: Usage = field(default_factory=Usage)
    failures: list[str] = field(default_factory=list)
    stopped: str = ""


def request(judge: int, llm: LLM, messages: Sequence[Message], settings: Settings, shape: dict[str, object]) -> Request:
    """A request with structured output where the judge can keep to it."""
    if llm.capabilities.response_format:
        settings = replace(settings, response_format=shape)
    call = Call(messages=tuple(messages), settings=settings)
    return Request(judge=judge, call=call, key=call.key(llm.name))


def estimate(requests: Sequence[Request], ledger: Ledger) -> Estimate:
    """What is still to be asked, counted before anything is sent."""
    waiting = {one.key: one for one in requests if one.key not in ledger.replies}
    characters = sum(len(message["content"]) for one in waiting.values() for message in one.call.messages)
    return Estimate(
        requests=len(waiting),
        done=len({one.key for one in requests}) - len(waiting),
        prompt_tokens=round(characters / CHARACTERS_PER_TOKEN),
        completion_tokens=sum(one.call.settings.max_tokens for one in waiting.values()),
    )


def ask(
    judges: Sequence[LLM],
    requests: Sequence[Request],
    ledger: Ledger,
    concurrency: int = 16,
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> Outcome:
    """Ask what the ledger does not hold yet.

    Args:
        concurrency: requests under way at once, per judge. progress: told (finished requests, how it goes).
    Returns:
        What was done; `stopped` says why the rest was not tried.
    """
    return wait_for(_Run(judges, ledger, progress).all(requests, concurrency))


class _Run:
    def __init__(self, judges: Sequence[LLM], ledger: Ledger, progress: Callable[[int, str], None]) -> None:
        self.judges, self.ledger, self.progress = judges, ledger, progress
        self.outcome = Outcome()

    async def all(self, requests: Sequence[Request], concurrency: int) -> Outcome:
        waiting = {one.key: one for one in requests if one.key not in self.ledger.replies}
        try:
            async with asyncio.TaskGroup() as group:
                for judge in range(len(self.judges)):
                    todo = iter([one for one in waiting.values() if one.judge == judge])
                    for _ in range(concurrency):
                        group.create_task(self._work(todo))
        except BaseExceptionGroup as failures:  # a full disk: one line for the user, not a group of tracebacks
            raise _first(failures) from None
        return self.outcome

    async def _work(self, todo: Iterator[Request]) -> None:
        for one in todo:
            if self.outcome.stopped:
                return
            self.ledger.send(one.key)
            try:
                (reply,) = await self.judges[one.judge].backend.answer(one.call)
            except BudgetError as error:
                self.ledger.failed(one.key, str(error))
                self.outcome.stopped = str(error)
                return
            except LLMError as error:
                self._note(one, error)
            else:
                self.ledger.answered(one.key, reply)
                self.outcome.answered += 1
                self.outcome.usage += reply.usage
            spent, failed = self.outcome.usage.total_tokens, len(self.outcome.failures)
            text = f"{spent:,} tokens" + (f", {failed} failed" if failed else "")
            self.progress(self.outcome.answered + failed, text)

    def _note(self, one: Request, error: LLMError) -> None:
        self.ledger.failed(one.key, str(error))
        self.outcome.failures.append(str(error))
        if not self.outcome.answered and len(self.outcome.failures) >= GIVE_UP_AFTER:
            self.outcome.stopped = str(error)


def _first(group: BaseExceptionGroup) -> BaseException:
    """A group's first error."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
