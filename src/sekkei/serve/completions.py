"""`/v1/completions`: text goes on. With `echo` and `logprobs` a prompt is scored, as evaluation harnesses want it.

The arrays under `logprobs` hold every token that was drawn, a stop token included, and before them the prompt's where
`echo` is set (the first of which nothing predicts: null). Log-probabilities of the prompt are at temperature 1. With
`max_tokens` 0 nothing is drawn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sekkei.engine.request import Request, Top
from sekkei.serve.answering import Answering, finite, new_seed
from sekkei.serve.service import Piece, Ticket
from sekkei.serve.wire import MAX_SAMPLES, CompletionRequest, bad


@dataclass
class Completions:
    """Answers one completion request.

    Raises (`ask`):
        ApiError
    """

    answering: Answering
    asked: CompletionRequest

    def ask(self) -> Ticket:
        """Check and queue."""
        asked, answering = self.asked, self.answering
        adapter = answering.adapter(asked.model)
        prompts = self._prompts()
        n = asked.n or 1
        if n * len(prompts) > MAX_SAMPLES:
            raise bad(f"{len(prompts)} prompts times n={n} are more than {MAX_SAMPLES} samples", "n")
        sampling = answering.sampling(
            asked,
            max(map(len, prompts)),
            16 if asked.max_tokens is None else max(1, asked.max_tokens),  # OpenAI's default
            top_logprobs=asked.logprobs or 0,
            prompt_logprobs=bool(asked.echo) and asked.logprobs is not None,
        )
        seed = new_seed(asked.seed)
        requests = [
            Request(prompt_ids=tuple(ids), sampling=sampling, n=n, seed=seed, adapter=adapter) for ids in prompts
        ]
        return answering.submit(requests, stream=bool(asked.stream))

    async def whole(self, ticket: Ticket) -> dict[str, Any]:
        """The answer at once."""
        choices, drawn = {}, 0
        async for piece in ticket:
            drawn += len(piece.tokens)
            choices[piece.index] = self._choice(piece, first=True)
        if self.asked.max_tokens == 0:
            drawn = 0
        envelope = self.answering.envelope("cmpl", "text_completion", ticket)
        return envelope | {
            "choices": [choices[i] for i in sorted(choices)],
            "usage": self.answering.usage(ticket, drawn),
        }

    async def chunks(self, ticket: Ticket) -> AsyncIterator[Mapping[str, Any]]:
        """The answer as it grows."""
        envelope = self.answering.envelope("cmpl", "text_completion", ticket)
        begun: dict[int, int] = {}  # characters that were sent of each sample
        drawn = 0
        async for piece in ticket:
            drawn += len(piece.tokens)
            first = piece.index not in begun
            if piece.text or first or piece.completion is not None or self.asked.logprobs is not None:
                choice = self._choice(piece, first, begun.get(piece.index, 0))
                begun[piece.index] = begun.get(piece.index, 0) + len(choice["text"])
                yield envelope | {"choices": [choice]}
        usage = self.answering.usage(ticket, 0 if self.asked.max_tokens == 0 else drawn)
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield envelope | {"choices": [], "usage": usage}

    def _prompts(self) -> list[Sequence[int]]:
        prompt, words = self.asked.prompt, self.answering.opened.words
        if isinstance(prompt, str):
            return [words.plain(prompt)]
        if prompt and isinstance(prompt[0], int):
            return [prompt]  # type: ignore[list-item]
        if not prompt:
            raise bad("prompt is an empty list", "prompt")
        return [words.plain(one) if isinstance(one, str) else one for one in prompt]

    def _choice(self, piece: Piece, first: bool, offset: int = 0) -> dict[str, Any]:
        """Everything of a sample, or the next part of it; the prompt is part of the first where it is echoed."""
        nothing = self.asked.max_tokens == 0
        text = "" if nothing else piece.text
        tokens, logprobs, tops = ([], [], []) if nothing else (piece.tokens, piece.logprobs, piece.tops)
        known: list[float | None] = list(logprobs)
        best: list[Top | None] = list(tops)
        if self.asked.echo and first:
            prompt, sample = list(piece.sample.request.prompt_ids), piece.sample
            text = self._prompt_text(piece) + text
            tokens = [*prompt, *tokens]
            known = [None, *sample.prompt_logprobs, *known]
            best = [None, *sample.prompt_tops, *best]
        reason = piece.completion.finish_reason if piece.completion is not None else None
        shown = None if self.asked.logprobs is None else self._logprobs(tokens, known, best, offset)
        return {
            "index": piece.index,
            "text": text,
            "logprobs": shown,
            "finish_reason": "length" if nothing and reason else reason,
        }

    def _prompt_text(self, piece: Piece) -> str:
        """The prompt as it was sent; one that came as ids is decoded."""
        prompt, n = self.asked.prompt, self.asked.n or 1
        if isinstance(prompt, str):
            return prompt
        one = prompt[piece.index // n] if prompt and not isinstance(prompt[0], int) else prompt
        if isinstance(one, str):
            return one
        return self.answering.opened.words.inner.decode(list(one), skip_special_tokens=False)  # type: ignore[arg-type]

    def _logprobs(
        self, tokens: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Top | None], offset: int
    ) -> dict[str, Any]:
        pieces = self.answering.pieces
        texts = [pieces.text(token) for token in tokens]
        offsets, at = [], offset
        for text in texts:
            offsets.append(at)
            at += len(text)
        shown: list[dict[str, float] | None] | None = None
        if self.asked.logprobs:
            shown = []
            for top in tops:
                by_text: dict[str, float] = {}
                for token, value in top or ():
                    by_text.setdefault(pieces.text(token), finite(value))  # the best of tokens that read alike
                shown.append(by_text if top is not None else None)
        return {
            "tokens": texts,
            "token_logprobs": [None if value is None else finite(value) for value in logprobs],
            "top_logprobs": shown,
            "text_offset": offsets,
        }
