"""A mixture of experts: each token goes through a few of many MLPs, which a router chooses; none is dropped.

    x ─ router ─ scores s [E] ─ the k largest of s + bias ──> experts i1 … ik
    y = Σ g_i expert_i(x) + shared(x)         g_i = scale · s_i / Σ s        (the bias chooses, it does not weigh)

Tokens are copied k times, sorted by expert, computed expert by expert in one piece, and sorted back: exact, whatever
the loads. `Spread`, injected, is where experts run: here, or on the ranks that hold them (parallel/experts.py).

Loads are balanced without an auxiliary loss (DeepSeek-V3, section 2.1.2): after each optimizer step the bias of an
expert that got more than its share of tokens falls by `bias_rate`, that of one that got less rises,

    bias_i += bias_rate · sign(mean load - load_i)          loads: whole numbers, summed over all data ranks

Loads are counted in the *backward* pass, so that scoring, generation and recomputation do not count; padding does not
count either. So the bias is the same under every layout. It is a parameter that no gradient reaches: it is saved,
gathered and hashed as weights are, and `balance` alone changes it; where the router is frozen it stays.

Sources: Dai et al. 2024 (DeepSeekMoE: fine experts, shared experts), DeepSeek-AI 2024 (DeepSeek-V3), Qwen3-MoE (softmax
scores). Not handled: groups of experts, the sequence-wise loss that DeepSeek-V3 adds at a weight of 1e-4, capacity
limits, LoRA on routed experts; on a GPU experts run one after the other, and their loads are waited for.

Shapes: `B` batch, `T` tokens of a row, `n` = B T, `D` model width, `E` experts, `k` active ones, `F` inner width of
one, `R` = n k rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sekkei.model.config import ModelConfig, MoEConfig
from sekkei.model.layers import MLP, compute_dtype

Spread = Callable[["Experts", Tensor, Tensor], Tensor]
"""(experts, rows sorted by expert [R, D], rows of each expert [E]) -> their results [R, D]."""

NO_WEIGHT = 1e-20  # below any sum of active scores: keeps a division by zero out


class Router(nn.Module):
    """Chooses and weighs experts; scores in float32 at least, under autocast too.

    Attributes:
        load: tokens that each expert got since the last `balance`, [E] int64; None: none yet.
    """

    def __init__(self, width: int, moe: MoEConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(moe.experts, width))
        self.bias = nn.Parameter(torch.zeros(moe.experts), requires_grad=False)
        self.moe = moe
        self.load: Tensor | None = None

    def forward(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [n, D], real [n] bool (None: all) -> experts [n, k] int64 and their weights [n, k]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = nn.functional.linear(x.to(wide), self.weight.to(wide))
        scores = logits.sigmoid() if self.moe.score == "sigmoid" else logits.softmax(-1)
        chosen = (scores.detach() + self.bias).topk(self.moe.active).indices
        weights = scores.gather(-1, chosen)
        if weights.requires_grad:
            weights = _Counted.apply(weights, self, loads(chosen, self.moe.experts, real))
        if self.moe.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + NO_WEIGHT)
        return chosen, weights * self.moe.scale

    def count(self, load: Tensor) -> None:
        self.load = load if self.load is None else self.load + load


class _Counted(torch.autograd.Function):
    """Identity; its backward pass, which runs once per forward pass that is learned from, counts loads."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, router: Router, load: Tensor) -> Tensor:
        ctx.router, ctx.load = router, load
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.router.count(ctx.load)
        return grad, None, None


