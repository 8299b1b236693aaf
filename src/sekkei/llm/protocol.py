"""What is said to something that answers, and what comes back. Plain data, no network, no torch.

    Call(messages, settings, tools)  ──Backend.answer──>  (Reply, …)            one per sample, `settings.n` of them
                                     ──Backend.stream──>  Piece, Piece, …       the last one holds the whole Reply
    Call, continuations              ──Backend.score───>  (Score, …)            log-likelihood of each continuation

Messages, tools and tool calls are written in the OpenAI convention (platform.openai.com/docs/api-reference/chat):
{"role": "system" | "user" | "assistant" | "tool", "content": text}, an assistant's may hold "tool_calls" and
"reasoning_content", a tool's holds "tool_call_id". A tool is {"type": "function", "function": {"name",
"description", "parameters": JSON Schema}}.

A backend says in `capabilities` what it can do; asked for more it raises `LLMError`, it never leaves a setting out
silently. People call `face.LLM`, which has both an async and a plain face. Content is text only (no images, no audio).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sekkei.core.atomic import sha256_json
from sekkei.core.errors import ConfigError, UserError

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class LLMError(UserError):
    """A call that cannot be answered, in one line: who refused, what, and the remedy."""


class TransientError(LLMError):
    """A failure that may pass: too many requests, a fault of the server, a broken or too slow connection.

    Args:
        retry_after: seconds that the server asks to wait, None where it does not say.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BudgetError(LLMError):
    """A budget of tokens, calls or seconds is spent; the call was not made."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a call is to be answered.

    Args:
        temperature: 0 = greedy. top_p: nucleus sampling, 1 = off.
        max_tokens: most tokens of a reply, thinking included.
        stop: texts that end a reply; they are not part of it.
        seed: of sampling; the same call with the same seed gives the same reply where `capabilities.seed`.
        n: samples of one call.
        logprobs: ask for the log-probability of every token of the reply.
        thinking: may a model that knows think blocks open one.
        response_format: None, {"type": "json_object"}, or
            {"type": "json_schema", "json_schema": {"name": …, "schema": …, "strict": true}}.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 0
    n: int = 1
    logprobs: bool = False
    thinking: bool = True
    response_format: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be >= 0 (0 = greedy)")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", f"got {self.top_p}, must be in (0, 1]")
        for key in ("max_tokens", "n"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError("stop", f"got {self.stop!r}, must be a tuple of texts that are not empty")
        if self.response_format is not None and self.response_format.get("type") not in ("json_object", "json_schema"):
            raise ConfigError("response_format.type", "must be json_object or json_schema")


@dataclass(frozen=True)
class Usage:
    """Tokens that a call cost. `estimated`: the endpoint did not count, so characters / 4 stand in."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. `arguments` is the JSON text as the model wrote it, valid or not."""

    id: str
    name: str
    arguments: str

    def message_part(self) -> dict[str, Any]:
        """As an item of an assistant message's "tool_calls"."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One sample.

    Args:
        text: what is visible. thinking: the think block or reasoning channel, None where there was none.
        usage: of a call with n > 1 the prompt is counted in its first reply, so usages of replies add up.
        logprobs: (token's text, log-probability) per token where asked for, thinking and stop token included.
        model: who answered, as the backend names it. cached: it came from the cache and cost nothing this time.
    """

    text: str
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    logprobs: tuple[tuple[str, float], ...] | None = None
    model: str = ""
    cached: bool = False

    def message(self) -> dict[str, Any]:
        """The reply as an assistant message, to go on from. Thinking is left out, as chat models expect."""
        said: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            said["tool_calls"] = [call.message_part() for call in self.tool_calls]
        return said


@dataclass(frozen=True)
class Piece:
    """What a stream added: visible text or thinking; `reply` is set on the last piece only, which adds nothing."""

    text: str = ""
    thinking: str = ""
    reply: Reply | None = None


