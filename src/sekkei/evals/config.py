"""How much is measured after each stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from sekkei.core.config import ABSENT
from sekkei.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Sizes of the held-out sets.

    Args:
        tokens: per domain, for bits per byte. quick_tokens: the same while training.
        long_windows: of the longest context, of each domain, for bits per byte by position.
        problems: of the reasoning task. path: problems of one's own (as tune.NAME.path), asked besides; no stage learns
            from them. max_tokens: of an answer. conversations: everyday turns.
        requests: harmful and harmless requests. probes: in-context patterns per number of examples.
        shots: numbers of examples. tools: sums to be worked out with the calculator.
        samples_every: text samples while training, in steps (0 = never).
    """

    tokens: int = 60_000
    quick_tokens: int = 8_000
    long_windows: int = 32
    problems: int = 128
    path: str | None = field(default=None, metadata=ABSENT)
    max_tokens: int = 128
    conversations: int = 100
    requests: int = 40
    probes: int = 100
    shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    tools: int = 100
    samples_every: int = 200

    def __post_init__(self) -> None:
        keys = ("tokens", "quick_tokens", "long_windows", "problems", "max_tokens", "conversations", "requests")
        for key in (*keys, "probes", "tools"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if not self.shots or min(self.shots) < 0:
            raise ConfigError("shots", f"got {list(self.shots)}, must list numbers of examples >= 0")
        if self.samples_every < 0:
            raise ConfigError("samples_every", f"got {self.samples_every}, must be >= 0 (0 = never)")
