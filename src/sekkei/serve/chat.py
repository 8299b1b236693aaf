"""`/v1/chat/completions`: turns, thinking, tools, schemas.

    answer text ──parted──> reasoning_content | content ──CallText──> content | tool_calls

What a model thinks comes as `reasoning_content` (as DeepSeek and vLLM name it), never inside `content`. A forced tool
call and a JSON answer are drawn under a grammar and without thinking. `logprobs` hold every token that was drawn,
those of thinking and the stop token included, so their bytes joined are what the model wrote.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sekkei.core.errors import UserError
from sekkei.engine.request import Request
from sekkei.serve.answering import Answering, new_seed
from sekkei.serve.calls import CallText, forced_schema, read_call
from sekkei.serve.service import Piece, Ticket
from sekkei.serve.wire import ChatRequest, NamedTool, bad
from sekkei.serve.words import parted
from sekkei.text.tokenizer import THINK, THINK_END

TAIL = 16  # last ids of a prompt that show whether it ends in an open think block


@dataclass
class _Growing:
    """One sample's answer as it grows."""

    inside: bool
    tools: bool
    raw: str = ""
    reasoning: int = 0  # characters that were passed on
    content: int = 0
    calls: CallText = field(default_factory=CallText)
    sent_calls: int = 0

    def push(self, text: str, last: bool) -> dict[str, Any]:
        """The delta that more text makes."""
        self.raw += text
        safe = self.raw if last else self.raw[: len(self.raw) - _partial(self.raw, (THINK, THINK_END))]
        reasoning, content = parted(safe, self.inside)
        if not last and not self.inside and reasoning is None and THINK.startswith(safe.strip()):
            content = ""  # it may still become a think block
        delta: dict[str, Any] = {}
        if len(reasoning or "") > self.reasoning:
            delta["reasoning_content"] = (reasoning or "")[self.reasoning :]
            self.reasoning = len(reasoning or "")
        new, self.content = content[self.content :], max(self.content, len(content))
        shown, found = self.calls.push(new) if self.tools else (new, [])
        shown += self.calls.end() if last else ""
        if shown:
            delta["content"] = shown
        if found:
            delta["tool_calls"] = [call | {"index": self.sent_calls + i} for i, call in enumerate(found)]
            self.sent_calls += len(found)
        return delta


