"""Optimizers and schedules.

AdamW (Loshchilov & Hutter 2019) for everything, or Muon (Jordan et al. 2024) for the matrices of the
blocks with AdamW for embeddings, heads and norms. Muon replaces a matrix's momentum by its nearest
semi-orthogonal matrix, found by five Newton-Schulz steps, scaled by 0.2·√max(rows, columns) so that its
updates have AdamW's usual size and both share one learning rate (Moonlight, Liu et al. 2025, section 2.2).

Schedules: warmup, then a plateau and a linear decay (`wsd`, Hu et al. 2024), a half cosine, or constant.
All are functions of the step, so a resumed run needs no schedule state.

Experts' weights are stacks of matrices, each orthogonalised by itself. With a step, the routers of a mixture of experts
have their biases moved, too (model/moe.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sekkei.core.errors import ConfigError
from sekkei.model.moe import balance, forget_loads
from sekkei.parallel.collectives import all_gathered
from sekkei.train.trainee import Placed, Plain

Carry = Callable[[nn.Parameter, Tensor], Tensor]

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
        for key in ("lr", "eps", "clip"):  # clip: the largest gradient norm
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(key, f"got {getattr(self, key)}, must be > 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError("weight_decay", f"got {self.weight_decay}, must be >= 0 and finite")
        for key, most in (("momentum", 1 - 1e-9), ("floor", 1.0)):
            if not 0 <= getattr(self, key) <= most:
                raise ConfigError(key, f"got {getattr(self, key)}, must be in 0 … 1" + " (1 out)" * (most < 1))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas", f"got {list(self.betas)}, must be two numbers in [0, 1)")
        if not (min(self.warmup, self.decay) >= 0 and self.warmup + self.decay <= 1):
            raise ConfigError("warmup", f"warmup={self.warmup} and decay={self.decay} are shares: sum at most 1")


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
    """Orthogonalised momentum for matrices and stacks of them. `dtype` is that of the Newton-Schulz steps.

    Args:
        whole, part: from what a rank holds of a matrix (or of some of a stack) to the whole and back, where a layout
            cuts it.
        ranks: of a parameter: those that `whole` gives the same matrices. Each orthogonalises its share of them
            (as Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.3, share them).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
        whole: Carry | None = None,
        part: Carry | None = None,
        ranks: Callable[[nn.Parameter], dist.ProcessGroup | None] | None = None,
    ) -> None:
        self.whole, self.part = whole or _as_it_is, part or _as_it_is
        self.ranks = ranks or (lambda _: None)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, dist.ProcessGroup | None], list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    ahead = self.whole(parameter, self._ahead(parameter, group["momentum"]))
                    alike.setdefault((ahead.shape, self.ranks(parameter)), []).append((parameter, ahead))
            for (_, ranks), same in alike.items():  # one batched orthogonalisation per shape
                directions = shared(torch.stack([ahead for _, ahead in same]), group["dtype"], ranks)
                size = 0.2 * math.sqrt(max(directions.shape[-2:]))
                for (parameter, _), direction in zip(same, directions, strict=True):
                    own = self.part(parameter, direction.to(parameter.dtype))
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(own, alpha=-group["lr"] * size)

    def _ahead(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's look ahead, of what is here."""
        assert parameter.grad is not None
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def _as_it_is(parameter: nn.Parameter, x: Tensor) -> Tensor:
    return x


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


def shared(matrices: Tensor, dtype: torch.dtype, ranks: dist.ProcessGroup | None) -> Tensor:
    """`orthogonalize` of [N, ..., R, C] that all `ranks` hold: each does its share, all get the whole."""
    size = 1 if ranks is None else dist.get_world_size(ranks)
    if ranks is None or size == 1:
        return orthogonalize(matrices, dtype)
    flat = matrices.flatten(0, -3)
    each = -(-len(flat) // size)
    first = min(dist.get_rank(ranks) * each, len(flat))
    own = flat[first : first + each]
    out = flat.new_zeros(each, *flat.shape[1:], dtype=dtype)
    if len(own):
        out[: len(own)] = orthogonalize(own, dtype)
    return all_gathered(out, ranks)[: len(flat)].view(matrices.shape)


class Optimizer:
    """One model's optimizer: one or two torch optimizers under one learning-rate schedule.

    Args:
        dtype: of Muon's Newton-Schulz steps; bfloat16 is enough for them, where it is fast.
        placed: where the model's parts lie, and so what is updated; None: its parameters, all here.

    Its state is named by parameter (`state/<name>/exp_avg`), so that a checkpoint can be read without
    knowing how parameters were grouped.

    Attributes:
        imbalance: of experts in the last step, largest load over mean load; None: no router is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        steps: int,
        dtype: torch.dtype = torch.float32,
        placed: Placed | None = None,
    ) -> None:
        self.config, self.steps, self.model = config, steps, model
        self.imbalance: Tensor | None = None
        self.where = where = placed or Plain(model)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.dims = {name: parameter.ndim for name, parameter in trained.items()}
        self.names = {where.targets[name]: name for name in trained}
        by_muon = {name for name, dims in self.dims.items() if dims >= 2 and name.startswith("layers.")}
        matrices_by_muon = [p for p, name in self.names.items() if name in by_muon and config.kind == "muon"]
        rest = [p for p, name in self.names.items() if name not in by_muon or config.kind == "adamw"]
        self.parts: list[torch.optim.Optimizer] = [self._adamw(rest)]
        if matrices_by_muon:
            carry = [lambda p, x, f=f: f(self.names[p], x) for f in (where.matrices_of, where.part_of_matrices)]
            settings = (config.lr, config.momentum, config.weight_decay, dtype)
            self.parts.append(
                Muon(matrices_by_muon, *settings, carry[0], carry[1], lambda p: where.ranks_of(self.names[p]))
            )

    def _adamw(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        decayed = [p for p in parameters if self.dims[self.names[p]] >= 2]
        others = [p for p in parameters if self.dims[self.names[p]] < 2]
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
        self.imbalance = balance(self.model, self.where.summed)
        self.zero_grad()
        return lr

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        forget_loads(self.model)

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
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            _, name, kind = key.split("/")
            found.setdefault(name, {})[kind] = value
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    state = found.get(self.names[parameter])
                    if state:
                        part.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in state.items()}
