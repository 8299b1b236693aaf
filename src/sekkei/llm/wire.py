"""The JSON of the OpenAI chat API, both ways: a `Call` as a request's body, a response or a stream as `Reply`.

    request_body(call)    {"model", "messages", "max_tokens", …}
    parse_replies(data)   {"choices": [{"message", "finish_reason", "logprobs"}], "usage"}
    Assembly              server-sent chunks {"choices": [{"delta"}]} put together; tool calls arrive in fragments

Thinking is read from "reasoning_content" or "reasoning" (vLLM and others), else from a leading <think> block. Whatever
is not as it should be is a `TransientError` that says what: a proxy's or a worker's hiccup is what usually causes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from sekkei.llm.protocol import Call, FinishReason, LLMError, Piece, Reply, ToolCall, TransientError, Usage

THINK, THINK_END = "<think>", "</think>"
CHARACTERS_PER_TOKEN = 4  # for endpoints that count nothing: a usual figure for English
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class Options(Protocol):
    """What of an endpoint's config shapes a request's body."""

    @property
    def model(self) -> str: ...
    @property
    def max_tokens_key(self) -> str: ...
    @property
    def extra(self) -> Mapping[str, Any]: ...


def request_body(call: Call, options: Options) -> dict[str, Any]:
    """The body of POST /chat/completions."""
    settings = call.settings
    body: dict[str, Any] = {
        "model": options.model,
        "messages": [dict(message) for message in call.messages],
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        options.max_tokens_key: settings.max_tokens,
        "seed": settings.seed,
        "n": settings.n,
    }
    if settings.stop:
        body["stop"] = list(settings.stop)
    if settings.logprobs:
        body["logprobs"] = True
    if settings.response_format is not None:
        body["response_format"] = dict(settings.response_format)
    if not settings.thinking:
        body["chat_template_kwargs"] = {"enable_thinking": False}
    if call.tools:
        body["tools"] = [dict(tool) for tool in call.tools]
    if call.messages[-1]["role"] == "assistant":
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return {**body, **options.extra}


def parse_replies(data: Any, call: Call, model: str) -> list[Reply]:
    """Every choice of a response.

    Raises:
        TransientError: a part is missing or of the wrong type. LLMError: log-probabilities were asked for in vain.
    """
    try:
        choices = data["choices"]
        if not isinstance(choices, list) or not choices:
            raise TypeError("choices is empty")
        replies = [_reply(choice, model) for choice in choices]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TransientError(f"{model}: the reply is malformed ({type(error).__name__}: {error})") from None
    if call.settings.logprobs and any(reply.logprobs is None for reply in replies):
        raise LLMError(f"{model}: gives no log-probabilities; leave logprobs out")
    return _with_usage(replies, data.get("usage"), call)


def _reply(choice: Mapping[str, Any], model: str) -> Reply:
    message = choice["message"]
    calls = tuple(
        ToolCall(str(part.get("id") or f"call_{i}"), part["function"]["name"], _arguments(part["function"]))
        for i, part in enumerate(message.get("tool_calls") or ())
    )
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise TypeError(f"content is of type {type(content).__name__}")
    text, thinking = split_thinking(content, message.get("reasoning_content") or message.get("reasoning"))
    return Reply(
        text=text,
        thinking=thinking,
        tool_calls=calls,
        finish_reason=_reason(choice.get("finish_reason"), bool(calls)),
        logprobs=_logprobs(choice.get("logprobs")),
        model=model,
    )


def split_thinking(content: str, reasoning: str | None) -> tuple[str, str | None]:
    """(visible text, thinking): the endpoint's own field first, else a leading think block; an open one hides all."""
    if reasoning is not None:
        return content, reasoning
    if not content.lstrip().startswith(THINK):
        return content, None
    inside, closed, visible = content.lstrip().removeprefix(THINK).partition(THINK_END)
    return (visible.lstrip() if closed else ""), inside


def _arguments(function: Mapping[str, Any]) -> str:
    """JSON text; some servers send the object itself."""
    raw = function.get("arguments", "")
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)


def _reason(value: Any, called: bool) -> FinishReason:
    return _REASONS.get(value, "tool_calls" if called else "stop")


def _logprobs(value: Any) -> tuple[tuple[str, float], ...] | None:
    if not isinstance(value, Mapping) or not value.get("content"):
        return None
    return tuple((item["token"], float(item["logprob"])) for item in value["content"])


