"""What the server tells Prometheus at `/metrics`. Names follow vLLM's and the OpenMetrics conventions (base units).

Gauges are read when they are asked for; nothing is sampled in between. It does not handle several processes.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sekkei.serve.service import Service

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters and histograms of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("sekkei_requests", "answers by path and status", ["path", "status"], **own)
        self.seconds = Histogram("sekkei_request_seconds", "whole answers", ["path"], buckets=SECONDS, **own)
        self.first = Histogram("sekkei_first_token_seconds", "from queueing to a first token", buckets=SECONDS, **own)
        self.token = Histogram("sekkei_token_seconds", "between the tokens of an answer", buckets=PER_TOKEN, **own)
        self.prompt = Counter("sekkei_prompt_tokens", "tokens of prompts that were answered", **own)
        self.drawn = Counter("sekkei_generated_tokens", "tokens of answers", **own)
        self.disconnects = Counter("sekkei_disconnects", "clients that left before their answer ended", **own)

    def watch(self, service: Service) -> None:
        """Gauges of the engine."""
        engine = service.engine
        for name, text, read in (
            ("sekkei_samples_running", "samples in the batch", lambda: len(engine.scheduler.running)),
            ("sekkei_samples_waiting", "samples that wait", lambda: len(engine.scheduler.waiting)),
            ("sekkei_samples_open", "samples asked for and not finished", lambda: service.open),
            ("sekkei_blocks_held", "blocks of keys and values in use", lambda: engine.pool.held),
            ("sekkei_blocks", "blocks of keys and values", lambda: engine.pool.count),
            ("sekkei_preemptions", "samples that gave their blocks back", lambda: engine.preemptions),
            ("sekkei_prefilled_tokens", "tokens of prompts that were computed", lambda: engine.prefilled),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)

    def count(self, prompt: int, drawn: int) -> None:
        self.prompt.inc(prompt)
        self.drawn.inc(drawn)

    def each_token(self, seconds: float, count: int) -> None:
        """`count` rows drew a token in one step."""
        for _ in range(count):
            self.token.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
