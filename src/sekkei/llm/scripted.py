"""A backend that says what it was told to say: for tests, and for showing a strategy without a model.

    Scripted(["first reply", Reply(text="second"), TransientError("busy")])     one item per sample, in order
    Scripted(lambda call: "echo: " + call.messages[-1]["content"])              or a function of the call

Tokens are counted as words (white space between them), so that budgets and costs can be tested. Every call is
kept in `calls`. A script that has run out raises, so a test sees a call too many.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from sekkei.llm.protocol import Call, Capabilities, LLMError, Piece, Reply, Score, Usage, check, refuse

Line = str | Reply | Exception
EVERYTHING = Capabilities(stream=True, loglikelihood=True, tools=True, response_format=True, seed=True, continues=True)


class Scripted:
    """Answers from a list or a function.

    Args:
        script: the replies in order, or a function from a call to one reply (or to a list, one per sample). An
            exception among them is raised when its turn comes.
        scorer: log-probability of (call, continuation), for `score`; None: it cannot.
        name: as traces show it.
    """

    def __init__(
        self,
        script: Sequence[Line] | Callable[[Call], Line | Sequence[Line]],
        scorer: Callable[[Call, str], float] | None = None,
        name: str = "scripted",
    ) -> None:
        self._script, self._scorer, self._name = script, scorer, name
        self._place = 0
        self.calls: list[Call] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return replace(EVERYTHING, loglikelihood=self._scorer is not None)

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        check(self._name, self.capabilities, call)
        self.calls.append(call)
        lines = self._lines(call)
        prompt = sum(_words(message["content"]) for message in call.messages)
        replies = []
        for i, line in enumerate(lines):
            if isinstance(line, Exception):
                raise line
            reply = Reply(text=line) if isinstance(line, str) else line
            if reply.usage == Usage():
                said = _words(reply.text) + _words(reply.thinking or "")
                reply = replace(reply, usage=Usage(0 if i else prompt, said))
            replies.append(replace(reply, model=self._name))
        return tuple(replies)

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        (reply,) = await self.answer(call)
        if reply.thinking:
            yield Piece(thinking=reply.thinking)
        for i, word in enumerate(reply.text.split(" ")):
            yield Piece(text=f" {word}" if i else word)
        yield Piece(reply=reply)

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        if self._scorer is None:
            raise refuse(self._name, "score continuations", "give it a scorer")
        self.calls.append(call)
        prompt = sum(_words(message["content"]) for message in call.messages)
        values = [self._scorer(call, text) for text in continuations]
        best = max(values, default=0.0)
        return tuple(
            Score(value, _words(text), value == best, Usage(0 if i else prompt, 0))
            for i, (text, value) in enumerate(zip(continuations, values))
        )

    async def close(self) -> None:
        return None

    def _lines(self, call: Call) -> Sequence[Line]:
        count = call.settings.n
        if callable(self._script):
            made = self._script(call)
            lines = [made] * count if isinstance(made, str | Reply | Exception) else list(made)
        else:
            lines = list(self._script[self._place : self._place + count])
            self._place += len(lines)
        failure = next((line for line in lines if isinstance(line, Exception)), None)
        if failure is None and len(lines) != count:
            asked = call.messages[-1]["content"][:60]
            raise LLMError(f"{self._name}: the script has no reply left for {asked!r} (call {len(self.calls)})")
        return lines


def _words(text: str) -> int:
    return len(text.split())
