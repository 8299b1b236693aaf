"""What a strategy returns, and the meter that it asks through, so that every token is counted.

    meter = Meter(llm)
    replies = await meter.sample(messages, settings, why="propose")      counted and written down
    Solution(answer, candidates, nodes, cost=meter.cost, log=meter.log)

`nodes` is the tree of what was tried (for a strategy without a search: the question with its samples), in the order in
which it was made; `drawing.py` draws it. A reply from the cache counts what it once cost: accuracy per token must
not depend on what was asked before. A sampled call's seed is derived from the settings' seed and the messages: with one
seed for all, every state of a search and every problem of a study would draw alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from sekkei.core.seed import derive_seed
from sekkei.llm.face import LLM, wait_for
from sekkei.llm.protocol import Message, Reply, Score, Settings, Usage, counted

Status = Literal["root", "kept", "pruned", "duplicate", "final", "answer"]


@dataclass(frozen=True)
class Cost:
    """Calls made and tokens used."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass
class Node:
    """One state of a search, or one sample.

    Args:
        id: its place in the list of nodes. parent: the id of the node that it came from, None for the root.
        text: what it says. value: how it was judged, None where it was not. status: what became of it.
        note: anything else worth showing, as the answer that was read from it.
    """

    id: int
    parent: int | None
    text: str
    value: float | None = None
    status: Status = "kept"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """An answer and how it came about.

    Args:
        answer: None where nothing could be read as one.
        candidates: answers of all final states or samples, the best first where they are ranked; None for those that
            gave none. What a majority, a mean or an oracle over them is worth, `tot.final_figures` says.
        reply: the text that holds the answer, where one reply does.
    """

    answer: str | None
    candidates: tuple[str | None, ...] = ()
    nodes: tuple[Node, ...] = ()
    cost: Cost = field(default_factory=Cost)
    log: tuple[dict[str, Any], ...] = ()
    reply: str = ""


class Strategy(Protocol):
    """A way to an answer."""

    @property
    def name(self) -> str: ...

    async def solve(self, llm: LLM, question: str) -> Solution:
        """Raises LLMError: the model cannot be asked, or a budget is spent."""
        ...


class Meter:
    """An `LLM` that counts and remembers what it was asked."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.cost = Cost()
        self.log: list[dict[str, Any]] = []

    async def sample(self, messages: Sequence[Message], settings: Settings, why: str) -> list[Reply]:
        """`settings.n` replies to one call; `why` names its purpose in the log."""
        if settings.temperature > 0:
            seed = derive_seed("meter", settings.seed, json.dumps([dict(m) for m in messages], sort_keys=True)) % 2**31
            settings = replace(settings, seed=seed)
        replies = await self.llm.asample(messages, settings)
        usage = self._count(counted(replies))
        said = [{"thinking": reply.thinking, "text": reply.text} for reply in replies]
        self.log.append({"why": why, "messages": [dict(m) for m in messages], "replies": said, **usage})
        return replies

    async def chat(self, messages: Sequence[Message], settings: Settings, why: str) -> Reply:
        """One reply."""
        (reply,) = await self.sample(messages, settings, why)
        return reply

    async def score(self, messages: Sequence[Message], continuations: Sequence[str], why: str) -> list[Score]:
        """Log-likelihoods of continuations."""
        scores = await self.llm.aloglikelihood(messages, continuations)
        usage = self._count(counted(scores))
        found = [{"continuation": text, "logprob": score.logprob} for text, score in zip(continuations, scores)]
        self.log.append({"why": why, "messages": [dict(m) for m in messages], "scores": found, **usage})
        return scores

    def _count(self, usage: Usage) -> dict[str, int]:
        self.cost += Cost(1, usage.prompt_tokens, usage.completion_tokens)
        return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}


def solve_with(strategy: Strategy, llm: LLM, question: str) -> Solution:
    """`strategy.solve`, waiting."""
    return wait_for(strategy.solve(llm, question))


def flat_tree(question: str, rows: Sequence[tuple[str, str | None, float | None, Status]]) -> tuple[Node, ...]:
    """The question with its samples as a tree of depth 1; rows are (text, answer, value, status)."""
    nodes = [Node(0, None, question, status="root")]
    for text, answer, value, status in rows:
        note = "no answer" if answer is None else f"answer {answer}"
        nodes.append(Node(len(nodes), 0, text, value, status, note))
    return tuple(nodes)
