"""A request on its way: its samples, what each has drawn, and why it ended.

    Answer ── Sample (sequence, seed, log-probabilities, text, constraint) × n ──> Completion × n

It does not handle where keys and values lie (scheduler.py), or drawing (sampling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import tokenizers

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.engine.request import Completion, Constraint, Request, Top
from sekkei.engine.scheduler import Sequence as Row
from sekkei.engine.text import GrowingText


class Sample:
    """One answer to a request as it grows.

    Attributes:
        sequence: its tokens; set when it is queued. index: among the request's samples. limit: most tokens it may draw.
        text: as it grows, where the request wants it.
    """

    sequence: Row

    def __init__(self, request: Request, index: int, limit: int, tokenizer: tokenizers.Tokenizer | None) -> None:
        self.request, self.index, self.limit = request, index, limit
        self.seed = derive_seed(request.seed, index)
        self.logprobs: list[float] = []
        self.tops: list[Top] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_tops: list[Top] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.constraint: Constraint | None = request.constraint() if request.constraint is not None else None
        self.stop_tokens = frozenset(request.sampling.stop_tokens)
        self.text: GrowingText | None = None
        if request.sampling.text or request.sampling.stop:
            assert tokenizer is not None
            self.text = GrowingText(tokenizer, request.sampling.stop)
        self._plain = self.text is None and self.constraint is None

    @property
    def drawn(self) -> list[int]:
        return self.sequence.tokens[len(self.request.prompt_ids) :]

    def append(self, token: int, logprob: float, top: Top | None, limit: bool) -> None:
        """One more token; `limit`: it is the last that may be drawn."""
        self.sequence.tokens.append(token)
        self.logprobs.append(logprob)
        if top is not None:
            self.tops.append(top)
        if token in self.stop_tokens:
            self.finish_reason = "stop"
        elif limit:
            self.finish_reason = "length"
        if not self._plain:
            self._follow(token)

    def _follow(self, token: int) -> None:
        """Text and constraint of the token just drawn."""
        stopped = self.finish_reason == "stop"
        if self.constraint is not None and not stopped:
            self.constraint.accept(token)
            if self.constraint.finished:
                self.finish_reason = "stop"
        if self.text is None:
            return
        if not stopped:
            self.text.push(token)
        if self.finish_reason is not None:
            self.text.end(self.drawn[:-1] if stopped else self.drawn)
        if self.text.stopped:
            self.finish_reason = "stop"

    def completion(self, weights_hash: str) -> Completion:
        """What it has become; RuntimeError if it is unfinished."""
        if self.finish_reason is None:
            raise RuntimeError("the sample is not finished")
        return Completion(
            token_ids=tuple(self.drawn),
            logprobs=tuple(self.logprobs),
            finish_reason=self.finish_reason,
            weights_hash=weights_hash,
            seed=self.seed,
            text=None if self.text is None else self.text.settled,
            top_logprobs=tuple(self.tops),
            prompt_logprobs=tuple(self.prompt_logprobs),
            prompt_top_logprobs=tuple(self.prompt_tops),
        )


class Answer:
    """A request's n samples."""

    def __init__(
        self, request: Request, weights_hash: str, max_context: int, tokenizer: tokenizers.Tokenizer | None
    ) -> None:
        self.request, self.weights_hash = request, weights_hash
        limit = min(request.sampling.max_tokens, max_context - len(request.prompt_ids))
        self.samples = [Sample(request, i, limit, tokenizer) for i in range(request.n)]
        for sample in self.samples[1:]:  # whichever of them computes the prompt, it is the prompt of all
            sample.prompt_logprobs, sample.prompt_tops = self.samples[0].prompt_logprobs, self.samples[0].prompt_tops

    @property
    def finished(self) -> bool:
        return all(sample.finish_reason is not None for sample in self.samples)

    def completions(self) -> list[Completion]:
        return [sample.completion(self.weights_hash) for sample in self.samples]


def check_prompt(prompt: Sequence[int], max_context: int, vocab_size: int) -> None:
    """Refuse a prompt that cannot be answered.

    Raises:
        UserError
    """
    if not 0 < len(prompt) < max_context:
        raise UserError(
            f"a prompt of {len(prompt)} tokens: it must have at least 1 and fewer than "
            f"model.max_context={max_context}, so that one token can follow"
        )
    wrong = next((i for i in (min(prompt), max(prompt)) if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise UserError(f"a prompt holds token id {wrong}, the model has {vocab_size}: use the model's own tokenizer")
