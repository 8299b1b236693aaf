"""What goes into the engine and what comes out. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from sekkei.core.errors import ConfigError

MAX_TOP_LOGPROBS = 20  # as OpenAI's API allows
LEAST_TEMPERATURE = 1e-4  # scores over it, and times MAX_PENALTY, stay finite in float32
MAX_PENALTY = 100.0
Top = tuple[tuple[int, float], ...]
"""The most probable tokens of one position with their log-probabilities, the best first."""


class Constraint(Protocol):
    """What the next token may be, for one sample; it is told every token that was drawn."""

    def allowed(self) -> np.ndarray:
        """[V] bool, at least one of them true."""
        ...

    def accept(self, token: int) -> None: ...

    @property
    def finished(self) -> bool:
        """Nothing may follow any more."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    temperature: 0 = greedy. top_k: 0 = all. top_p: 1 = all (nucleus sampling, Holtzman et al. 2020). min_p: 0 = all;
    else tokens with less than this share of the best one's probability are cut (Nguyen et al. 2024).
    repetition_penalty: scores of tokens that stand in the prompt or the answer are divided by it where positive, else
    multiplied (Keskar et al. 2019); 1 = none.
    stop_tokens end an answer and belong to it; stop strings end it and are cut from its text, which an engine with a
    tokenizer decodes where `stop` or `text` asks for it.
    Returned log-probabilities are those of softmax(logits / temperature) *before* penalty, constraint and cuts
    (temperature 1 for greedy), which is what a trainer recomputes. top_logprobs: how many of the best to return.
    prompt_logprobs: return those of the prompt's tokens too, at temperature 1.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    stop_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    text: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature <= 1 / LEAST_TEMPERATURE:
            least = LEAST_TEMPERATURE
            raise ConfigError(
                "temperature", f"got {self.temperature}, must be 0 (greedy) or from {least} to {1 / least:g}"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", f"got {self.top_p}, must be in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ConfigError("min_p", f"got {self.min_p}, must be in [0, 1]")
        if not 1 / MAX_PENALTY <= self.repetition_penalty <= MAX_PENALTY:
            raise ConfigError(
                "repetition_penalty",
                f"got {self.repetition_penalty}, must be from {1 / MAX_PENALTY} to {MAX_PENALTY:g} (1 = none)",
            )
        if self.top_k < 0 or self.max_tokens < 1:
            raise ConfigError("max_tokens", f"max_tokens={self.max_tokens} must be >= 1 and top_k={self.top_k} >= 0")
        if not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise ConfigError("top_logprobs", f"got {self.top_logprobs}, must be from 0 to {MAX_TOP_LOGPROBS}")
        if "" in self.stop:
            raise ConfigError("stop", "a stop string is empty: it would end every answer at once")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt, answered `n` times. `seed` is a hash of (run, step, prompt); each sample derives its own.

    constraint: makes a fresh one for each sample (constrain.py). adapter: name of one of the engine's (adapters.py);
    None: the base model.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    seed: int = 0
    constraint: Callable[[], Constraint] | None = None
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer. `token_ids` includes the stop token where one ended it (finish_reason "stop").

    logprobs: one per token. weights_hash: of the weights that drew it. seed: of this sample. text: without the stop
    token or stop string; None where it was not asked for. top_logprobs: per token. prompt_logprobs and
    prompt_top_logprobs: per prompt token but the first, which nothing predicts.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    weights_hash: str
    seed: int
    text: str | None = None
    top_logprobs: tuple[Top, ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    prompt_top_logprobs: tuple[Top, ...] = ()
