"""Retrieval against invention: one model asked about the docstrings it was taught, with documents and without."""

from __future__ import annotations

from dataclasses import dataclass

from sekkei.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DocumentsConfig:
    """stage: whose model is asked. questions: of each kind, answerable and not. max_tokens: of an answer."""

    stage: str
    questions: int = 30
    max_tokens: int = 64

    def __post_init__(self) -> None:
        for key in ("questions", "max_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
