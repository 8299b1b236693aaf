"""`open_llm(spec)`: from one string or config to something that answers, with the layers that were asked for.

    runs/laptop                     our own model: the newest finished one of a run folder
    runs/laptop#sft                 that of one stage
    https://host/v1#model           an OpenAI-compatible endpoint; key from SEKKEI_LLM_KEY
    env                             the same with URL and model from SEKKEI_LLM_URL and SEKKEI_LLM_MODEL
    cassette:PATH                   replay a recording
    cassette:PATH=SPEC              replay it if it is there, else record it from SPEC

Layers, from the outside in; each is a backend around a backend and is left out where it is not configured:

    trace > cache > budget > retries > concurrency limit > backend

so a cached reply is traced and costs nothing, a retried call counts once, and waiting for a retry holds no place.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sekkei.core.config import from_mapping
from sekkei.core.errors import UserError
from sekkei.llm.budget import Budget, BudgetConfig, Budgeted
from sekkei.llm.cache import Cached
from sekkei.llm.cassette import Recording, record_or_replay
from sekkei.llm.face import LLM
from sekkei.llm.http import Endpoint, EndpointConfig
from sekkei.llm.limit import Limited
from sekkei.llm.protocol import Backend
from sekkei.llm.retry import RetryConfig, Retrying
from sekkei.llm.trace import Prices, Traced

log = logging.getLogger(__name__)
CASSETTE = "cassette:"


@dataclass(frozen=True, kw_only=True)
class LLMConfig:
    """Who answers, and under which limits.

    Args:
        spec: as in the header; "" takes `endpoint`.
        endpoint: an endpoint in full (limits in seconds, extra body), instead of `spec`.
        concurrency: most calls under way at once. retry, budget: see their files.
        cache: folder of kept replies, "" = none. trace: JSONL file of all calls, "" = none.
        price_prompt, price_completion: per million tokens, for the trace's "cost"; both or neither.
    """

    spec: str = ""
    endpoint: EndpointConfig | None = None
    concurrency: int = 16
    retry: RetryConfig = field(default_factory=RetryConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    cache: str = ""
    trace: str = ""
    price_prompt: float | None = None
    price_completion: float | None = None

    def __post_init__(self) -> None:
        if bool(self.spec) == (self.endpoint is not None):
            raise UserError("llm: give either spec (as runs/laptop) or endpoint (url, model)")
        if (self.price_prompt is None) != (self.price_completion is None):
            raise UserError("llm: price_prompt and price_completion go together")


def open_llm(spec: str | LLMConfig | Mapping[str, Any], budget: Budget | None = None) -> LLM:
    """Open what `spec` names.

    Args:
        spec: a string as in the header, or a config (a plain mapping is checked strictly).
        budget: shared with others; None makes one of `spec.budget`.
    Raises:
        UserError: the spec names nothing, or what it names cannot be opened.
    """
    if isinstance(spec, Mapping):
        spec = from_mapping(LLMConfig, spec, "llm")
    config = LLMConfig(spec=spec) if isinstance(spec, str) else spec
    backend: Backend = Endpoint(_with_key(config.endpoint)) if config.endpoint is not None else open_spec(config.spec)
    backend = Limited(backend, config.concurrency)
    backend = Retrying(backend, config.retry)
    backend = Budgeted(backend, budget or Budget(config.budget))
    if config.cache:
        backend = Cached(backend, Path(config.cache))
    if config.trace:
        prices = None
        if config.price_prompt is not None and config.price_completion is not None:
            prices = Prices(prompt=config.price_prompt, completion=config.price_completion)
        backend = Traced(backend, Path(config.trace), prices)
    return LLM(backend)


def open_spec(spec: str) -> Backend:
    """The bare backend that a string names.

    Raises:
        UserError
    """
    if spec.startswith(CASSETTE):
        place, sign, inner = spec.removeprefix(CASSETTE).partition("=")
        path = Path(place)
        found = record_or_replay(path, (lambda: open_spec(inner)) if sign else None)
        log.info("%s: %s", path, f"recording {inner}" if isinstance(found, Recording) else "replaying")
        return found
    if spec == "env":
        return _from_environment()
    if spec.startswith(("http://", "https://")):
        url, sign, model = spec.partition("#")
        model = model or os.environ.get("SEKKEI_LLM_MODEL", "")
        if not model:
            raise UserError(f"{spec}: names no model; write {url}#MODEL, or set SEKKEI_LLM_MODEL")
        return Endpoint(_with_key(EndpointConfig(url=url, model=model)))
    place, _, stage = spec.partition("#")
    if not Path(place).is_dir():
        raise UserError(
            f"{spec!r} names nothing that answers: it is no run folder; also known are https://HOST/v1#MODEL, "
            "env (SEKKEI_LLM_URL and SEKKEI_LLM_MODEL) and cassette:PATH"
        )
    from sekkei.llm.run_folder import open_run

    return open_run(Path(place), stage or None)


def _from_environment() -> Endpoint:
    url, model = os.environ.get("SEKKEI_LLM_URL", ""), os.environ.get("SEKKEI_LLM_MODEL", "")
    missing = [key for key, value in (("SEKKEI_LLM_URL", url), ("SEKKEI_LLM_MODEL", model)) if not value]
    if missing:
        raise UserError(f"env: {' and '.join(missing)} not set; set them, or name the model as https://HOST/v1#MODEL")
    return Endpoint(_with_key(EndpointConfig(url=url, model=model)))


def _with_key(config: EndpointConfig) -> EndpointConfig:
    """The config with the key from the environment where it has none of its own."""
    return config if config.key else replace(config, key=os.environ.get("SEKKEI_LLM_KEY", ""))