def _with_usage(replies: list[Reply], usage: Any, call: Call) -> list[Reply]:
    """Share the call's usage among its replies, so that they add up: the prompt to the first, completions by length."""
    lengths = [len(reply.text) + len(reply.thinking or "") + 1 for reply in replies]
    if isinstance(usage, Mapping) and isinstance(usage.get("prompt_tokens"), int):
        prompt, written, estimated = usage["prompt_tokens"], int(usage.get("completion_tokens") or 0), False
    else:
        prompt = sum(len(message["content"]) for message in call.messages) // CHARACTERS_PER_TOKEN + 1
        written, estimated = sum(lengths) // CHARACTERS_PER_TOKEN + 1, True
    shares = [written * length // sum(lengths) for length in lengths]
    shares[0] += written - sum(shares)
    return [
        replace(reply, usage=Usage(0 if i else prompt, share, estimated))
        for i, (reply, share) in enumerate(zip(replies, shares))
    ]


class Assembly:
    """One streamed reply, put together chunk by chunk.

    Args:
        call: what was asked. model: for messages and the reply.
    """

    def __init__(self, call: Call, model: str) -> None:
        self.call, self.model = call, model
        self.content, self.reasoning = "", ""
        self.calls: dict[int, dict[str, str]] = {}
        self.tokens: list[tuple[str, float]] = []
        self.reason: str | None = None
        self.usage: Any = None
        self._held, self._mode = "", "start"  # start -> thinking -> text, or start -> text

    def add(self, data: str) -> Iterator[Piece]:
        """The pieces of one "data:" line.

        Raises:
            TransientError: it is no chunk, or the server reports a failure in the stream.
        """
        try:
            chunk = json.loads(data)
            if isinstance(chunk, dict) and chunk.get("error"):
                raise TransientError(f"{self.model}: the stream broke off with {str(chunk['error'])[:200]!r}")
            self.usage = chunk.get("usage") or self.usage
            if not chunk.get("choices"):
                return
            choice = chunk["choices"][0]
            delta = choice.get("delta") or {}
            self.reason = choice.get("finish_reason") or self.reason
            self.tokens += _logprobs(choice.get("logprobs")) or ()
            self._add_calls(delta.get("tool_calls") or ())
            reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            content = delta.get("content") or ""
            self.reasoning, self.content = self.reasoning + reasoning, self.content + content
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TransientError(f"{self.model}: malformed chunk in the stream ({error}): {data[:80]!r}") from None
        if reasoning:
            yield Piece(thinking=reasoning)
        if content:
            yield from self._split(content)

    def close(self) -> Iterator[Piece]:
        """What was held back, then the whole reply.

        Raises:
            TransientError: the stream ended before the reply did.
        """
        if self.reason is None:
            raise TransientError(f"{self.model}: the stream ended in the middle of a reply")
        if self._held:
            yield Piece(thinking=self._held) if self._mode == "thinking" else Piece(text=self._held)
            self._held = ""
        message: dict[str, Any] = {"content": self.content, "reasoning_content": self.reasoning or None}
        if self.calls:
            message["tool_calls"] = [
                {"id": part["id"], "function": {"name": part["name"], "arguments": part["arguments"]}}
                for _, part in sorted(self.calls.items())
            ]
        choice: dict[str, Any] = {"message": message, "finish_reason": self.reason}
        if self.tokens:
            choice["logprobs"] = {"content": [{"token": token, "logprob": value} for token, value in self.tokens]}
        (reply,) = parse_replies({"choices": [choice], "usage": self.usage}, self.call, self.model)
        yield Piece(reply=reply)

    def _add_calls(self, fragments: Any) -> None:
        for fragment in fragments:
            part = self.calls.setdefault(fragment.get("index", 0), {"id": "", "name": "", "arguments": ""})
            function = fragment.get("function") or {}
            part["id"] = fragment.get("id") or part["id"]
            part["name"] += function.get("name") or ""
            part["arguments"] += function.get("arguments") or ""

    def _split(self, content: str) -> Iterator[Piece]:
        """Content as pieces, a leading think block as thinking; what may be the beginning of a mark is held back."""
        self._held += content
        if self._mode == "start":
            begin = self._held.lstrip()
            if self.reasoning or not THINK.startswith(begin[: len(THINK)]):
                self._mode = "text"
            elif len(begin) >= len(THINK):
                self._mode, self._held = "thinking", begin.removeprefix(THINK)
            else:
                return
        if self._mode == "thinking":
            inside, closed, rest = self._held.partition(THINK_END)
            if not closed:
                keep = overlap(inside, THINK_END)
                inside, self._held = inside[: len(inside) - keep], inside[len(inside) - keep :]
                if inside:
                    yield Piece(thinking=inside)
                return
            if inside:
                yield Piece(thinking=inside)
            self._mode, self._held = "text", rest.lstrip()
        if self._held:
            yield Piece(text=self._held)
            self._held = ""


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark` without being all of it."""
    return next((size for size in range(len(mark) - 1, 0, -1) if text.endswith(mark[:size])), 0)
