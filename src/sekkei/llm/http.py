"""Any OpenAI-compatible endpoint over HTTP: POST {url}/chat/completions (vLLM, llama.cpp, Ollama, LM Studio, OpenAI …).

    429, 408, 409, 5xx, a refused, broken or too slow connection,           -> TransientError (Retry-After is read)
    a body that is no JSON or lacks its parts, a stream without an end
    other statuses (401, 404, 400 …)                                        -> LLMError with the server's own words

Nothing hangs: `connect_s` for the connection, `read_s` between two arriving bytes, and `call_s` for the whole call,
since a server that sends one byte a second would pass the second limit for ever. Redirects are not followed. The key
is sent in a header and appears in no message. A server that ignores `n` is asked again, with the next seed, until there
are n samples. `Settings.thinking=False` is sent as chat_template_kwargs.enable_thinking, as vLLM and SGLang read it.

What it does not handle: log-likelihood of given text (the chat endpoint has no such thing), images, the Responses API.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
import weakref
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from sekkei.core.errors import ConfigError
from sekkei.llm.protocol import Call, Capabilities, LLMError, Piece, Reply, Score, TransientError, check, refuse
from sekkei.llm.wire import Assembly, parse_replies, request_body

if TYPE_CHECKING:
    import httpx

RETRIED = frozenset((408, 409, 425, 429))
QUOTED = 300  # characters of a server's own message that are shown


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Where and how.

    Args:
        url: base of the API, as https://host/v1. model: as the server names it.
        key: bearer token, "" = none. Recipes leave it out: it is read from SEKKEI_LLM_KEY.
        connect_s, read_s, call_s: limits in seconds, see the header.
        max_tokens_key: OpenAI's newer models want max_completion_tokens.
        continues: send vLLM's continue_final_message where the last message is an assistant's.
        extra: merged into every request's body, for what a server needs beside the standard.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    connect_s: float = 10.0
    read_s: float = 120.0
    call_s: float = 600.0
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    continues: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError("url", f"got {self.url!r}, must begin with http:// or https://, as https://host/v1")
        if not self.model:
            raise ConfigError("model", "is empty; name the model as the server does (its /models lists them)")
        for key in ("connect_s", "read_s", "call_s"):
            if getattr(self, key) <= 0:
                raise ConfigError(key, f"got {getattr(self, key)}, must be > 0 seconds")


class Endpoint:
    """A backend that asks over HTTP. Connections are kept per event loop."""

    def __init__(self, config: EndpointConfig) -> None:
        _import_httpx()
        self.config = config
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def name(self) -> str:
        return f"{self.config.url.rstrip('/')}#{self.config.model}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            stream=True, tools=True, response_format=True, logprobs=True, continues=self.config.continues
        )

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        check(self.name, self.capabilities, call)
        replies: list[Reply] = []
        while len(replies) < call.settings.n:
            left = call.settings.n - len(replies)
            settings = replace(call.settings, n=left, seed=call.settings.seed + len(replies))
            part = replace(call, settings=settings)
            data = await self._post(request_body(part, self.config))
            replies += parse_replies(data, part, self.name)[:left]
        return tuple(replies)

    async def _post(self, body: Mapping[str, Any]) -> Any:
        with self._faults():
            async with asyncio.timeout(self.config.call_s):
                response = await self._client().post("chat/completions", json=body)
        self._check_status(response, response.text)
        try:
            return response.json()
        except ValueError:
            shown = response.text[:80]
            raise TransientError(f"{self.name}: the reply is not JSON but begins with {shown!r}") from None

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        check(self.name, self.capabilities, call)
        body = {**request_body(call, self.config), "stream": True, "stream_options": {"include_usage": True}}
        assembly = Assembly(call, self.name)
        deadline = asyncio.get_running_loop().time() + self.config.call_s
        with self._faults():
            async with asyncio.timeout_at(deadline):
                request = self._client().build_request("POST", "chat/completions", json=body)
                response = await self._client().send(request, stream=True)
        try:
            if response.status_code != 200:
                with self._faults():
                    async with asyncio.timeout_at(deadline):
                        text = (await response.aread()).decode(errors="replace")
                self._check_status(response, text)
            async for data in self._events(response, deadline):
                for piece in assembly.add(data):
                    yield piece
        finally:
            await response.aclose()
        for piece in assembly.close():
            yield piece

    async def _events(self, response: httpx.Response, deadline: float) -> AsyncGenerator[str, None]:
        """What stands behind "data:" in a stream of server-sent events, up to [DONE] or the end.

        The time limit is set around each read, not around a yield: there it would cancel the reader's own code.
        """
        lines = response.aiter_lines()
        while True:
            with self._faults():
                async with asyncio.timeout_at(deadline):
                    line = await anext(lines, None)
            if line is None or line.strip() == "data: [DONE]":
                return
            if line.startswith("data:"):  # the rest is comments, event names and blank lines
                yield line.removeprefix("data:").strip()

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        raise refuse(
            self.name, "score a given text", "a chat endpoint only writes; take a model of your own (runs/NAME) for it"
        )

    async def close(self) -> None:
        here = asyncio.get_running_loop()
        for loop, client in list(self._clients.items()):
            if loop is here:
                await client.aclose()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.aclose(), loop))
        self._clients.clear()

    def _client(self) -> httpx.AsyncClient:
        """This loop's client: httpx binds connections to the loop that opened them."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            httpx = _import_httpx()
            config = self.config
            headers = {"Authorization": f"Bearer {config.key}"} if config.key else {}
            self._clients[loop] = httpx.AsyncClient(
                base_url=config.url.rstrip("/") + "/",
                headers=headers,
                timeout=httpx.Timeout(config.read_s, connect=config.connect_s, pool=config.call_s),
                limits=httpx.Limits(max_connections=None),  # `limit.Limited` sets the number
            )
        return self._clients[loop]

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn the transport's failures into ours."""
        httpx = _import_httpx()
        try:
            yield
        except TimeoutError:
            raise TransientError(f"{self.name}: not finished after call_s={self.config.call_s:g} seconds") from None
        except httpx.TimeoutException as error:
            what = type(error).__name__
            raise TransientError(f"{self.name}: no answer in time ({what}, read_s={self.config.read_s:g})") from None
        except httpx.InvalidURL as error:
            raise LLMError(f"{self.name}: {error}; the URL is written as https://host/v1") from None
        except httpx.ConnectError as error:
            raise TransientError(
                f"{self.name}: cannot be reached ({error}); is the server running, is the URL right?"
            ) from None
        except httpx.TransportError as error:
            raise TransientError(f"{self.name}: the connection broke ({type(error).__name__}: {error})") from None

    def _check_status(self, response: httpx.Response, text: str) -> None:
        """Raise for every status that is not 200, with the server's message."""
        status = response.status_code
        if status == 200:
            return
        message = _server_message(text)
        if self.config.key:
            message = message.replace(self.config.key, "(the key)")
        told = f"{self.name}: HTTP {status}{f', {message}' if message else ''}"
        if status in RETRIED or status >= 500:
            raise TransientError(told, retry_after_seconds(response.headers.get("retry-after")))
        remedy = {
            401: "set SEKKEI_LLM_KEY to a valid key",
            403: "the key may not use this model",
            404: "check the URL (it ends in /v1) and the model's name",
        }.get(status)
        raise LLMError(f"{told}; {remedy}" if remedy else told)


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or an HTTP date (RFC 9110, section 10.2.3); None if unreadable."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = date.timestamp() - time.time()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _server_message(text: str) -> str:
    """The human part of an error body, in one line."""
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    message: Any = text
    if isinstance(data, dict):
        inner = data.get("error", data.get("detail", data))
        message = inner.get("message", inner) if isinstance(inner, dict) else inner
    return " ".join(str(message).split())[:QUOTED]


def _import_httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise LLMError("HTTP endpoints need httpx: pip install 'sekkei[llm]'") from None
    return httpx