@dataclass(frozen=True)
class Score:
    """Log-likelihood (natural logarithm) of one continuation, given what stands before it.

    `greedy`: it is what the model would have written at temperature 0.
    """

    logprob: float
    tokens: int
    greedy: bool
    usage: Usage = field(default_factory=Usage)

    @property
    def per_token(self) -> float:
        return self.logprob / max(self.tokens, 1)


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do.

    Args:
        stream: text arrives as it is written (else a stream is one piece). loglikelihood: it can score.
        tools: it takes tool schemas and returns tool calls. response_format: it keeps to a JSON Schema.
        logprobs: of its own tokens. seed: equal calls give equal replies.
        continues: where the last message is an assistant's, the reply goes on from there (its "reasoning_content"
            without content is an open think block). max_context: tokens, None = unknown.
    """

    stream: bool = False
    loglikelihood: bool = False
    tools: bool = False
    response_format: bool = False
    logprobs: bool = False
    seed: bool = False
    continues: bool = False
    max_context: int | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """Everything that determines a reply, but the model."""

    messages: tuple[Message, ...]
    settings: Settings = field(default_factory=Settings)
    tools: tuple[Tool, ...] = ()

    def __post_init__(self) -> None:
        if not self.messages:
            raise LLMError("a call needs at least one message")
        for message in self.messages:
            if message.get("role") not in ("system", "user", "assistant", "tool"):
                raise LLMError(
                    f"a message has the role {message.get('role')!r}; known roles: system, user, assistant, tool"
                )
            if not isinstance(message.get("content"), str):
                raise LLMError(f"a message of role {message['role']!r} has no text in 'content' ('' is allowed)")

    def mapping(self) -> dict[str, Any]:
        """As plain JSON values, the same for equal calls."""
        settings = {name: getattr(self.settings, name) for name in self.settings.__dataclass_fields__}
        return json.loads(json.dumps({"messages": self.messages, "settings": settings, "tools": self.tools}))

    def key(self, model: str, *more: object) -> str:
        """SHA-256 of model + messages + settings + tools (+ `more`): the address in caches and cassettes."""
        return sha256_json([model, self.mapping(), *more])


class Backend(Protocol):
    """Something that answers. Wrappers (budget, retries, …) are backends around a backend.

    Every method is a coroutine on the caller's event loop and may be called many times at once.
    """

    @property
    def name(self) -> str:
        """Who answers, as in traces and cache keys: it changes when the weights do, where that is known."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        """`call.settings.n` replies.

        Raises:
            TransientError: worth trying again. LLMError: not.
        """
        ...

    def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        """One reply as it is written; `call.settings.n` is 1. Raises as `answer`."""
        ...

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        """Log-likelihood of each text as the beginning of the assistant's turn (no stop token behind it).

        Where the last message is an assistant's, the text continues that message. Raises as `answer`.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and files. Calling it twice is fine."""
        ...


def refuse(name: str, what: str, remedy: str) -> LLMError:
    """The error of a backend that is asked for what it cannot do."""
    return LLMError(f"{name} cannot {what}; {remedy}")


def counted(replies: Sequence[Reply | Score]) -> Usage:
    """What all of them cost together."""
    total = Usage()
    for reply in replies:
        total += reply.usage
    return total


def check(name: str, can: Capabilities, call: Call) -> None:
    """Refuse a call that asks for more than `can`.

    Raises:
        LLMError
    """
    asked = {
        "tools": (bool(call.tools), "take tool schemas", "describe the tools in the prompt instead"),
        "response_format": (
            call.settings.response_format is not None,
            "keep to a response_format",
            "ask for the form in words and check the reply",
        ),
        "logprobs": (call.settings.logprobs, "give log-probabilities", "leave logprobs out"),
        "continues": (
            call.messages[-1]["role"] == "assistant",
            "go on from an assistant's message",
            "end with a user's message",
        ),
    }
    for key, (wanted, what, remedy) in asked.items():
        if wanted and not getattr(can, key):
            raise refuse(name, what, remedy)


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
