"""What every layout must reproduce: a tiny model, a global batch with uneven masks, and its gradient on one process.

Nearly everything is float64: right layouts agree to about 1e-15 there and a planted fault shows an error of 1e-3 to 1,
so the limit of 1e-10 needs no tuning. Loss curves would prove nothing: Adam hides a gradient that is twice too large.

The batch is one that the objective is asked about (objectives.py); micro-batch i of it goes to data rank i modulo dp.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sekkei.data.batch import Batch
from sekkei.model.config import ModelConfig, MoEConfig
from sekkei.model.init import build
from sekkei.model.lora import LoRAConfig, add_lora, lora_layers
from sekkei.model.transformer import Head, Transformer
from sekkei.parallel.ops import LocalOps
from sekkei.prove.objectives import OBJECTIVES, VOCABULARY, Objective
from sekkei.train.objective import Update
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
    vocab_size=VOCABULARY,
    qk_norm=True,
)
MICRO_BATCHES, STEPS = 4, 3
DEEP = replace(CONFIG, num_layers=4)  # for pipelines: two stages on each of two ranks
EXPERTS = MoEConfig(experts=4, active=2, shared=1, intermediate_size=24, first_dense=1, bias_rate=0.05)
ADAPTER = LoRAConfig(rank=4, alpha=8.0)
SEED = 7
CPU = torch.device("cpu")
OPTIM = OptimConfig(kind="adamw", lr=1e-2, schedule="constant", warmup=0.0, weight_decay=0.1, eps=1e-8, clip=0.5)


@dataclass(frozen=True)
class Answer:
    """What one process found: loss, gradients and their norm of the first step, parameters after the last."""

    loss: float
    norm: float
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]

    def save(self, file: Path) -> None:
        """For the other ranks."""
        tensors = {"/loss": torch.tensor(self.loss, dtype=torch.float64)}
        tensors["/norm"] = torch.tensor(self.norm, dtype=torch.float64)
        tensors |= {f"gradient/{name}": x for name, x in self.gradients.items()}
        tensors |= {f"parameter/{name}": x for name, x in self.parameters.items()}
        save_file(tensors, file)

    @classmethod
    def load(cls, file: Path) -> Answer:
        tensors = load_file(file)
        kinds: dict[str, dict[str, Tensor]] = {"": {}, "gradient": {}, "parameter": {}}
        for key, x in tensors.items():
            kind, _, name = key.partition("/")
            kinds[kind][name] = x
        return cls(float(kinds[""]["loss"]), float(kinds[""]["norm"]), kinds["gradient"], kinds["parameter"])


def model(
    config: ModelConfig, dtype: torch.dtype = torch.float64, heads: tuple[Head, ...] = ("lm",), lora: bool = False
) -> Transformer:
    """With weights of the size of a trained model's: at the usual small ones attention is flat and faults are small.

    Args:
        lora: frozen but for an adapter, which has been trained, too: at the usual zeros half of it has no gradient.
    """
    made = build(config, SEED, heads, dtype)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            generator = torch.Generator().manual_seed(len(name) + parameter.numel())
            if parameter.ndim == 1 or parameter.shape[0] == 1:  # norms; heads of one number, which start at 0
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
            else:
                parameter.mul_(2.0)
        for name, layer in lora_layers(add_lora(made, ADAPTER, SEED) if lora else made).items():
            generator = torch.Generator().manual_seed(len(name) + layer.lora_b.numel())
            layer.lora_b.copy_(0.2 * torch.randn(layer.lora_b.shape, generator=generator, dtype=dtype))
    return made


def micro_batches(objective: Objective, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """The global batch; token ids are below the tiny model's vocabulary, and so below any other."""
    rng = random.Random(3)
    return [_wide(OBJECTIVES[objective].batch(rng), dtype) for _ in range(MICRO_BATCHES)]


def optimizer_of(kind: Literal["adamw", "muon"], module: nn.Module, placed: Placed | None = None) -> Optimizer:
    """Muon orthogonalises in float64 here."""
    return Optimizer(module, replace(OPTIM, kind=kind), STEPS, torch.float64, placed)


def single(
    objective: Objective, config: ModelConfig, kind: Literal["adamw", "muon"], dtype: torch.dtype, lora: bool = False
) -> Answer:
    """The answer of one process."""
    asked = OBJECTIVES[objective]
    policy = model(config, dtype, asked.heads, lora)
    step = PlainStep({"policy": policy}, LocalOps(), CPU, None)
    optimizer = optimizer_of(kind, policy)
    first: tuple[float, float, dict[str, Tensor]] | None = None
    for number in range(STEPS):
        metrics = step.backward(Update("policy", micro_batches(objective, dtype), asked.loss))
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), OPTIM.clip))
        first = first or (float(metrics["loss"].total), norm, gradients)
        optimizer.step(number)
    assert first is not None
    return Answer(*first, {name: p.detach() for name, p in policy.named_parameters()})


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
