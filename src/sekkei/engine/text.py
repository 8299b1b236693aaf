"""The text of an answer as it grows, token by token, and the stop strings in it.

    tokens ──decode──> "…the answer is 7.\nUse"      stop = "\nUser:"
                        └─ settled ──────┘└── held back: it may become the stop string

Text becomes `settled` once no stop string can begin in it; a client that streams is only shown settled text. Bytes
that are not a whole character yet are held back by the decoder. Special tokens are spelled out (`<think>`).

It does not handle stop strings that begin in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders

BROKEN = "\ufffd"


class GrowingText:
    """Text of one answer.

    Attributes:
        settled: what is final. stopped: a stop string was met (it is not in `settled`).
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.settled, self.held = "", ""
        self.stopped = False
        self._stream = decoders.DecodeStream(skip_special_tokens=False)
        self._longest = max(map(len, self.stops), default=0)

    def push(self, token: int) -> None:
        """One more token of the answer (not the stop token)."""
        piece = self._stream.step(self.tokenizer, token)
        if piece:
            self._add(piece)

    def end(self, ids: Sequence[int]) -> None:
        """No token follows; `ids`: all that were pushed. What was held back is settled."""
        if self.stopped:
            return
        whole = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        known = self.settled + self.held
        if whole.startswith(known):
            self._add(whole[len(known) :])  # an unfinished character becomes U+FFFD
        if not self.stopped:
            self.settled, self.held = self.settled + self.held, ""

    def _add(self, piece: str) -> None:
        text = self.held + piece
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            _, begin = min(found)  # of the one that is complete first, wherever tokens end
            self.settled, self.held, self.stopped = self.settled + text[:begin], "", True
            return
        keep = next((n for n in range(min(self._longest - 1, len(text)), 0, -1) if self._may_grow(text[-n:])), 0)
        self.settled += text[: len(text) - keep]
        self.held = text[len(text) - keep :]

    def _may_grow(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self.stops)
