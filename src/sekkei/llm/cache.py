"""Replies kept on disk, one small JSON file per call, so that the same question is paid for once.

    {folder}/{first two digits}/{SHA-256 of model + messages + settings + tools}.json

The seed is part of the settings, so two samples that are meant to differ are two files. A reply from the cache says
`cached` and keeps the usage that it once cost, so accuracy per token can still be computed. A file that cannot be read
(a torn disk, another version) counts as absent and is written anew. Streams are served from the cache in one piece;
several processes may share a folder. Nothing is ever removed: delete the folder to start over.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.config import from_mapping, to_mapping
from sekkei.core.errors import UserError
from sekkei.llm.protocol import Backend, Call, Capabilities, Piece, Reply, Score, ToolCall, Usage

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, UserError)


class Cached:
    """A backend that remembers."""

    def __init__(self, inner: Backend, folder: Path) -> None:
        self._inner, self.folder = inner, folder
        self.hits = self.misses = 0

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        path = self._path(call.key(self.name))
        found = self._read(path, call.settings.n)
        if found is not None:
            return found
        replies = await self._inner.answer(call)
        atomic.write_json(path, [reply_mapping(reply) for reply in replies])
        return replies

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        path = self._path(call.key(self.name))
        found = self._read(path, 1)
        if found is not None:
            for piece in whole(found[0]):
                yield piece
            return
        async with aclosing(self._inner.stream(call)) as pieces:
            async for piece in pieces:
                if piece.reply is not None:
                    atomic.write_json(path, [reply_mapping(piece.reply)])
                yield piece

    async def score(self, call: Call, continuations: Sequence[str]) -> tuple[Score, ...]:
        path = self._path(call.key(self.name, "score", list(continuations)))
        try:
            scores = tuple(score_from(item) for item in json.loads(path.read_text(encoding="utf-8")))
            self.hits += 1
            return scores
        except UNREADABLE:
            self.misses += 1
        scores = await self._inner.score(call, continuations)
        atomic.write_json(path, to_mapping(scores))
        return scores

    async def close(self) -> None:
        await self._inner.close()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def _read(self, path: Path, count: int) -> tuple[Reply, ...] | None:
        try:
            replies = [reply_from(item) for item in json.loads(path.read_text(encoding="utf-8"))]
            if len(replies) != count:
                raise ValueError("another number of samples")
        except UNREADABLE:
            self.misses += 1
            return None
        self.hits += 1
        return tuple(replace(reply, cached=True) for reply in replies)


def whole(reply: Reply) -> list[Piece]:
    """A finished reply as the pieces of a stream."""
    pieces = [Piece(thinking=reply.thinking)] if reply.thinking else []
    pieces += [Piece(text=reply.text)] if reply.text else []
    return [*pieces, Piece(reply=reply)]


def reply_mapping(reply: Reply) -> dict[str, Any]:
    """A reply as plain JSON values."""
    data = to_mapping(reply)
    del data["cached"]
    return data


def reply_from(data: dict[str, Any]) -> Reply:
    """The inverse of `reply_mapping`.

    Raises:
        one of `UNREADABLE`: it is none.
    """
    logprobs = data["logprobs"]
    return Reply(
        text=str(data["text"]),
        thinking=data["thinking"],
        tool_calls=tuple(from_mapping(ToolCall, call) for call in data["tool_calls"]),
        finish_reason=data["finish_reason"],
        usage=from_mapping(Usage, data["usage"]),
        logprobs=None if logprobs is None else tuple((str(token), float(value)) for token, value in logprobs),
        model=data["model"],
    )


def score_from(data: dict[str, Any]) -> Score:
    """A score from its mapping; raises as `reply_from`."""
    usage = from_mapping(Usage, data["usage"])
    return Score(float(data["logprob"]), int(data["tokens"]), bool(data["greedy"]), usage)
