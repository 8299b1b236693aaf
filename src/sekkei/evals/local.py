"""A model on this machine as a backend that answers and scores, whichever tokenizer and chat template it has.

    messages ──chat template──> ids ──Engine──> text                 text ids + continuation ids ──Engine──> log p

Of a run folder or of a Hugging Face folder: what differs is in `LocalModel`, which whoever opens the folder fills
(cli/eval.py does; the openers stand on another floor). Unlike llm/engine.py it runs on any device and speaks foreign
chat templates; it does not continue an assistant's message. Calls that arrive while the engine works wait and are
decoded together. A model without a chat template is asked by the contents of the messages, joined by line ends.

Continuations are scored token by token as they are encoded alone, behind the prompt's ids, at temperature 1.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.llm.protocol import Call, Capabilities, LLMError, Message, Piece, Reply, Score, Usage, check
from sekkei.llm.wire import split_thinking
from sekkei.model.transformer import Transformer
from sekkei.text.chat import encode_prompt, parse_reply
from sekkei.text.tokenizer import Tokenizer

SCORED_AT_ONCE = 4096  # continuations handed to the engine together


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model and what it speaks.

    Args:
        name: as results show it. stage: of a run, else "".
        plain: ids of a text to go on from. chat: ids of a conversation (messages, thinking) up to where the answer
            begins; None for a model that knows no turns. encode: ids of a text that follows, special tokens in it
            being plain text.
        inner: decodes. stop_tokens: ids that end an answer. token_bytes: bytes of text each id stands for, 0 for
            special ones.
        run_dir: of a run, for its own data. own: the tokenizer of a model that sekkei trained.
    """

    name: str
    model: Transformer
    plain: Callable[[str], list[int]]
    chat: Callable[[Sequence[Message], bool], list[int]] | None
    encode: Callable[[str], list[int]]
    inner: Any
    stop_tokens: tuple[int, ...]
    token_bytes: Sequence[int]
    stage: str = ""
    run_dir: Path | None = None
    own: Tokenizer | None = None

    def prompt(self, messages: Sequence[Message], thinking: bool) -> list[int]:
        """Ids to go on from."""
        if self.chat is None:
            return self.plain("\n".join(message["content"] for message in messages))
        return self.chat(messages, thinking)


def own_model(
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    inner: Any,
    *,
    chats: bool,
    stage: str = "",
    run_dir: Path | None = None,
) -> LocalModel:
    """A model that sekkei trained.

    Args:
        inner: the tokenizer as the library's object, for decoding. chats: False for one that was only pretrained.
    """
    return LocalModel(
        name=name,
        model=model,
        plain=lambda text: [tokenizer.bos_id, *tokenizer.encode(text)],
        chat=(lambda messages, thinking: encode_prompt(tokenizer, messages, thinking)) if chats else None,
        encode=tokenizer.encode,
        inner=inner,
        stop_tokens=(tokenizer.end_id,),
        token_bytes=tokenizer.token_bytes(),
        stage=stage,
        run_dir=run_dir,
        own=tokenizer,
    )


class LocalBackend:
    """Answers with an engine in a thread of its own."""

    def __init__(self, local: LocalModel, max_batch: int = 64) -> None:
        self.local = local
        self.engine = Engine(local.model, max_batch=max_batch, tokenizer=local.inner)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sekkei-eval")
        self._lock = threading.Lock()
        self._waiting: list[tuple[Sequence[Request], Future[list[list[Completion]]]]] = []

    @property
    def name(self) -> str:
        return f"{self.local.name}@{self.engine.weights_hash}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(loglikelihood=True, seed=True, max_context=self.local.model.config.max_context)

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        check(self.name, self.capabilities, call)
        settings = call.settings
        sampling = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            stop_tokens=self.local.stop_tokens,
            stop=settings.stop,
            text=True,
        )
        ids = tuple(self.local.prompt(call.messages, settings.thinking))
        (done,) = await self._run([Request(prompt_ids=ids, sampling=sampling, n=settings.n, seed=settings.seed)])
        return tuple(self._reply(completion, 0 if i else len(ids)) for i, completion in enumerate(done))

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        for reply in await self.answer(call):
            yield Piece(text=reply.text, thinking=reply.thinking or "")
            yield Piece(reply=reply)

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        check(self.name, self.capabilities, call)
        prompt = self.local.prompt(call.messages, call.settings.thinking)
        rows = [self.local.encode(text) for text in continuations]
        for text, row in zip(continuations, rows):
            if not row:
                raise LLMError(f"{self.name}: continuation {text!r} is empty; there is nothing to score")
        sampling = Sampling(temperature=0.0, max_tokens=1, prompt_logprobs=True, top_logprobs=1)
        done = await self._run([Request(prompt_ids=(*prompt, *row), sampling=sampling) for row in rows])
        found = []
        for row, (completion,) in zip(rows, done):
            best = [top[0][0] for top in completion.prompt_top_logprobs[-len(row) :]]
            logprob = sum(completion.prompt_logprobs[-len(row) :])
            found.append(Score(logprob, len(row), best == row, Usage(len(prompt) + len(row), 0)))
        return tuple(found)

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, requests: Sequence[Request]) -> list[list[Completion]]:
        try:
            for request in requests:
                self.engine.check(request)
        except UserError as error:
            raise LLMError(f"{self.name}: {error}") from None
        future: Future[list[list[Completion]]] = Future()
        with self._lock:
            self._waiting.append((requests, future))
        await asyncio.sleep(0)  # calls that were started together are queued before the first is taken
        self._pool.submit(self._drain)
        return await asyncio.wrap_future(future)

    def _drain(self) -> None:
        """Answer what waits, in one batch (runs in the pool's thread)."""
        taken: list[tuple[Sequence[Request], Future[list[list[Completion]]]]] = []
        with self._lock:
            while self._waiting and sum(len(requests) for requests, _ in taken) < SCORED_AT_ONCE:
                taken.append(self._waiting.pop(0))
        wanted = [(requests, future) for requests, future in taken if future.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            answers = self.engine.generate([request for requests, _ in wanted for request in requests])
        except BaseException as error:
            for _, future in wanted:
                future.set_exception(error)
            return
        for requests, future in wanted:
            future.set_result(answers[: len(requests)])
            answers = answers[len(requests) :]

    def _reply(self, completion: Completion, prompt_tokens: int) -> Reply:
        text, thinking = split_thinking(completion.text or "", None)
        if self.local.own is not None:  # its template leaves the space before an answer in place
            parted = parse_reply(completion.text or "")
            text, thinking = parted.content, parted.reasoning
        usage = Usage(prompt_tokens, len(completion.token_ids))
        return Reply(text=text, thinking=thinking, finish_reason=completion.finish_reason, usage=usage, model=self.name)


def byte_lengths(inner: Any, raw: Callable[[int], bytes]) -> list[int]:
    """Bytes of text that each id of a byte-level vocabulary stands for; 0 for special tokens.

    Args:
        inner: a `tokenizers.Tokenizer`. raw: the bytes of one id.
    """
    special: Mapping[int, Any] = inner.get_added_tokens_decoder()
    return [0 if token in special else len(raw(token)) for token in range(inner.get_vocab_size())]
