"""Schedules by hand, Muon against a singular value decomposition, state that survives a round trip."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sekkei.core.errors import ConfigError
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.prove.spawned import spawned
from sekkei.train import optim
from sekkei.train.optim import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, Muon, OptimConfig, Optimizer, lr_scale, orthogonalize

CONFIG = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=31, qk_norm=True
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(*shape, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("schedule", "step", "scale"),
    [
        # 20 steps: 2 of warmup, a plateau, 6 of decay to a floor of .1
        ("wsd", 0, 0.5),
        ("wsd", 1, 1.0),
        ("wsd", 2, 1.0),
        ("wsd", 13, 1.0),
        ("wsd", 14, 1.0),
        ("wsd", 15, 0.1 + 0.9 * 5 / 6),
        ("wsd", 17, 0.55),
        ("wsd", 19, 0.25),
        ("cosine", 0, 0.5),
        ("cosine", 2, 1.0),
        ("cosine", 8, 0.1 + 0.9 * 0.75),  # a third of the way: (1 + cos 60°) / 2
        ("cosine", 11, 0.55),
        ("cosine", 14, 0.1 + 0.9 * 0.25),
        ("constant", 0, 0.5),
        ("constant", 19, 1.0),
    ],
)
def test_schedules(schedule: str, step: int, scale: float) -> None:
    config = OptimConfig(schedule=schedule, warmup=0.1, decay=0.3, floor=0.1)  # type: ignore[arg-type]
    assert lr_scale(config, step, 20) == pytest.approx(scale, abs=1e-12)


def test_the_learning_rate_is_set_before_the_step() -> None:
    model = build(CONFIG, seed=0)
    optimizer = Optimizer(model, OptimConfig(lr=0.01, warmup=0.5, decay=0.5), steps=4)
    used = []
    for step in range(4):
        before = model.lm_head.weight.detach().clone()
        model.lm_head.weight.grad = torch.ones_like(before)
        used.append(optimizer.step(step))
        moved = (before - model.lm_head.weight.detach()).abs().mean()
        assert float(moved) == pytest.approx(used[-1], rel=1e-3)  # Adam moves by lr under a constant gradient
        assert model.lm_head.weight.grad is None
    assert used == pytest.approx([0.005, 0.01, 0.01, 0.005])


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (3, 16, 32)])
def test_orthogonalize_is_a_polynomial_of_the_singular_values(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / (x.norm(dim=(-2, -1), keepdim=True).squeeze(-1) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        s = a * s + b * s**3 + c * s**5
    found = orthogonalize(x, torch.float64)
    assert torch.allclose(found, u @ torch.diag_embed(s) @ vt, rtol=0, atol=1e-12)
    assert found.dtype == torch.float64
    assert 0.68 < float(s.min()) <= float(s.max()) < 1.14  # the band of Jordan et al. 2024
    rounded = orthogonalize(x, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert 1e-3 < float((rounded - found).norm() / found.norm()) < 0.05


def test_muon_by_hand() -> None:
    start, first, second = normal(8, 4, seed=1), normal(8, 4, seed=2), normal(8, 4, seed=3)
    weight = nn.Parameter(start.clone())
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5, dtype=torch.float64)
    for gradient in (first, second):
        weight.grad = gradient.clone()
        optimizer.step()
    size = 0.2 * math.sqrt(8)
    momentum = 0.1 * first
    expected = 0.95 * start - 0.1 * size * orthogonalize(0.1 * first + 0.9 * momentum, torch.float64)
    momentum = 0.9 * momentum + 0.1 * second
    expected = 0.95 * expected - 0.1 * size * orthogonalize(0.1 * second + 0.9 * momentum, torch.float64)
    assert torch.allclose(weight.detach(), expected, rtol=0, atol=1e-12)


def test_muons_update_has_adams_size() -> None:
    """Root mean square .2 of the learning rate, whatever the shape (Liu et al. 2025, section 2.2)."""
    for shape in ((16, 64), (64, 16), (32, 32)):
        weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        weight.grad = normal(*shape)
        Muon([weight], lr=1.0, dtype=torch.float64).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_matrices_of_one_shape_do_not_mix() -> None:
    together = [nn.Parameter(normal(6, 4, seed=i)) for i in range(3)]
    apart = [nn.Parameter(p.detach().clone()) for p in together]
    for i, parameter in enumerate((*together, *apart)):
        parameter.grad = normal(6, 4, seed=10 + i % 3)
    Muon(together, lr=0.1, dtype=torch.float64).step()
    for parameter in apart:
        Muon([parameter], lr=0.1, dtype=torch.float64).step()
    assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(together, apart, strict=True))


def _share(stack: int) -> tuple[list[Any], int]:
    """What a rank gets, and how many matrices it worked out."""
    seen: list[int] = []
    plain = optim.orthogonalize

    def counted(matrices: Tensor, dtype: torch.dtype) -> Tensor:
        seen.append(len(matrices))
        return plain(matrices, dtype)

    optim.orthogonalize = counted
    matrices = torch.stack([normal(2, 6, 4, seed=i) for i in range(stack)])
    return optim.shared(matrices, torch.float64, dist.group.WORLD).tolist(), sum(seen)


@pytest.mark.parametrize(("stack", "each"), [(2, [2, 2, 0]), (5, [4, 4, 2])])
def test_data_ranks_share_the_orthogonalisation(stack: int, each: list[int]) -> None:
    expected = orthogonalize(torch.stack([normal(2, 6, 4, seed=i) for i in range(stack)]), torch.float64)
    got = spawned(_share, 3, stack)
    assert [count for _, count in got] == each
    assert all(np.allclose(directions, expected, rtol=0, atol=1e-13) for directions, _ in got)


def grouped(optimizer: Optimizer) -> dict[str, tuple[str, float]]:
    """Parameter -> (class of its optimizer, weight decay)."""
    return {
        optimizer.names[parameter]: (type(part).__name__, group["weight_decay"])
        for part in optimizer.parts
        for group in part.param_groups
        for parameter in group["params"]
    }


def test_parameters_are_grouped_by_name() -> None:
    model = build(CONFIG, seed=0, heads=("lm", "value"))
    every = {name for name, _ in model.named_parameters()}
    matrices = {name for name in every if name.startswith("layers.") and name.endswith("_proj.weight")}
    outside = {"embed.weight", "lm_head.weight", "value_head.weight"}
    assert len(matrices) == 14
    muon = grouped(Optimizer(model, OptimConfig(kind="muon", weight_decay=0.1), steps=10))
    adamw = grouped(Optimizer(model, OptimConfig(weight_decay=0.1), steps=10))
    assert set(muon) == set(adamw) == every
    assert {name for name, (kind, _) in muon.items() if kind == "Muon"} == matrices
    assert {kind for kind, _ in adamw.values()} == {"AdamW"}
    for groups in (muon, adamw):
        assert {name for name, (_, decay) in groups.items() if decay == 0.1} == matrices | outside
        assert {decay for _, decay in groups.values()} == {0.0, 0.1}


def test_frozen_parameters_are_left_alone() -> None:
    model = build(CONFIG, seed=0)
    model.embed.weight.requires_grad_(False)
    assert "embed.weight" not in grouped(Optimizer(model, OptimConfig(), steps=1))


def take(model: Transformer, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = normal(*parameter.shape, seed=1000 * step + i).float()
        optimizer.step(step)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_survives_a_round_trip(kind: str) -> None:
    config = OptimConfig(kind=kind, weight_decay=0.1)  # type: ignore[arg-type]
    model = build(CONFIG, seed=0)
    optimizer = Optimizer(model, config, steps=6)
    take(model, optimizer, range(3))
    state = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    assert "state/embed.weight/exp_avg" in state
    assert ("state/layers.0.mlp.up_proj.weight/momentum" in state) == (kind == "muon")
    copies = []
    for given in (state, {}):
        copy = build(CONFIG, seed=0)
        copy.load_state_dict(model.state_dict())
        restored = Optimizer(copy, config, steps=6)
        restored.load_tensors(given)
        take(copy, restored, range(3, 6))
        copies.append(copy)
    take(model, optimizer, range(3, 6))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, copies[0].get_parameter(name))
        assert not torch.equal(parameter, copies[1].get_parameter(name)), f"{name}: its state does not matter"


def test_loaded_state_is_a_copy() -> None:
    model = build(CONFIG, seed=0)
    optimizer = Optimizer(model, OptimConfig(), steps=6)
    take(model, optimizer, range(1))
    given = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    kept = {name: tensor.clone() for name, tensor in given.items()}
    optimizer.load_tensors(given)
    take(model, optimizer, range(1, 3))
    assert all(torch.equal(given[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("lr", {"lr": 0.0}),
        ("betas", {"betas": (0.9,)}),
        ("betas", {"betas": (0.9, 1.0)}),
        ("warmup", {"warmup": 0.8, "decay": 0.3}),
        ("warmup", {"warmup": -0.1}),
        ("clip", {"clip": 0.0}),
        ("lr", {"lr": math.nan}),
        ("warmup", {"warmup": math.nan}),
        ("weight_decay", {"weight_decay": -0.1}),
        ("momentum", {"momentum": 1.0}),
        ("floor", {"floor": 1.5}),
        ("eps", {"eps": 0.0}),
    ],
)
def test_bad_settings(key: str, values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        OptimConfig(**values)  # type: ignore[arg-type]