class Experts(nn.Module):
    """SwiGLUs side by side: gate and up [E, F, D], down [E, D, F]."""

    def __init__(self, width: int, moe: MoEConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(moe.experts, moe.intermediate_size, width))
        self.up_proj = nn.Parameter(torch.empty(moe.experts, moe.intermediate_size, width))
        self.down_proj = nn.Parameter(torch.empty(moe.experts, width, moe.intermediate_size))

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """rows [R, D], sorted by expert; counts: how many are each one's -> [R, D]."""
        results = []
        weights = zip(self.gate_proj.unbind(), self.up_proj.unbind(), self.down_proj.unbind(), strict=True)
        for x, (gate, up, down) in zip(rows.split(counts), weights, strict=True):
            inner = nn.functional.silu(nn.functional.linear(x, gate)) * nn.functional.linear(x, up)
            results.append(nn.functional.linear(inner, down))
        return torch.cat(results)


class MoE(nn.Module):
    """A block's experts, in the place of its MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        self.moe = config.moe
        self.router = Router(config.hidden_size, config.moe)
        self.experts = Experts(config.hidden_size, config.moe)
        inner = config.moe.shared * config.moe.intermediate_size  # one MLP is as many side by side
        self.shared = MLP(config.hidden_size, inner) if inner else None
        self.spread: Spread = run_here

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """x [B, T, D], real [B, T] bool: tokens that are no padding (None: all) -> [B, T, D]."""
        flat, k = x.reshape(-1, x.shape[-1]), self.moe.active
        chosen, weights = self.router(flat, None if real is None else real.reshape(-1))
        order = chosen.flatten().argsort(stable=True)
        copies = flat.to(compute_dtype(flat))[:, None].expand(-1, k, -1).reshape(-1, flat.shape[-1])
        sorted_rows = self.spread(self.experts, copies.index_select(0, order), loads(chosen, self.moe.experts))
        results = sorted_rows.index_select(0, inverse(order)).view(*chosen.shape, -1)
        y = (results * weights[..., None]).sum(1).to(results.dtype).view(x.shape)
        return y if self.shared is None else y + self.shared(x)


def run_here(experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
    """All experts are on this device."""
    return experts(rows, sizes(counts, len(rows)))


def loads(chosen: Tensor, experts: int, real: Tensor | None = None) -> Tensor:
    """How many of the tokens [n, k] go to each expert, [E] int64."""
    one = torch.ones_like(chosen) if real is None else real[:, None].expand_as(chosen).long()
    return chosen.new_zeros(experts).scatter_add_(0, chosen.flatten(), one.flatten())


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order` [R]."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def sizes(counts: Tensor, total: int) -> list[int]:
    """Counts as numbers; in a dry run, whose tensors have no values, `total` in even parts."""
    if isinstance(counts, FakeTensor):
        parts = counts.shape[0]
        return [total // parts + (i < total % parts) for i in range(parts)]
    return counts.tolist()


def routers(model: nn.Module) -> dict[str, Router]:
    """By name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Router)}


def biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """The balancing biases by parameter name: weights that no optimizer updates."""
    return {f"{name}.bias": router.bias for name, router in routers(model).items()}


@torch.no_grad()
def balance(model: nn.Module, total: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Move every trained router's bias by what was counted since the last call, and begin to count anew.

    Args:
        total: the sum of [L, E] loads over all ranks with other tokens; all of them call this together.
    Returns:
        the largest load over the mean one, averaged over layers; None: no router is trained.
    """
    trained = [router for router in routers(model).values() if router.weight.requires_grad]
    if not trained:
        return None
    empty = torch.zeros(trained[0].moe.experts, dtype=torch.int64, device=trained[0].bias.device)
    counted = total(torch.stack([empty if router.load is None else router.load for router in trained]))
    for router, load in zip(trained, counted, strict=True):
        direction = torch.sign(load.sum() - len(load) * load)
        router.bias.add_(direction.to(router.bias.dtype), alpha=router.moe.bias_rate)
        router.load = None
    return (counted.amax(1) * counted.shape[1] / counted.sum(1).clamp(min=1)).mean()


def forget_loads(model: nn.Module) -> None:
    """After a step that was not taken."""
    for router in routers(model).values():
        router.load = None
