"""What completions and chats share: from a checked request to the engine's, and from its pieces to OpenAI's parts."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sekkei.core.errors import UserError
from sekkei.engine.constrain import ANY_OBJECT, Grammars
from sekkei.engine.request import Constraint, Request, Sampling, Top
from sekkei.serve.opened import Opened
from sekkei.serve.service import EngineError, FullError, Service, Ticket
from sekkei.serve.wire import ApiError, Drawing, ResponseFormat, bad
from sekkei.serve.words import Pieces

RETRY_SECONDS = "1"
Count = Callable[[int, int], None]


@dataclass
class Answering:
    """A model behind a service, and what requests to it are made of.

    count: told the tokens of prompts and of answers.
    """

    opened: Opened
    service: Service
    count: Count = lambda prompt, drawn: None
    grammars: Grammars | None = None
    pieces: Pieces = field(init=False)
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.pieces = Pieces(self.opened.words.inner)

    @property
    def room(self) -> int:
        return self.opened.model.config.max_context

    def adapter(self, asked: str | None) -> str | None:
        """The LoRA adapter that a model's name stands for; None: the base model, for which its stage's name is enough.

        Raises:
            ApiError: 404
        """
        adapters = self.service.engine.adapters
        if asked in adapters:
            return asked
        if asked not in (None, "", "default", self.opened.name, self.opened.stage):
            known = ", ".join(map(repr, (self.opened.name, *adapters)))
            message = f"the model {asked!r} does not exist here; this server has {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return None

    def sampling(self, asked: Drawing, prompt: int, max_tokens: int | None, **more: Any) -> Sampling:
        """The engine's settings.

        Args:
            prompt: tokens of the longest prompt. max_tokens: None: whatever the context has room for.
        Raises:
            ApiError: 400; the prompt does not fit the context, or a value is out of range.
        """
        if prompt >= self.room:
            message = f"the prompt has {prompt} tokens; this model's context of {self.room} has no room for an answer"
            raise bad(message, code="context_length_exceeded")
        top_k = asked.top_k or 0
        try:
            return Sampling(
                temperature=1.0 if asked.temperature is None else asked.temperature,
                top_k=max(0, min(top_k, self.opened.model.config.vocab_size)),
                top_p=1.0 if asked.top_p is None else asked.top_p,
                min_p=asked.min_p or 0.0,
                repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
                max_tokens=max_tokens or self.room,
                stop_tokens=self.opened.words.stop_tokens,
                stop=tuple(asked.stop or ()),
                text=True,
                **more,
            )
        except UserError as error:
            raise bad(error) from None

    async def constraint(self, form: ResponseFormat | None) -> Callable[[], Constraint] | None:
        """What holds answers to a response format."""
        if form is None or form.type == "text":
            return None
        if form.type == "json_schema":
            if form.json_schema is None:
                raise bad("response_format.json_schema is missing", "response_format.json_schema")
            return await self.by_schema(form.json_schema.schema_, "response_format.json_schema.schema")
        return await self.by_schema(ANY_OBJECT, "response_format")

    async def by_schema(self, schema: Mapping[str, Any], param: str) -> Callable[[], Constraint]:
        """Grammars are compiled beside the loop: a large schema takes a while."""

        def compiled() -> Callable[[], Constraint]:
            if self.grammars is None:
                words = self.opened.words
                vocab_size = self.opened.model.config.vocab_size
                self.grammars = Grammars(words.inner.to_str(), vocab_size, words.stop_tokens)
            return self.grammars.json_schema(schema)

        try:
            return await asyncio.to_thread(compiled)
        except UserError as error:
            raise bad(error, param) from None

    def submit(self, requests: Sequence[Request], *, stream: bool) -> Ticket:
        """Queue requests.

        Raises:
            ApiError: 400 for a prompt that cannot be answered, 429 where too much waits already.
        """
        for request in requests:
            try:
                self.service.engine.check(request)
            except UserError as error:
                raise bad(error) from None
        samples = sum(request.n for request in requests)
        if samples > self.service.max_open:
            raise bad(f"{samples} samples at once; this server takes {self.service.max_open} at most", "n")
        try:
            return self.service.submit(requests, stream=stream)
        except FullError:
            message = "too many requests wait for this model; try again a little later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": RETRY_SECONDS}) from None

    def usage(self, ticket: Ticket, drawn: int) -> dict[str, int]:
        """Tokens of a ticket; a prompt counts once, however many samples it has."""
        prompt = sum(len(request.prompt_ids) for request in ticket.requests)
        self.count(prompt, drawn)
        return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}

    def envelope(self, prefix: str, kind: str, ticket: Ticket) -> dict[str, Any]:
        """What every answer and chunk begins with."""
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": ticket.requests[0].adapter or self.opened.name,
            "system_fingerprint": f"weights-{self.service.engine.weights_hash}",
        }

    def token_entry(self, token: int, logprob: float, top: Top) -> dict[str, Any]:
        """One token of a chat's log-probabilities."""
        alternatives = [self._said(other) | {"logprob": finite(value)} for other, value in top]
        return self._said(token) | {"logprob": finite(logprob), "top_logprobs": alternatives}

    def _said(self, token: int) -> dict[str, Any]:
        raw = self.pieces.raw(token)
        return {"token": self.pieces.text(token), "bytes": list(raw)}


def finite(logprob: float) -> float:
    """JSON knows no infinity: what cannot happen has -9999 in OpenAI's API."""
    return max(logprob, -9999.0)


def new_seed(asked: int | None) -> int:
    """The seed asked for, or a new one."""
    return secrets.randbits(62) if asked is None else asked


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def events(ticket: Ticket, chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    """A stream's body. However it ends, also by the client's leaving, the ticket is closed."""
    try:
        async for chunk in chunks:
            yield event(chunk)
        yield b"data: [DONE]\n\n"
    except EngineError as error:
        yield event(ApiError(500, str(error)).body())
    finally:
        ticket.close()
