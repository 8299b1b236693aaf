"""Optimizers and schedules.

AdamW (Loshchilov & Hutter 2019) for everything, or Muon (Jordan et al. 2024) for the matrices of the
blocks with AdamW for embeddings, heads and norms. Muon replaces a matrix's momentum by its nearest
semi-orthogonal matrix, found by five Newton-Schulz steps, scaled by 0.2·√max(rows, columns) so that its
updates have AdamW's usual size and both share one learning rate (Moonlight, Liu et al. 2025, section 2.2).

Schedules: warmup, then a plateau and a linear decay (`wsd`, Hu et al. 2024), a half cosine, or constant.
All are functions of the step, so a resumed run needs no schedule state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sekkei.core.errors import ConfigError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024: fast, ends near 1 rather than at 1
NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """`warmup` and `decay` are shares of all steps; the rate falls towards `floor`, a share of `lr`."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.95
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: float = 0.02
    decay: float = 0.3
    floor: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError("lr", f"got {self.lr}, must be > 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas", f"got {list(self.betas)}, must be two numbers in [0, 1)")
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise ConfigError("warmup", f"warmup={self.warmup} and decay={self.decay} are shares: sum at most 1")
        if self.clip <= 0:
            raise ConfigError("clip", f"got {self.clip}, must be > 0 (the largest gradient norm)")


def lr_scale(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate at `step` (from 0) of `steps`, as a share of `config.lr`."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * done))
    decay = max(1, round(config.decay * steps))
    left = (steps - step) / decay
    return 1.0 if left >= 1 else config.floor + (1 - config.floor) * left


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for 2-D parameters. `dtype` is that of the Newton-Schulz steps."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for same in by_shape.values():  # one batched orthogonalisation per shape
                self._step_same(same, group)

    def _step_same(self, parameters: list[nn.Parameter], group: Mapping[str, Any]) -> None:
        momentum = group["momentum"]
        ahead = []
        for parameter in parameters:
            assert parameter.grad is not None
            buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            buffer.lerp_(parameter.grad, 1 - momentum)
            ahead.append(parameter.grad.lerp(buffer, momentum))  # Nesterov
        directions = orthogonalize(torch.stack(ahead), group["dtype"])
        size = 0.2 * math.sqrt(max(directions.shape[-2:]))
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"] * size)


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest semi-orthogonal matrices of [..., R, C], approximately: U Vᵀ of the singular value decomposition."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """One model's optimizer: one or two torch optimizers under one learning-rate schedule.

    Its state is named by parameter (`state/<name>/exp_avg`), so that a checkpoint can be read without
    knowing how parameters were grouped.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        self.names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        matrices = [p for p, name in self.names.items() if p.ndim == 2 and name.startswith("layers.")]
        if config.kind == "adamw":
            matrices_by_muon, rest = [], list(self.names)
        else:
            matrices_by_muon = matrices
            rest = [p for p in self.names if p.ndim != 2 or not self.names[p].startswith("layers.")]
        self.parts: list[torch.optim.Optimizer] = [self._adamw(rest)]
        if matrices_by_muon:
            self.parts.append(Muon(matrices_by_muon, config.lr, config.momentum, config.weight_decay))

    def _adamw(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        decayed = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        beta1, beta2 = self.config.betas
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.config.lr, betas=(beta1, beta2), eps=self.config.eps, fused=True
        )

    def step(self, step: int) -> float:
        """Take step number `step` and clear the gradients; returns the learning rate used."""
        lr = self.config.lr * lr_scale(self.config, step, self.steps)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
        self.zero_grad()
        return lr

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Its state as named tensors."""
        return {
            f"state/{self.names[parameter]}/{key}": value  # type: ignore[index]
            for part in self.parts
            for parameter, state in part.state.items()  # type: ignore[attr-defined]
            for key, value in state.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` gave."""
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    prefix = f"state/{self.names[parameter]}/"
                    found = {
                        key.removeprefix(prefix): value.to(parameter.device, copy=True)
                        for key, value in tensors.items()
                        if key.startswith(prefix)
                    }
                    if found:
                        part.state[parameter] = found
