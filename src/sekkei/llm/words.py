"""From the token ids of our own model to thinking and text, whole or as they arrive.

The decoded reply is cut before the first stop text (OpenAI's convention: wherever it stands, thinking included), loses
its end mark, and is parted at the think block as `text.chat.parse_reply` does it. While it is still growing, a
character whose bytes are not all there and the possible beginning of a stop text are held back, so a stream adds up to
the reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sekkei.llm.protocol import Piece
from sekkei.llm.wire import overlap
from sekkei.text.chat import parse_reply
from sekkei.text.tokenizer import END, THINK, Tokenizer

BROKEN = "\ufffd"  # what half a character decodes to


def read(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str], inside: bool) -> tuple[str, str | None, bool]:
    """(text, thinking, whether a stop text cut it) of a reply's ids.

    Args:
        inside: the prompt ended in an open think block, so the reply begins in it.
    """
    return _parted(tokenizer.decode(ids), stops, inside)


def _parted(raw: str, stops: Sequence[str], inside: bool) -> tuple[str, str | None, bool]:
    raw = raw.removesuffix(END)
    cut = min((place for place in map(raw.find, stops) if place >= 0), default=-1)
    found = parse_reply((THINK if inside else "") + (raw if cut < 0 else raw[:cut]))
    return found.content, found.reasoning, cut >= 0


class Words:
    """A reply as it arrives.

    Args:
        stops, inside: as `read`.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], inside: bool) -> None:
        self.tokenizer, self.stops, self.inside = tokenizer, tuple(stops), inside
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.stopped = False
        self._text = self._thinking = 0  # characters that were passed on

    @property
    def ended(self) -> bool:
        """The model wrote its end mark."""
        return self.ids[-1:] == [self.tokenizer.end_id]

    def add(self, token: int, logprob: float) -> Iterator[Piece]:
        """What one more token made final."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        raw = self.tokenizer.decode(self.ids)
        self.stopped = any(stop in raw for stop in self.stops)
        if not self.stopped:
            raw = raw.rstrip(BROKEN)
            raw = raw[: len(raw) - max((overlap(raw, stop) for stop in self.stops), default=0)]
        yield from self._new(raw)

    def close(self) -> Iterator[Piece]:
        """What was held back."""
        yield from self._new(self.tokenizer.decode(self.ids))

    def _new(self, raw: str) -> Iterator[Piece]:
        text, thinking, _ = _parted(raw, self.stops, self.inside)
        if len(thinking or "") > self._thinking:
            yield Piece(thinking=(thinking or "")[self._thinking :])
            self._thinking = len(thinking or "")
        if len(text) > self._text:
            yield Piece(text=text[self._text :])
            self._text = len(text)
