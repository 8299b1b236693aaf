"""The server's routes: OpenAI's API, health, metrics, and the chat page.

    GET  /                       chat page            POST /v1/completions        text, echo, logprobs
    GET  /health  /metrics       for machines         POST /v1/chat/completions   turns, tools, schemas, streams
    GET  /v1/models  /v1/models/NAME                  POST /v1/embeddings         where an embedder was given

A client that leaves takes its samples along: their blocks are free before the engine's next step. Errors have OpenAI's
shape, whatever found them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from sekkei.engine.engine import Engine
from sekkei.serve.answering import Answering, events
from sekkei.serve.chat import Chat
from sekkei.serve.completions import Completions
from sekkei.serve.gate import Gate
from sekkei.serve.metrics import Metrics
from sekkei.serve.opened import Opened
from sekkei.serve.service import EngineError, Service, Ticket
from sekkei.serve.wire import ApiError, ChatRequest, CompletionRequest, EmbeddingRequest

log = logging.getLogger(__name__)
T = TypeVar("T")
Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in (
        (400, "a request that cannot be answered"),
        (401, "no key, or a wrong one"),
        (404, "no such model"),
        (413, "a body over the limit"),
        (421, "a host that this server does not answer for"),
        (429, "too many requests"),
        (500, "the engine failed"),
        (503, "the server is stopping"),
    )
}
CLIENT_LEFT = 499  # nginx's number; nobody reads it


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits of a server.

    key: bearer key; None: anybody may ask. hosts: names in Host headers; None: any. max_body: bytes of a request.
    max_requests: most at once. max_waiting: most samples that wait beside those that run.
    """

    key: str | None = None
    hosts: frozenset[str] | None = LOCAL_HOSTS
    max_body: int = 4 * 2**20
    max_requests: int = 256
    max_waiting: int = 256


class LeftError(Exception):
    """The client has gone."""


def create_app(
    opened: Opened, engine: Engine, config: ServeConfig, embed: Embed | None = None, embedder: str = ""
) -> Gate:
    """The ASGI app.

    Args:
        engine: with the tokenizer of `opened`. embed: texts to vectors, for `/v1/embeddings`; embedder: its name.
    """
    metrics = Metrics()
    service = Service(
        engine,
        max_open=engine.max_batch + config.max_waiting,
        first_token=metrics.first.observe,
        each_token=metrics.each_token,
    )
    metrics.watch(service)
    answering = Answering(opened, service, count=metrics.count)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        gate.stopping = True
        service.stop()

    app = FastAPI(title="sekkei", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, responses=RESPONSES)
    _add_errors(app)
    _add_openai(app, answering, metrics)
    _add_embeddings(app, answering, embed, embedder)
    _add_pages(app, service, metrics)
    gate = Gate(app, metrics, config.key, config.hosts, config.max_body, config.max_requests)
    gate.service = service  # type: ignore[attr-defined]
    return gate


def _add_openai(app: FastAPI, answering: Answering, metrics: Metrics) -> None:
    @app.post("/v1/completions", response_model=None)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        job = Completions(answering, asked)
        return await _respond(request, metrics, bool(asked.stream), job.ask(), job.whole, job.chunks)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        job = Chat(answering, asked)
        return await _respond(request, metrics, bool(asked.stream), await job.ask(), job.whole, job.chunks)


async def _respond(
    request: Request,
    metrics: Metrics,
    stream: bool,
    ticket: Ticket,
    whole: Callable[[Ticket], Awaitable[Any]],
    chunks: Callable[[Ticket], AsyncIterator[Any]],
) -> Response:
    if stream:
        body = _noted(events(ticket, chunks(ticket)), ticket, metrics)
        return StreamingResponse(body, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    try:
        return JSONResponse(await _unless_left(request, whole(ticket)))
    except EngineError as error:
        raise ApiError(500, str(error)) from None
    except LeftError:
        metrics.disconnects.inc()
        return Response(status_code=CLIENT_LEFT)
    finally:
        ticket.close()


async def _noted(body: AsyncIterator[bytes], ticket: Ticket, metrics: Metrics) -> AsyncIterator[bytes]:
    """A stream's body; a client that left before its end is counted."""
    try:
        async for part in body:
            yield part
    except (asyncio.CancelledError, GeneratorExit):
        metrics.disconnects.inc()
        raise
    finally:
        ticket.close()


async def _unless_left(request: Request, answer: Awaitable[T]) -> T:
    """Wait for the answer, or for the client to leave.

    Raises:
        LeftError
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    job, watch = asyncio.ensure_future(answer), asyncio.ensure_future(left())
    try:
        await asyncio.wait((job, watch), return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        raise LeftError
    finally:
        for task in (job, watch):
            task.cancel()


def _add_embeddings(app: FastAPI, answering: Answering, embed: Embed | None, embedder: str) -> None:
    models = [{"id": answering.opened.name, "object": "model", "created": answering.started, "owned_by": "sekkei"}]
    models[0] |= {"max_model_len": answering.room, "chats": answering.opened.words.chats}
    models += [models[0] | {"id": name, "parent": answering.opened.name} for name in answering.service.engine.adapters]
    if embed is not None:
        models.append({"id": embedder, "object": "model", "created": answering.started, "owned_by": "sekkei"})

    @app.get("/v1/models", response_model=None)
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": models}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def one(name: str) -> dict[str, Any]:
        for model in models:
            if model["id"] == name:
                return model
        raise ApiError(404, f"the model {name!r} does not exist here", param="model", code="model_not_found")

    @app.post("/v1/embeddings", response_model=None)
    async def embeddings(asked: EmbeddingRequest) -> dict[str, Any]:
        if embed is None:
            raise ApiError(404, "this server has no embedder: start it with --embedder", code="no_embedder")
        if asked.model not in (None, "", "default", embedder):
            raise ApiError(404, f"the embedder here is {embedder!r}", param="model", code="model_not_found")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        vectors = await asyncio.to_thread(embed, texts)
        tokens = sum(len(answering.opened.words.plain(text)) for text in texts)
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(vector, asked.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": embedder, "usage": usage}


def _encoded(vector: Sequence[float], form: str | None) -> list[float] | str:
    numbers = [float(x) for x in vector]
    if form != "base64":
        return numbers
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _add_pages(app: FastAPI, service: Service, metrics: Metrics) -> None:
    page = resources.files("sekkei.serve").joinpath("page.html").read_text(encoding="utf-8")
    policy = _policy(page)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.get("/health", response_model=None)
    async def health() -> dict[str, Any]:
        return {"status": "ok", "open": service.open, "weights": service.engine.weights_hash}

    @app.get("/metrics", response_model=None)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)


def _policy(page: str) -> str:
    """Only the page's own script and style run, and it may talk to this server alone."""
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in _scripts(page)]
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def ours(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"] if part != "body") or None
        problem = {"extra_forbidden": "is not known here", "missing": "is missing"}.get(first["type"], first["msg"])
        return JSONResponse(ApiError(400, f"{path or 'the body'}: {problem}", param=path).body(), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        log.error("a bug in the server", exc_info=error)
        return JSONResponse(ApiError(500, "a bug in the server; its log has the details").body(), 500)
