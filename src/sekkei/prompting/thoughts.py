"""A model as the G and V of a Tree of Thoughts (Yao et al. 2023, section 3): sample or propose; value or vote.

    propose   one call lists next thoughts, one per line                    for small thoughts, as an equation
    sample    k calls, each writes one thought, at a temperature            for large ones, as a plan
    value     each state judged alone, `times` samples, their values summed
    vote      all states of a step shown together, `times` samples, votes counted
    likely    each state by the model's own probability of what it has written (not in the paper: for a small model
              that was never taught to judge; Xie et al. 2023 guide a beam by such confidences)

A task says how it asks and how it reads: see the protocols below. Lines that cannot be read as a thought are dropped.
A prompt for a value is asked once within one solve, as in the published program.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, Protocol, TypeVar

from sekkei.llm.protocol import LLMError, Message, Reply, Settings
from sekkei.prompting.solution import Meter

S = TypeVar("S", bound=Hashable)
S_contra = TypeVar("S_contra", bound=Hashable, contravariant=True)


class Proposing(Protocol[S]):
    """A task whose next thoughts can be listed."""

    def propose_messages(self, state: S, k: int) -> list[Message]: ...

    def read_proposals(self, state: S, text: str) -> list[S]:
        """The states that a listing leads to, in its order."""
        ...


class Sampling(Protocol[S]):
    """A task whose next thought can be written."""

    def sample_messages(self, state: S) -> list[Message]: ...

    def read_thought(self, state: S, reply: Reply) -> S | None:
        """The state after one reply, None if it is no thought."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a thought."""
        ...


class Valuing(Protocol[S_contra]):
    """A task whose states can be judged alone."""

    def value_messages(self, state: S_contra) -> list[Message]: ...

    def read_value(self, text: str) -> float:
        """The worth of one verdict; 0 for one that cannot be read."""
        ...


class Voting(Protocol[S_contra]):
    """A task whose states can be compared."""

    def vote_messages(self, states: Sequence[S_contra]) -> list[Message]: ...

    def read_vote(self, text: str, count: int) -> int | None:
        """The index that one verdict votes for, None if it cannot be read."""
        ...


class Continuing(Protocol[S_contra]):
    """A task whose last thought is a text behind a prompt."""

    def last_thought(self, state: S_contra) -> tuple[list[Message], str]:
        """(messages up to it, the thought as the model would write it)."""
        ...

    def path(self, state: S_contra) -> tuple[list[Message], str]:
        """(messages up to the first thought, all thoughts as the model would write them)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Propose(Generic[S]):
    """G by listing; all that a reply lists are candidates, the paper's k is a wish in the prompt."""

    task: Proposing[S]
    settings: Settings = field(default_factory=lambda: Settings(temperature=0.7))

    async def __call__(self, meter: Meter, state: S, k: int) -> list[S]:
        reply = await meter.chat(self.task.propose_messages(state, k), self.settings, "propose")
        return self.task.read_proposals(state, reply.text)


@dataclass(frozen=True, kw_only=True)
class Sample(Generic[S]):
    """G by k independent samples of one call."""

    task: Sampling[S]
    settings: Settings = field(default_factory=lambda: Settings(temperature=0.7, max_tokens=128))

    async def __call__(self, meter: Meter, state: S, k: int) -> list[S]:
        settings = replace(self.settings, n=k, stop=self.settings.stop or self.task.stop)
        replies = await meter.sample(self.task.sample_messages(state), settings, "sample")
        made = [self.task.read_thought(state, reply) for reply in replies]
        return [state for state in made if state is not None]


@dataclass(frozen=True, kw_only=True)
class Value(Generic[S]):
    """V by judging each state alone; `times` samples (3 in the paper's Game of 24), their values summed."""

    task: Valuing[S]
    times: int = 3
    settings: Settings = field(default_factory=lambda: Settings(temperature=0.7))
    _known: weakref.WeakKeyDictionary[Meter, dict[str, float]] = field(
        default_factory=weakref.WeakKeyDictionary, repr=False, compare=False
    )

    async def __call__(self, meter: Meter, states: list[S]) -> list[float]:
        known = self._known.setdefault(meter, {})
        asked = [self.task.value_messages(state) for state in states]
        new = {repr(messages): messages for messages in asked if repr(messages) not in known}
        values = await together([self._one(meter, messages) for messages in new.values()])
        known.update(zip(new, values))
        return [known[repr(messages)] for messages in asked]

    async def _one(self, meter: Meter, messages: list[Message]) -> float:
        replies = await meter.sample(messages, replace(self.settings, n=self.times), "value")
        return sum(self.task.read_value(reply.text) for reply in replies)


@dataclass(frozen=True, kw_only=True)
class Vote(Generic[S]):
    """V by comparing all states of a step; `times` samples (5 in the paper's creative writing), votes counted."""

    task: Voting[S]
    times: int = 5
    settings: Settings = field(default_factory=lambda: Settings(temperature=0.7))

    async def __call__(self, meter: Meter, states: list[S]) -> list[float]:
        settings = replace(self.settings, n=self.times)
        replies = await meter.sample(self.task.vote_messages(states), settings, "vote")
        votes = [0.0] * len(states)
        for reply in replies:
            choice = self.task.read_vote(reply.text, len(states))
            if choice is not None:
                votes[choice] += 1
        return votes


@dataclass(frozen=True, kw_only=True)
class Likely(Generic[S]):
    """V by the model's own probability; see the header.

    Args:
        scope: "path" = the geometric mean over the tokens of all thoughts so far, so that paths of other lengths
            compare; "last" = the probability of the last thought alone, which forgets how doubtful the way to it was.
    """

    task: Continuing[S]
    scope: Literal["path", "last"] = "path"

    async def __call__(self, meter: Meter, states: list[S]) -> list[float]:
        if not meter.llm.capabilities.loglikelihood:
            raise LLMError(f"{meter.llm.name} cannot score a given text, which the values need; use value or vote")
        by_prompt: dict[str, tuple[list[Message], list[str]]] = {}
        asked = [self.task.path(state) if self.scope == "path" else self.task.last_thought(state) for state in states]
        for messages, text in asked:
            _, texts = by_prompt.setdefault(repr(messages), (messages, []))
            if text not in texts:
                texts.append(text)
        found: dict[tuple[str, str], float] = {}
        for key, (messages, texts) in by_prompt.items():
            for text, score in zip(texts, await meter.score(messages, texts, "likely")):
                found[key, text] = math.exp(score.per_token if self.scope == "path" else score.logprob)
        return [found[repr(messages), text] for messages, text in asked]


async def together(work: Sequence[Awaitable[float]]) -> list[float]:
    """All at once, under the backend's limit; the first failure cancels the rest and is raised as itself."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
