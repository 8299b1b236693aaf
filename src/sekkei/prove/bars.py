"""Bytes per parameter that each ZeRO stage leaves on a rank, measured at several world sizes, beside the formulas.

    stage    bf16 weights, float32 masters     float32 weights
    0        2 + 2 + 12 = 16                   4 + 4 + 8 = 16        weights, gradients, optimizer (Adam 8, master 4)
    1        4 + 12/N                          8 + 8/N               N data ranks divide the optimizer's state
    2        2 + 14/N                          4 + 12/N              and gradients
    3        16/N                              16/N                  and parameters (float32 shards and gradients)

(Rajbhandari et al. 2020, section 3.) The textbook's 4x and 8x of stages 1 and 2 are limits for large N. One rank has
nobody to divide with: its bar is float32. Gradients are summed in the weights' dtype, as the formulas have it (sums in
float32 cost 2 bytes more, divided from stage 2 on). Measured after the backward pass, before the optimizer's step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.objectives.pretrain import TokenLoss
from sekkei.parallel.apply import Sharded
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import textbook_bytes
from sekkei.parallel.mesh import Mesh
from sekkei.prove.spawned import spawned
from sekkei.train.objective import Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.sharded_step import ShardedStep

VOCAB, TOKENS = 64, 16
CONFIG = ModelConfig(
    hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16, intermediate_size=128, vocab_size=VOCAB
)
Weights = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Held:
    """Bytes per parameter of the fullest rank, and what the formula says."""

    ranks: int
    zero: int
    weights: Weights
    params: float
    grads: float
    optimizer: float
    formula: float

    @property
    def total(self) -> float:
        return self.params + self.grads + self.optimizer


def formula(zero: int, ranks: int, weights: Weights) -> float:
    """Bytes per parameter on a rank."""
    return textbook_bytes(zero, ranks) if weights == "bf16" else (16, 8 + 8 / ranks, 4 + 12 / ranks, 16 / ranks)[zero]


def held_bytes(sizes: Sequence[int] = (1, 2, 4, 8), weights: Weights = "bf16") -> list[Held]:
    """Measure every stage on real groups of these sizes."""
    found = []
    for ranks in sizes:
        kind: Weights = weights if ranks > 1 else "fp32"
        stages = range(4) if ranks > 1 else (0,)
        layouts = [Layout(dp=ranks, zero=zero, weights=kind, reduce=kind) for zero in stages]
        every = spawned(measure, ranks, layouts)
        for zero in stages:
            parts = max((rank[zero] for rank in every), key=lambda part: sum(part.values()))
            found.append(Held(ranks, zero, kind, **parts, formula=formula(zero, ranks, kind)))
    return found


def measure(layouts: Sequence[Layout]) -> list[dict[str, float]]:
    """This rank's bytes per parameter under each layout."""
    return [_measure(layout) for layout in layouts]


def _measure(layout: Layout) -> dict[str, Any]:
    mesh = Mesh(layout, "cpu")
    whole = build(CONFIG, seed=1)
    count = sum(parameter.numel() for parameter in whole.parameters())
    model = Sharded(whole, mesh)
    optimizer = Optimizer(model.model, OptimConfig(kind="adamw", schedule="constant", warmup=0.0), 3, placed=model)
    step = ShardedStep({"policy": model}, mesh, torch.device("cpu"), None)
    held: dict[str, int] = {}
    for number in range(2):  # after the first step the optimizer has its moments
        step.backward(Update("policy", [_batch(mesh.dp_rank)], TokenLoss()))
        held = model.bytes()
        model.clip(1.0)
        optimizer.step(number)
        model.publish()
        model.model.zero_grad()
    moments = [x.to_local() if hasattr(x, "to_local") else x for x in optimizer.tensors().values() if x.ndim]
    optim = held["master"] + sum(x.numel() * x.element_size() for x in moments)
    return {"params": held["params"] / count, "grads": held["grads"] / count, "optimizer": optim / count}


def _batch(number: int) -> Batch:
    rng = random.Random(number)
    ids = [rng.randrange(VOCAB) for _ in range(TOKENS + 1)]
    return lay_out([[Sample(ids=ids, weights=[1.0] * len(ids))]], TOKENS)
