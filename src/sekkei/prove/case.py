"""What every layout must reproduce: a tiny model, a global batch with uneven masks, and its gradient on one process.

Nearly everything is float64: right layouts agree to about 1e-15 there and a planted fault shows an error of 1e-3 to 1,
so the limit of 1e-10 needs no tuning. Loss curves would prove nothing: Adam hides a gradient that is twice too large.

The batch: packed rows (documents of many lengths, padding), token weights that differ, and for DPO pairs of uneven
length; micro-batch i of the global batch goes to data rank i modulo dp.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.model.config import ModelConfig, MoEConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.preference import DPOLoss
from sekkei.objectives.pretrain import TokenLoss
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Loss, Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep
from sekkei.train.trainee import Placed

CONFIG = ModelConfig(
    hidden_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    intermediate_size=48,
    vocab_size=96,
    qk_norm=True,
)
TOKENS, ROWS, MICRO_BATCHES, STEPS = 48, 2, 4, 3
DEEP = replace(CONFIG, num_layers=4)  # for pipelines: two stages on each of two ranks
EXPERTS = MoEConfig(experts=4, active=2, shared=1, intermediate_size=24, first_dense=1, bias_rate=0.05)
SEED = 7
CPU = torch.device("cpu")
OPTIM = OptimConfig(kind="adamw", lr=1e-2, schedule="constant", warmup=0.0, weight_decay=0.1, eps=1e-8, clip=0.5)
Objective = Literal["tokens", "dpo"]


@dataclass(frozen=True)
class Answer:
    """What one process found: loss, gradients and their norm of the first step, parameters after the last."""

    loss: float
    norm: float
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]


def model(config: ModelConfig, dtype: torch.dtype = torch.float64) -> Transformer:
    """With weights of the size of a trained model's: at the usual small ones attention is flat and faults are small."""
    made = build(config, SEED, dtype=dtype)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            generator = torch.Generator().manual_seed(len(name) + parameter.numel())
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
            else:
                parameter.mul_(2.0)
    return made


def micro_batches(objective: Objective, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """The global batch; token ids are below the tiny model's vocabulary, and so below any other."""
    rng = random.Random(3)
    made = [_pairs(rng) if objective == "dpo" else _documents(rng) for _ in range(MICRO_BATCHES)]
    return [_wide(batch, dtype) for batch in made]


def loss_of(objective: Objective) -> Loss:
    return DPOLoss(beta=0.3, nll=0.2) if objective == "dpo" else TokenLoss()


def optimizer_of(kind: Literal["adamw", "muon"], module: nn.Module, placed: Placed | None = None) -> Optimizer:
    """Muon orthogonalises in float64 here."""
    return Optimizer(module, replace(OPTIM, kind=kind), STEPS, torch.float64, placed)


def single(objective: Objective, config: ModelConfig, kind: Literal["adamw", "muon"], dtype: torch.dtype) -> Answer:
    """The answer of one process."""
    policy = model(config, dtype)
    step = PlainStep({"policy": policy}, LocalOps(), CPU, None)
    optimizer = optimizer_of(kind, policy)
    first: tuple[float, float, dict[str, Tensor]] | None = None
    for number in range(STEPS):
        metrics = step.backward(Update("policy", micro_batches(objective, dtype), loss_of(objective)))
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), OPTIM.clip))
        first = first or (float(metrics["loss"].total), norm, gradients)
        optimizer.step(number)
    assert first is not None
    return Answer(*first, {name: p.detach() for name, p in policy.named_parameters()})


def _documents(rng: random.Random) -> Batch:
    rows = []
    for _ in range(ROWS):
        row, left = [], TOKENS - rng.randint(0, 9)
        while left > 1:
            length = min(left, rng.choice((3, 7, 12, 30)))
            ids = [rng.randrange(CONFIG.vocab_size) for _ in range(length + 1)]
            row.append(Sample(ids=ids, weights=[rng.choice((0.0, 0.5, 1.0, 2.0)) for _ in ids]))
            left -= length
        rows.append(row)
    return lay_out(rows, TOKENS)


def _pairs(rng: random.Random) -> Batch:
    rows, pair = [], 0
    for _ in range(ROWS):
        row = []
        for _ in range(rng.randint(1, 2)):
            prompt = [rng.randrange(CONFIG.vocab_size) for _ in range(rng.randint(2, 5))]
            for sign in (1.0, -1.0):
                answer = [rng.randrange(CONFIG.vocab_size) for _ in range(rng.randint(3, 6))]
                weights = [0.0] * len(prompt) + [1.0] * len(answer)
                extra = {"sign": sign, "pair": float(pair), "ref": rng.uniform(-30, -10)}
                row.append(Sample(ids=prompt + answer, weights=weights, per_segment=extra))
            pair += 1
        rows.append(row)
    return lay_out(rows, TOKENS, 4)


def _wide(batch: Batch, dtype: torch.dtype) -> Batch:
    extra = {name: x.to(dtype) for name, x in batch.extra.items()}
    return Batch(
        ids=batch.ids,
        labels=batch.labels,
        mask=batch.mask.to(dtype),
        positions=batch.positions,
        segments=batch.segments,
        extra=extra,
    )
