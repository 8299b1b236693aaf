"""Our own model as a backend, answered by the engine in this process (`run_folder.py` opens a run's).

    messages ──chat template──> ids ──Engine.generate──> ids ──decode──> (<think>thinking</think>) text

Calls are answered in rounds: what the caller's tasks ask for while a round is worked on waits, and is taken together in
the next one, in a thread of its own, so the event loop stays free:

    tasks ──ask──> waiting ──loop has settled──> one round (one batch of samples, all scores) ──all at once──> tasks

What a sample draws depends on its own seed alone, but the rounding of a matmul on its company in the batch
(engine/sampling.py). Rounds begin when no task asks for more and end for all tasks at once, never by the clock, so the
same program forms the same batches and gets the same bits. `name` holds a hash of the weights: a cache never mixes two
trainings of one run.

A model that was only pretrained knows no turns: the contents of the messages, joined by line ends, are continued.
`Settings.stop` texts that are one token stop the model; longer ones cut the reply afterwards, and the tokens behind
them were paid for. It does not handle tool schemas (the template has none) or response formats (no grammar).

Shapes: `B` continuations, `T` tokens.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sekkei.core.errors import UserError
from sekkei.llm.protocol import (
    Call,
    Capabilities,
    LLMError,
    Message,
    Piece,
    Reply,
    Score,
    Usage,
    check,
)
from sekkei.llm.words import Words, read

if TYPE_CHECKING:
    from sekkei.engine.engine import Engine
    from sekkei.engine.request import Completion, Request
    from sekkei.text.tokenizer import Tokenizer

SCORED_ROWS = 64  # continuations in one forward pass
SETTLED = 24  # turns of the event loop without a new call: more than a strategy needs from one reply to its next call


@dataclass
class _Rounds:
    """What waits on one event loop, and the task that works on it."""

    waiting: list[tuple[Callable[[], Any] | Request, asyncio.Future[Any]]] = field(default_factory=list)
    worker: asyncio.Task[None] | None = None


class EngineBackend:
    """Answers with an engine.

    Args:
        engine: with the model. tokenizer: the one that it was trained with.
        base: the model continues text and knows no turns.
        name: of the model; the hash of its weights is added.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, base: bool = False, name: str = "engine") -> None:
        self.engine, self.tokenizer, self.base, self._label = engine, tokenizer, base, name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sekkei-engine")
        self._rounds: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Rounds] = weakref.WeakKeyDictionary()

    @property
    def name(self) -> str:
        return f"{self._label}@{self.engine.weights_hash}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            stream=True,
            loglikelihood=True,
            logprobs=True,
            seed=True,
            continues=True,
            max_context=self.engine.model.config.max_context,
        )

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        check(self.name, self.capabilities, call)
        request = self._request(call)
        completions: list[Completion] = await self._in_a_round(request)
        return tuple(
            self._reply(call, request, done.token_ids, done.logprobs, done.finish_reason, i)
            for i, done in enumerate(completions)
        )

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        check(self.name, self.capabilities, call)
        request = self._request(call)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[int, float] | BaseException | None] = asyncio.Queue()
        left = threading.Event()

        def work() -> None:
            last: BaseException | None = None
            try:
                for token in self.engine.stream(request):
                    loop.call_soon_threadsafe(arrived.put_nowait, token)
                    if left.is_set():
                        return
            except BaseException as error:
                last = error
            loop.call_soon_threadsafe(arrived.put_nowait, last)

        words = Words(self.tokenizer, call.settings.stop, self._inside(call))
        self._pool.submit(work)
        try:
            while (item := await arrived.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                for piece in words.add(*item):
                    yield piece
                if words.stopped:
                    break
        finally:
            left.set()
        for piece in words.close():
            yield piece
        reason = "stop" if words.ended else "length"
        yield Piece(reply=self._reply(call, request, words.ids, words.logprobs, reason, 0))

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        prompt = self._prompt(call)
        rows = [self.tokenizer.encode(text) for text in continuations]
        for text, ids in zip(continuations, rows):
            if not ids:
                raise LLMError(f"{self.name}: continuation {text!r} is empty; there is nothing to score")
            self._check([*prompt, *ids[:-1]])
        parts = [rows[begin : begin + SCORED_ROWS] for begin in range(0, len(rows), SCORED_ROWS)]
        found = await self._in_a_round(lambda: [one for part in parts for one in self._score(prompt, part)])
        return tuple(
            Score(logprob, len(ids), greedy, Usage(len(prompt) + len(ids), 0))
            for ids, (logprob, greedy) in zip(rows, found)
        )

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, call: Call) -> Request:
        from sekkei.engine.request import Request, Sampling

        settings = call.settings
        stops = [self.tokenizer.id_of(text) for text in settings.stop]
        sampling = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            stop_tokens=(self.tokenizer.end_id, *(token for token in stops if token is not None)),
        )
        ids = self._prompt(call)
        self._check(ids)
        return Request(prompt_ids=tuple(ids), sampling=sampling, n=settings.n, seed=settings.seed)

    def _check(self, ids: Sequence[int]) -> None:
        from sekkei.engine.engine import check_prompt

        config = self.engine.model.config
        try:
            check_prompt(ids, config.max_context, config.vocab_size)
        except UserError as error:
            raise LLMError(f"{self.name}: {error}") from None

    def _prompt(self, call: Call) -> list[int]:
        """Ids to go on from."""
        from sekkei.text.chat import encode_prompt
        from sekkei.text.tokenizer import THINK, THINK_END

        if self.base:
            text = "\n".join(message["content"] for message in call.messages)
            return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        messages, thinking = list(call.messages), call.settings.thinking
        if messages[-1]["role"] != "assistant":
            return encode_prompt(self.tokenizer, [_plain(message) for message in messages], thinking)
        begun = messages.pop()
        ids = encode_prompt(self.tokenizer, [_plain(message) for message in messages], True)
        reasoning = begun.get("reasoning_content")
        if reasoning is not None:
            ids += [*self.tokenizer.encode_trusted(THINK), *self.tokenizer.encode(reasoning)]
            if begun["content"]:
                ids += self.tokenizer.encode_trusted(THINK_END)
        return ids + self.tokenizer.encode(begun["content"])

    async def _in_a_round(self, job: Callable[[], Any] | Request) -> Any:
        """The result of a job; see the header."""
        loop = asyncio.get_running_loop()
        rounds = self._rounds.setdefault(loop, _Rounds())
        future: asyncio.Future[Any] = loop.create_future()
        rounds.waiting.append((job, future))
        if rounds.worker is None:
            rounds.worker = loop.create_task(self._work(rounds))
        return await future

    async def _work(self, rounds: _Rounds) -> None:
        """Rounds until nobody waits."""
        taken: list[tuple[Callable[[], Any] | Request, asyncio.Future[Any]]] = []
        try:
            while rounds.waiting:
                seen = quiet = 0
                while quiet < SETTLED:
                    await asyncio.sleep(0)
                    quiet = quiet + 1 if len(rounds.waiting) == seen else 0
                    seen = len(rounds.waiting)
                taken, rounds.waiting = rounds.waiting, []
                taken = [(job, future) for job, future in taken if not future.done()]
                jobs = [job for job, _ in taken]
                results = await asyncio.get_running_loop().run_in_executor(self._pool, self._round, jobs)
                for (_, future), result in zip(taken, results, strict=True):
                    if future.done():  # its caller has given up
                        continue
                    if isinstance(result, BaseException):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            rounds.worker = None
            for _, future in [*taken, *rounds.waiting]:  # the loop or the backend was closed: nobody answers these
                future.cancel()  # (those that are done stay as they are)
            rounds.waiting = []

    def _round(self, jobs: Sequence[Callable[[], Any] | Request]) -> list[Any]:
        """Results, or the exceptions in their place, in the jobs' order (runs in the pool's thread)."""
        requests = [job for job in jobs if not callable(job)]
        try:
            samples: list[Any] = self.engine.generate(requests) if requests else []
        except BaseException as error:
            samples = [error] * len(requests)
        answers, results = iter(samples), list[Any]()
        for job in jobs:
            if not callable(job):
                results.append(next(answers))
                continue
            try:
                results.append(job())
            except BaseException as error:
                results.append(error)
        return results

    def _inside(self, call: Call) -> bool:
        """Whether the prompt ends in an open think block."""
        last = call.messages[-1]
        begun = not self.base and last["role"] == "assistant"
        return begun and last.get("reasoning_content") is not None and not last["content"]

    def _reply(
        self, call: Call, request: Request, ids: Sequence[int], logprobs: Sequence[float], reason: str, sample: int
    ) -> Reply:
        text, thinking, stopped = read(self.tokenizer, ids, call.settings.stop, self._inside(call))
        tokens = tuple((self.tokenizer.decode([token]), value) for token, value in zip(ids, logprobs))
        return Reply(
            text=text,
            thinking=thinking,
            finish_reason="stop" if stopped or reason == "stop" else "length",
            usage=Usage(0 if sample else len(request.prompt_ids), len(ids)),
            logprobs=tokens if call.settings.logprobs else None,
            model=self.name,
        )

    def _score(self, prompt: list[int], rows: list[list[int]]) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each row's ids behind the prompt, and whether each was the likeliest."""
        import torch

        from sekkei.model.attention import DenseAttend

        model, device = self.engine.model, self.engine.device
        width = len(prompt) + max(map(len, rows)) - 1
        ids = torch.zeros(len(rows), width, dtype=torch.int64)  # what fills the right is never seen
        for i, row in enumerate(rows):
            line = [*prompt, *row][:-1]
            ids[i, : len(line)] = torch.tensor(line)
        found = []
        with torch.no_grad():
            positions = torch.arange(width, device=device).expand(len(rows), -1)
            hidden = model.hidden(ids.to(device), positions, DenseAttend(None))[:, len(prompt) - 1 :]  # [B, T, D]
            for i, row in enumerate(rows):
                logprobs = model.logits(hidden[i, : len(row)]).double().log_softmax(-1)
                labels = torch.tensor(row, device=device)
                picked = logprobs.gather(-1, labels[:, None]).sum()
                found.append((float(picked), bool((logprobs.argmax(-1) == labels).all())))
        return found


def _plain(message: Message) -> dict[str, Any]:
    """What the chat template knows of a message."""
    return {key: message[key] for key in ("role", "content", "reasoning_content") if key in message}
