"""What goes into the engine and what comes out. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sekkei.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    temperature: 0 = greedy. top_k: 0 = all. top_p: 1 = all (nucleus sampling, Holtzman et al. 2020).
    Returned log-probabilities are those of softmax(logits / temperature) *before* top-k and top-p cut it
    (temperature 1 for greedy), which is what a trainer recomputes.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 256
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be >= 0 (0 = greedy)")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", f"got {self.top_p}, must be in (0, 1]")
        if self.top_k < 0 or self.max_tokens < 1:
            raise ConfigError("max_tokens", f"max_tokens={self.max_tokens} must be >= 1 and top_k={self.top_k} >= 0")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt, answered `n` times. `seed` is a hash of (run, step, prompt); each sample derives its own."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer. `token_ids` includes the stop token where one ended it (finish_reason "stop").

    logprobs: one per token. weights_hash: of the weights that drew it. seed: of this sample.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    weights_hash: str
    seed: int
