"""Whole weights from a layout, and engines that share out what is to be generated with them.

    each rank's parts ── gather_named ──> a whole copy on every rank ── engine ──> this rank's share of the requests
                                                                                   │
    all completions, on every rank, in the order of the requests  <── gather_json ─┘

While ranks generate no collective crosses them: answers differ in length. The copy is made with the first request and
costs the weights once more; later only what training moves is gathered anew, of an adapter (model/lora.py) its own
numbers. Evaluation, which reads its model from a file, begins with whole copies (`SharedEngine`). It does not handle
models that do not fit one rank whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from sekkei.core import dist
from sekkei.core.progress import Bar
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request
from sekkei.model.lora import empty_lora
from sekkei.model.moe import biases
from sekkei.model.transformer import Transformer
from sekkei.parallel.apply import Sharded
from sekkei.parallel.pipeline import Pipelined, heads_of


def gathered(placed: Sharded | Pipelined, device: torch.device, masters: bool = False) -> Transformer:
    """A whole copy of the model as it is now, on every rank (all take part): as it computes, or as it is kept."""
    model = placed.model if isinstance(placed, Sharded) else placed.shape
    with torch.device("meta"):
        copy = Transformer(placed.config, heads_of(model))
    if placed.lora is not None:
        empty_lora(copy, placed.lora)
    copy = copy.to(placed.wide if masters else placed.dtype)
    for bias in biases(copy).values():
        bias.data = bias.data.to(placed.wide)  # narrow, it would choose other experts than the trainer's
    copy = copy.to_empty(device=device)
    if placed.config.tied_embeddings and copy.lm_head is not None and copy.embed is not None:
        copy.lm_head.weight = copy.embed.weight
    refresh(copy, placed, masters, frozen=True)
    return copy.requires_grad_(False)


@torch.no_grad()
def refresh(copy: Transformer, placed: Sharded | Pipelined, masters: bool = False, frozen: bool = False) -> None:
    """Bring a whole copy up to date: what training moves, or all of it."""
    own = dict(copy.named_parameters())
    for name, tensor in placed.gather_named(masters, frozen):
        own[name].copy_(tensor)


class SharedEngine(Engine):
    """An engine that every rank has, with the same whole model: each answers its share, and all have all answers."""

    def generate(self, requests: Sequence[Request], progress: Bar | None = None) -> list[list[Completion]]:
        """As on one process; all ranks take part, with the same requests, and refuse them together."""
        rank, world = dist.rank(), dist.world_size()
        if world == 1:
            return super().generate(requests, progress)
        for request in requests:
            self.check(request)
        own = super().generate(requests[rank::world], progress) if requests[rank::world] else []
        parts = dist.gather_json([[asdict(completion) for completion in group] for group in own])
        return [
            [Completion(**{k: _tuples(v) for k, v in record.items()}) for record in parts[i % world][i // world]]
            for i in range(len(requests))
        ]


class GatheredEngine:
    """Generates with a layout's weights of now.

    Args:
        autocast: compute dtype of forward passes; None: the weights' own.
    """

    def __init__(self, placed: Sharded | Pipelined, device: torch.device, autocast: torch.dtype | None) -> None:
        self.placed, self.device, self.autocast = placed, device, autocast
        self.engine: SharedEngine | None = None

    def __call__(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Completions of each request, on every rank."""
        if self.engine is None:
            self.engine = SharedEngine(gathered(self.placed, self.device), dtype=self.autocast)
        else:
            refresh(self.engine.model, self.placed)
            self.engine.refresh(None)
        return self.engine.generate(list(requests))


def _tuples(value: Any) -> Any:
    """JSON knows lists only."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
