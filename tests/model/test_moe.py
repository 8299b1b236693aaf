"""Experts against a loop over tokens and against transformers' blocks; their loads, the bias, decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from sekkei.core.errors import ConfigError, UserError
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig, MoEConfig
from sekkei.model.hf import config_to_hf
from sekkei.model.init import build
from sekkei.model.lora import LoRAConfig, add_lora, merge_lora
from sekkei.model.moe import MoE, balance, biases, routers
from sekkei.model.transformer import RUN_BLOCK, Transformer
from sekkei.train.optim import OptimConfig, Optimizer, orthogonalize

MOE = MoEConfig(experts=6, active=2, shared=1, intermediate_size=20, first_dense=1, scale=1.5)
CONFIG = ModelConfig(
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=40,
    vocab_size=60,
    head_dim=8,
    qk_norm=True,
    moe=MOE,
)


def one_layer(moe: MoEConfig, dtype: torch.dtype, seed: int = 0) -> MoE:
    """With a bias that changes choices."""
    layer = build(replace(CONFIG, num_layers=1, moe=replace(moe, first_dense=0)), seed, dtype=dtype).layers["0"].mlp
    assert isinstance(layer, MoE)
    with torch.no_grad():
        layer.router.bias.copy_(0.3 * random(moe.experts, dtype=dtype))
    return layer


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(layer: MoE, x: Tensor) -> Tensor:
    """Token by token, expert by expert."""
    moe, experts, rows = layer.moe, layer.experts, []
    for token in x.reshape(-1, x.shape[-1]):
        logits = layer.router.weight @ token
        scores = logits.sigmoid() if moe.score == "sigmoid" else logits.softmax(-1)
        ranked = sorted(range(moe.experts), key=lambda i: -float(scores[i].detach() + layer.router.bias[i]))
        chosen = ranked[: moe.active]
        total = sum(scores[i] for i in chosen) if moe.normalize else 1.0
        y = torch.zeros_like(token)
        for i in chosen:
            gate, up = experts.gate_proj[i] @ token, experts.up_proj[i] @ token
            y = y + moe.scale * scores[i] / total * (experts.down_proj[i] @ (gate * gate.sigmoid() * up))
        if layer.shared is not None:
            gate, up = layer.shared.gate_proj.weight @ token, layer.shared.up_proj.weight @ token
            y = y + layer.shared.down_proj.weight @ (gate * gate.sigmoid() * up)
        rows.append(y)
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"shared": 0},
        {"shared": 2, "active": 3},
        {"score": "softmax"},
        {"normalize": False},
        {"active": 1, "normalize": False},
    ],
)
def test_it_computes_what_a_loop_over_tokens_does(change: dict[str, object]) -> None:
    layer, x = one_layer(replace(MOE, **change), torch.float64), random(3, 7, 24).requires_grad_()  # type: ignore[arg-type]
    weight = random(3, 7, 24, seed=2)
    trained = [p for p in (x, *layer.parameters()) if p.requires_grad]
    found, wanted = layer(x), by_hand(layer, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    mine = torch.autograd.grad((found * weight).sum(), trained)
    theirs = torch.autograd.grad((wanted * weight).sum(), trained)
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-13


def test_experts_that_no_token_chose_have_a_gradient_of_zero() -> None:
    layer = one_layer(replace(MOE, shared=0), torch.float64)
    layer(random(1, 1, 24)).sum().backward()
    touched = [bool(part.any()) for part in layer.experts.gate_proj.grad]
    assert sum(touched) == MOE.active


def copied(theirs: nn.Module, ours: MoE) -> None:
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat((ours.experts.gate_proj, ours.experts.up_proj), dim=1))
        theirs.experts.down_proj.copy_(ours.experts.down_proj)


def test_same_weights_same_outputs_as_deepseek_v3_of_transformers() -> None:
    ours = one_layer(replace(MOE, shared=2, scale=2.5), torch.float32)
    config = DeepseekV3Config(
        hidden_size=24,
        moe_intermediate_size=20,
        n_routed_experts=6,
        num_local_experts=6,
        num_experts_per_tok=2,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    theirs = DeepseekV3MoE(config)
    copied(theirs, ours)
    with torch.no_grad():
        theirs.gate.e_score_correction_bias.copy_(ours.router.bias)
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(theirs.shared_experts, name).weight.copy_(getattr(ours.shared, name).weight)
        x = random(4, 9, 24, dtype=torch.float32)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
        ours.router.bias.zero_()
        assert float((ours(x) - theirs(x)).abs().max()) > 1e-3  # so the bias matters here


@pytest.mark.parametrize("normalize", [True, False])
def test_same_weights_same_outputs_as_qwen3_moe_of_transformers(normalize: bool) -> None:
    ours = one_layer(replace(MOE, shared=0, scale=1.0, score="softmax", normalize=normalize), torch.float32)
    config = Qwen3MoeConfig(
        hidden_size=24, moe_intermediate_size=20, num_experts=6, num_experts_per_tok=2, norm_topk_prob=normalize
    )
    theirs = Qwen3MoeSparseMoeBlock(config)
    copied(theirs, ours)
    with torch.no_grad():
        ours.router.bias.zero_()
        x = random(4, 9, 24, dtype=torch.float32)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def trained_once(model: Transformer, segments: Tensor) -> dict[str, Tensor]:
    """Loads after a forward and backward pass."""
    ids = torch.arange(segments.numel()).view(segments.shape) % CONFIG.vocab_size
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    out = model(ids, positions, DenseAttend(segments), ids, ("logprobs",))
    out.logprobs.sum().backward()
    return {name: router.load for name, router in routers(model).items() if router.load is not None}


@pytest.mark.parametrize("recompute", sorted(RUN_BLOCK))
def test_loads_are_counted_once_per_backward_pass_and_without_padding(recompute: str) -> None:
    segments = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [0, 0, 0, 0, 0, 0, 0]])
    model = build(CONFIG, 0)
    model.run_block = RUN_BLOCK[recompute]
    once = trained_once(model, segments)
    assert set(once) == {"layers.1.mlp.router", "layers.2.mlp.router"}  # the first layer is dense
    assert [int(load.sum()) for load in once.values()] == [12 * MOE.active] * 2
    twice = trained_once(model, segments)
    assert all(torch.equal(twice[name], 2 * load) for name, load in once.items())
    with torch.no_grad():
        model.hidden(segments.clamp(min=0), segments.clamp(min=0), DenseAttend(segments))
    assert all(torch.equal(routers(model)[name].load, load) for name, load in twice.items())


def test_the_bias_moves_by_the_sign_of_the_load_s_error() -> None:
    model = build(CONFIG, 0)
    first, second = routers(model).values()
    first.count(torch.tensor([5, 1, 2, 2, 2, 0]))
    second.count(torch.tensor([1, 1, 1, 1, 1, 1]))
    with torch.no_grad():
        second.bias.fill_(0.25)
    assert float(balance(model, lambda x: 2 * x)) == pytest.approx((2.5 + 1) / 2)
    assert first.bias.tolist() == pytest.approx([-0.001, 0.001, 0, 0, 0, 0.001])
    assert second.bias.tolist() == [0.25] * 6
    assert first.load is None
    assert balance(build(replace(CONFIG, moe=None), 0), lambda x: x) is None


def test_a_frozen_router_keeps_its_bias() -> None:
    model = build(CONFIG, 0)
    add_lora(model, LoRAConfig(rank=2), 0)
    segments = torch.zeros(2, 8, dtype=torch.int64)
    trained_once(model, segments)
    assert balance(model, lambda x: x) is None
    merge_lora(model)
    assert all(p.requires_grad for name, p in model.named_parameters() if name not in biases(model))
    assert not any(bias.requires_grad or bias.any() for bias in biases(model).values())


def imbalance(bias_rate: float, steps: int) -> list[float]:
    """Largest over mean load, step by step, of a tiny training whose routers begin lopsided."""
    moe = MoEConfig(experts=8, active=2, shared=1, intermediate_size=16, bias_rate=bias_rate)
    model = build(replace(CONFIG, moe=moe, num_layers=2), 0)
    with torch.no_grad():
        for bias in biases(model).values():
            bias[:2] = 0.2
    optimizer = Optimizer(model, OptimConfig(lr=3e-3, schedule="constant", warmup=0.0), steps)
    found = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 60, (8, 1), generator=generator) + torch.arange(33)
        x, labels = ids[:, :-1] % 60, ids[:, 1:] % 60
        positions = torch.arange(32).expand_as(x)
        out = model(x, positions, DenseAttend(None), labels, ("logprobs",))
        (-out.logprobs.mean()).backward()
        optimizer.step(step)
        assert optimizer.imbalance is not None
        found.append(float(optimizer.imbalance))
    return found


def test_the_bias_balances_loads_and_without_it_they_stay_lopsided() -> None:
    balanced, left = imbalance(0.01, 40), imbalance(0.0, 40)
    assert balanced[0] == left[0] > 1.9
    assert sum(balanced[-10:]) / 10 < 1.4
    assert sum(left[-10:]) / 10 > 1.8


def test_the_engine_decodes_what_naive_decoding_does() -> None:
    model = build(CONFIG, 3)
    with torch.no_grad():
        for bias in biases(model).values():
            bias.copy_(0.2 * random(6, dtype=torch.float32))
    prompts = [(1, 2, 3), (7,), tuple(range(5, 45)), (59, 3, 59, 3, 59)]
    requests = [Request(prompt_ids=prompt, sampling=Sampling(max_tokens=20, temperature=0.0)) for prompt in prompts]
    engine = Engine(model, blocks=128, block_size=8)
    for prompt, completions in zip(prompts, engine.generate(requests), strict=True):
        ids = list(prompt)
        for found in completions[0].token_ids:
            row = torch.tensor([ids])
            with torch.no_grad():
                scores = model.logits(model.hidden(row, torch.arange(len(ids))[None], DenseAttend(None)))[0, -1]
            assert int(scores.argmax()) == found
            ids.append(found)
        assert len(ids) == len(prompt) + 20


def test_muon_orthogonalises_each_expert_s_matrix() -> None:
    model = build(CONFIG, 0, dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained_once(model, torch.zeros(2, 8, dtype=torch.int64))
    config = OptimConfig(kind="muon", lr=0.1, schedule="constant", warmup=0.0, momentum=0.0)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    Optimizer(model, config, 1, torch.float64).step(0)
    for name in ("gate_proj", "up_proj", "down_proj"):
        key = f"layers.1.mlp.experts.{name}"
        for i in range(MOE.experts):
            moved = before[key][i] - model.get_parameter(key)[i]
            wanted = 0.1 * 0.2 * 24**0.5 * orthogonalize(gradients[key][i], torch.float64)
            torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"experts": 1}, "experts: got 1, must be >= 2"),
        ({"active": 0}, "active: got 0, must be >= 1"),
        ({"active": 6}, "active: active=6 must be less than experts=6"),
        ({"active": 1}, "normalize: of one active expert the weight is always 1"),
        ({"bias_rate": -0.1}, "bias_rate: got -0.1, must be >= 0"),
        ({"scale": 0.0}, "scale: got 0.0, must be > 0"),
    ],
)
def test_settings_that_contradict_are_refused(keys: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        replace(MOE, **keys)  # type: ignore[arg-type]


def test_what_experts_do_not_fit_into_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"moe\.first_dense: 3 leaves none of num_layers=3 with experts"):
        replace(CONFIG, moe=replace(MOE, first_dense=3))
    with pytest.raises(ConfigError, match="moe: models with experts are not written"):
        config_to_hf(CONFIG)


def test_gguf_is_refused(tmp_path: object) -> None:
    pytest.importorskip("gguf")
    from pathlib import Path

    from sekkei.model.export_gguf import save_gguf

    with pytest.raises(UserError, match="models with experts are not written as GGUF"):
        save_gguf(Path(str(tmp_path)) / "x.gguf", CONFIG, {}, name="x")
