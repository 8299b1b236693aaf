"""The door of the server: who may come in, how much they may bring, how many at once. Pure ASGI.

    request ──> Host known? 421 ──> key? 401 ──> stopping? 503 ──> too many? 429 ──> body too large? 413 ──> the app

Every answer is counted by path and status. The Host check keeps pages of other sites, whose names were pointed at this
machine (DNS rebinding), from a server that is bound to loopback; keys are compared in constant time. It does not limit
rates per client: a proxy in front does.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

from sekkei.serve.metrics import Metrics
from sekkei.serve.wire import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN_PATHS = ("/health", "/")
KNOWN_PATHS = (
    "/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/completions", "/v1/chat/completions",
    "/v1/embeddings",
)  # fmt: skip


HTTP_TOO_LARGE = 413
DRAINED = 64 * 2**20  # bytes that are read and thrown away, so that a client that is still sending sees the answer


@dataclass
class Gate:
    """Wraps an app.

    Args:
        key: what `Authorization: Bearer …` must hold; None: anybody. hosts: names that a Host header may have; None:
            any. max_body: bytes. max_requests: most requests under `/v1/` at once.
    """

    app: App
    metrics: Metrics
    key: str | None
    hosts: frozenset[str] | None
    max_body: int
    max_requests: int
    stopping: bool = False
    active: int = field(default=0, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._enter(scope, receive, watched)
        except ApiError as error:
            if not status:
                if error.status == HTTP_TOO_LARGE:
                    await drain(receive)
                await answer(watched, error)
        finally:
            path = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
            self.metrics.requests.labels(path, str(status or 499)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._check_host(headers.get(b"host", b"").decode("latin-1"))
        if scope["path"] not in OPEN_PATHS:
            self._check_key(headers.get(b"authorization", b""))
        if not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        if self.stopping:
            raise ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
        if self.active >= self.max_requests:
            message = f"{self.active} requests are being answered already; try again a little later"
            raise ApiError(429, message, code="too_many_requests", headers={"Retry-After": "1"})
        self.active += 1
        try:
            await self.app(scope, self._limited(headers, receive), send)
        finally:
            self.active -= 1

    def _check_host(self, host: str) -> None:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self.hosts is not None and name.lower() not in self.hosts:
            raise ApiError(421, f"this server does not answer for the host {name[:100]!r}", code="unknown_host")

    def _check_key(self, header: bytes) -> None:
        if self.key is None:
            return
        kind, _, given = header.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key.encode()):
            message = "a key is needed: send it as 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _limited(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """The body as it comes, up to the limit; what is announced as larger is refused at once."""
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.max_body:
            raise self._too_large()
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body:
                await drain(receive)
                raise HTTPException(HTTP_TOO_LARGE, str(self._too_large()))  # which the app turns into its answer
            return message

        return limited

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self.max_body} bytes", code="request_too_large")


async def drain(receive: Receive) -> None:
    """Throw the rest of a body away, up to a limit: closing a socket with unread bytes would take the answer along."""
    seen = 0
    while seen < DRAINED:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


async def answer(send: Send, error: ApiError) -> None:
    """Send an error as a whole answer; the connection is closed where a body may be left unread."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    if error.status == HTTP_TOO_LARGE:
        headers["connection"] = "close"
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
