"""The engine in a thread of its own, and requests of an event loop to it.

    event loop                                    engine thread
    ticket = submit(requests) ──inbox──>          engine.submit
    async for piece in ticket <──one call per step── step, step, step …
    ticket.close()            ──inbox──>          engine.abort: blocks are free before the next step

The loop never waits for the engine and the engine never for a client: what is drawn is queued with the ticket. How
many samples may be open is limited at the door (`Full`), so the queues are bounded by what those samples may draw.

It does not handle several engines.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from sekkei.engine.answer import Answer, Sample
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Top

log = logging.getLogger(__name__)


class FullError(Exception):
    """Too many samples are open already."""


class EngineError(Exception):
    """The engine failed while a request was being answered."""


@dataclass(slots=True)
class Piece:
    """What one sample has drawn since its last piece.

    index: of the sample among all of the ticket's. text: what became final. completion: set with the last piece.
    """

    index: int
    tokens: list[int]
    logprobs: list[float]
    tops: list[Top]
    text: str
    sample: Sample
    completion: Completion | None = None


@dataclass(eq=False)
class _Progress:
    """How much of a sample has been passed on."""

    ticket: Ticket
    index: int
    tokens: int = 0
    text: int = 0


@dataclass(eq=False)
class Ticket:
    """Requests that are being answered together; iterate over it, then close it."""

    service: Service
    requests: list[Request]
    stream: bool
    submitted: float = field(default_factory=time.monotonic)
    answers: list[Answer] = field(default_factory=list)
    open: int = 0
    queue: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    closed: bool = False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while self.open:
            piece = await self.queue.get()
            if isinstance(piece, Exception):
                raise piece
            if piece.completion is not None:
                self.open -= 1
                self.service.open -= 1
            yield piece

    async def completions(self) -> list[Completion]:
        """All samples, finished, in order."""
        found: dict[int, Completion] = {}
        async for piece in self:
            if piece.completion is not None:
                found[piece.index] = piece.completion
        return [found[index] for index in sorted(found)]

    def close(self) -> None:
        """Give up what is unfinished; its blocks are free before the next step."""
        if self.closed:
            return
        self.closed = True
        self.service.open -= self.open
        if self.open:
            self.open = 0
            self.service.tell(lambda: self.service.drop(self))


class Service:
    """Answers with an engine.

    Args:
        max_open: most samples that may wait or run. first_token, each_token: told the seconds of a request's first
            token, and of each later one.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_open: int,
        first_token: Callable[[float], None] = lambda seconds: None,
        each_token: Callable[[float, int], None] = lambda seconds, count: None,
    ) -> None:
        self.engine, self.max_open, self.open = engine, max_open, 0
        self.first_token, self.each_token = first_token, each_token
        self._inbox: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._ending = False
        self._progress: dict[int, _Progress] = {}
        self._last_step = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="sekkei-engine", daemon=True)

    def start(self) -> None:
        """Begin to answer, from inside the event loop that asks."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Give up what is unfinished and end the thread."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join()

    def submit(self, requests: Sequence[Request], *, stream: bool) -> Ticket:
        """Queue requests that `engine.check` has passed.

        Args:
            stream: pieces come as tokens are drawn; else one for each sample, at its end.
        Raises:
            FullError
        """
        samples = sum(request.n for request in requests)
        if self.open + samples > self.max_open:
            raise FullError
        ticket = Ticket(self, list(requests), stream, open=samples)
        self.open += samples
        self.tell(lambda: self._take(ticket))
        return ticket

    def tell(self, action: Callable[[], None]) -> None:
        """Have the engine's thread do something before its next step."""
        with self._wake:
            self._inbox.append(action)
            self._wake.notify()

    def drop(self, ticket: Ticket) -> None:
        """In the engine's thread: abort what is left of a ticket."""
        self.engine.abort(*ticket.answers)
        for answer in ticket.answers:
            for sample in answer.samples:
                self._progress.pop(sample.sequence.arrival, None)

    def _take(self, ticket: Ticket) -> None:
        if ticket.closed:
            return
        index = 0
        try:
            for request in ticket.requests:
                ticket.answers.append(self.engine.submit(request))
        except Exception as error:
            log.exception("a request could not be queued")
            self.engine.abort(*ticket.answers)
            self._deliver([(ticket, EngineError(f"the request could not be queued: {error}"))])
            return
        for answer in ticket.answers:
            for sample in answer.samples:
                self._progress[sample.sequence.arrival] = _Progress(ticket, index)
                index += 1

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._inbox and self.engine.idle and not self._ending:
                    self._last_step = 0.0
                    self._wake.wait()
                inbox, self._inbox = self._inbox, []
                if self._ending:
                    break
            try:
                for action in inbox:
                    action()
                if not self.engine.idle:
                    self._pass_on(self.engine.step())
            except Exception as error:
                log.exception("the engine failed")
                self._fail(EngineError(f"the engine failed: {' '.join(str(error).split()) or type(error).__name__}"))
        self._fail(EngineError("the server is stopping"))

    def _pass_on(self, drew: Sequence[Sample]) -> None:
        """Tell the loop, in one call, what this step gave."""
        now, pieces = time.monotonic(), []
        if self._last_step and drew:
            self.each_token(now - self._last_step, len(drew))
        self._last_step = now
        for sample in drew:
            progress = self._progress[sample.sequence.arrival]
            ticket, over = progress.ticket, sample.finish_reason is not None
            if len(sample.logprobs) == 1:
                self.first_token(now - ticket.submitted)
            if not over and not ticket.stream:
                continue
            piece = self._piece(sample, progress)
            if over:
                piece.completion = sample.completion(self.engine.weights_hash)
                del self._progress[sample.sequence.arrival]
            pieces.append((ticket, piece))
        if pieces:
            self._deliver(pieces)

    def _piece(self, sample: Sample, progress: _Progress) -> Piece:
        at, text = progress.tokens, sample.text.settled if sample.text is not None else ""
        begin = len(sample.request.prompt_ids) + at
        piece = Piece(
            progress.index,
            sample.sequence.tokens[begin:],
            sample.logprobs[at:],
            sample.tops[at:],
            text[progress.text :],
            sample,
        )
        progress.tokens, progress.text = len(sample.logprobs), len(text)
        return piece

    def _fail(self, error: EngineError) -> None:
        """Every open ticket ends with the error; the engine has given up what it was answering, or does so now."""
        tickets = {id(progress.ticket): progress.ticket for progress in self._progress.values()}
        for ticket in tickets.values():
            self.engine.abort(*ticket.answers)
        self._progress.clear()
        self._deliver([(ticket, error) for ticket in tickets.values()])

    def _deliver(self, pieces: Sequence[tuple[Ticket, Piece | Exception]]) -> None:
        def put() -> None:
            for ticket, piece in pieces:
                ticket.queue.put_nowait(piece)

        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(put)
        except RuntimeError:  # the loop has ended: nobody is there to be told
            return