@dataclass
class Chat:
    """Answers one chat request.

    forced: the answer is one call, by a schema. tools: calls are looked for. inside: the prompt ends in an open think
    block.
    """

    answering: Answering
    asked: ChatRequest
    forced: bool = False
    tools: bool = False
    inside: bool = False

    async def ask(self) -> Ticket:
        """Check and queue.

        Raises:
            ApiError
        """
        asked, answering = self.asked, self.answering
        adapter = answering.adapter(asked.model)
        if not answering.opened.words.chats:
            raise bad("this model was only pretrained and knows no turns: use /v1/completions", "messages")
        if asked.top_logprobs and not asked.logprobs:
            raise bad("top_logprobs needs logprobs: true", "top_logprobs")
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
        constraint = await answering.constraint(asked.response_format)
        choice = asked.tool_choice
        if choice == "required" or isinstance(choice, NamedTool):
            if constraint is not None:
                raise bad("a forced tool call and a response_format exclude each other", "tool_choice")
            constraint, self.forced = await self._forced(tools), True
        elif choice == "none":
            tools = []
        thinking = asked.chat_template_kwargs is None or asked.chat_template_kwargs.enable_thinking
        messages = [message.plain() for message in asked.messages]
        try:
            ids = answering.opened.words.chat(messages, tools, thinking and constraint is None)
        except UserError as error:
            raise bad(error, "messages") from None
        end = answering.opened.words.inner.decode(ids[-TAIL:], skip_special_tokens=False).rstrip()
        self.inside = end.endswith(THINK)
        wanted = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        sampling = answering.sampling(
            asked, len(ids), wanted, top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else 0
        )
        request = Request(
            prompt_ids=tuple(ids), sampling=sampling, n=asked.n or 1, seed=new_seed(asked.seed), constraint=constraint,
            adapter=adapter,
        )  # fmt: skip
        self.tools = bool(tools)
        return answering.submit([request], stream=bool(asked.stream))

    async def whole(self, ticket: Ticket) -> dict[str, Any]:
        """The answer at once."""
        choices, drawn = {}, 0
        async for piece in ticket:
            drawn += len(piece.tokens)
            delta, reason = self._delta(piece, _Growing(self.inside, self.tools))
            for call in delta.get("tool_calls", ()):
                del call["index"]
            message = {"role": "assistant", "content": delta.pop("content", None), "refusal": None} | delta
            if message["content"] is None and not message.get("tool_calls"):
                message["content"] = ""
            choices[piece.index] = {
                "index": piece.index,
                "message": message,
                "logprobs": self._logprobs(piece),
                "finish_reason": reason,
            }
        envelope = self.answering.envelope("chatcmpl", "chat.completion", ticket)
        return envelope | {
            "choices": [choices[i] for i in sorted(choices)],
            "usage": self.answering.usage(ticket, drawn),
        }

    async def chunks(self, ticket: Ticket) -> AsyncIterator[Mapping[str, Any]]:
        """The answer as it grows: the role first, then deltas, then the reason of its end."""
        envelope = self.answering.envelope("chatcmpl", "chat.completion.chunk", ticket)
        growing: dict[int, _Growing] = {}
        drawn = 0
        async for piece in ticket:
            drawn += len(piece.tokens)
            if piece.index not in growing:
                growing[piece.index] = _Growing(self.inside, self.tools)
                yield envelope | {"choices": [_chunk(piece.index, {"role": "assistant", "content": ""})]}
            delta, reason = self._delta(piece, growing[piece.index])
            logprobs = self._logprobs(piece)
            if delta or logprobs is not None:
                yield envelope | {"choices": [_chunk(piece.index, delta, logprobs)]}
            if reason is not None:
                yield envelope | {"choices": [_chunk(piece.index, {}, None, reason)]}
        usage = self.answering.usage(ticket, drawn)
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield envelope | {"choices": [], "usage": usage}

    async def _forced(self, tools: list[dict[str, Any]]) -> Any:
        name = self.asked.tool_choice.function.name if isinstance(self.asked.tool_choice, NamedTool) else None
        if not tools:
            raise bad("a forced tool call needs tools", "tools")
        try:
            schema = forced_schema(tools, name)
        except KeyError:
            raise bad(f"no tool is named {name!r}", "tool_choice") from None
        return await self.answering.by_schema(schema, "tools")

    def _delta(self, piece: Piece, growing: _Growing) -> tuple[dict[str, Any], str | None]:
        """What a piece adds, and with the last one why the answer ends."""
        last = piece.completion is not None
        reason = piece.completion.finish_reason if piece.completion is not None else None
        if self.forced:  # the whole answer is one call
            growing.raw += piece.text
            call = read_call(growing.raw) if last else None
            if call is not None:
                return {"tool_calls": [call | {"index": 0}]}, "tool_calls"
            return ({"content": growing.raw} if last else {}), reason
        delta = growing.push(piece.text, last)
        return delta, "tool_calls" if last and growing.sent_calls and reason == "stop" else reason

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None
        tops = piece.tops or [()] * len(piece.tokens)
        entries = [
            self.answering.token_entry(token, logprob, top)
            for token, logprob, top in zip(piece.tokens, piece.logprobs, tops)
        ]
        return {"content": entries, "refusal": None}


def _chunk(
    index: int, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _partial(text: str, marks: tuple[str, ...]) -> int:
    """Characters at the end that may become one of the marks."""
    return max(
        (n for mark in marks for n in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:n])), default=0
    )
