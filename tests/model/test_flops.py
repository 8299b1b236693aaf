"""Counts against built models and against what autograd really saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.attention import DenseAttend, explicit_attention
from sekkei.model.choices import CHUNK_ELEMENTS
from sekkei.model.config import ModelConfig, MoEConfig
from sekkei.model.flops import count_parameters, flops_per_token, kv_bytes_per_token, training_bytes
from sekkei.model.init import build

GROUPED = ModelConfig(
    hidden_size=96,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=320,
    vocab_size=1000,
    qk_norm=True,
)
WIDE_HEADS = ModelConfig(
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    intermediate_size=96,
    vocab_size=300,
    head_dim=24,
    tied_embeddings=True,
)

EXPERTS = replace(GROUPED, moe=MoEConfig(experts=8, active=2, shared=1, intermediate_size=48, first_dense=1))
QWEN3_30B = ModelConfig(  # the published config.json of Qwen3-30B-A3B: "30.5B in total and 3.3B activated"
    hidden_size=2048,
    num_layers=48,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    intermediate_size=6144,
    vocab_size=151_936,
    qk_norm=True,
    moe=MoEConfig(experts=128, active=8, intermediate_size=768, score="softmax"),
)


@pytest.mark.parametrize("config", [GROUPED, WIDE_HEADS, EXPERTS])
def test_parameters_are_those_of_the_model(config: ModelConfig) -> None:
    own: dict[str, int] = {"embedding": 0, "attention": 0, "mlp": 0, "norms": 0, "lm_head": 0}
    for name, parameter in build(config, 0).named_parameters():
        part = "norms" if "norm" in name else {"embed": "embedding"}.get(name.split(".")[0])
        part = part or next(part for part in ("attention", "mlp", "lm_head") if part in name)
        own[part] += parameter.numel()
    assert count_parameters(config) == own


def test_a_published_mixture_of_experts() -> None:
    total = sum(count_parameters(QWEN3_30B).values())
    assert total == pytest.approx(30.5e9, rel=2e-3)
    embedding = QWEN3_30B.vocab_size * QWEN3_30B.hidden_size
    assert flops_per_token(QWEN3_30B, 0) / 6 + embedding == pytest.approx(3.3e9, rel=2e-2)


@pytest.mark.parametrize("config", [GROUPED, WIDE_HEADS, EXPERTS, replace(EXPERTS, moe=replace(EXPERTS.moe, shared=0))])
def test_flops_are_those_of_the_matmuls(config: ModelConfig) -> None:
    """A counter that watches the matmuls of forward and backward sees the same number, to the last FLOP."""
    model = build(config, 0)
    ids = torch.zeros(2, 32, dtype=torch.int64)
    bias = torch.zeros(1, 1, 32, 32)
    with FlopCounterMode(display=False) as counter:
        h = model.hidden(ids, ids, lambda q, k, v, layer: explicit_attention(q, k, v, bias))
        model.logits(h).sum().backward()
    assert counter.get_total_flops() == flops_per_token(config, 32) * ids.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_bytes_are_those_of_a_cache(dtype: torch.dtype) -> None:
    engine = Engine(build(GROUPED, 0, dtype=dtype), blocks=32, block_size=32)
    engine.generate([Request(prompt_ids=(1, 2, 3), sampling=Sampling(max_tokens=2))])
    store = engine.runner.store
    assert store.both is not None
    held = store.both.nbytes
    assert held == 32 * 32 * kv_bytes_per_token(GROUPED, dtype)


@pytest.mark.parametrize("config", [GROUPED, WIDE_HEADS, replace(GROUPED, qk_norm=False, num_kv_heads=1), EXPERTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [64, 320])  # the explicit and the fused path in bf16
def test_activations_are_what_autograd_saves(config: ModelConfig, dtype: torch.dtype, tokens: int) -> None:
    model = build(config, 0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(2, tokens, dtype=torch.int64)
    positions = torch.arange(tokens).expand(2, -1)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        out = model(ids, positions, DenseAttend(torch.zeros_like(ids)), ids, ("logprobs",))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert out.logprobs is not None
    sizes = training_bytes(config, 2, tokens, dtype)
    kept_logits = 2 * tokens * config.vocab_size * dtype.itemsize
    assert sizes["logits"] > kept_logits
    assert sizes["activations"] + sizes["casts"] + kept_logits == pytest.approx(measured, rel=0.03)


def test_bytes_of_weights_and_of_large_logits() -> None:
    sizes = training_bytes(GROUPED, 4, 128, torch.bfloat16)
    parameters = sum(count_parameters(GROUPED).values())
    assert (sizes["weights"], sizes["gradients"], sizes["moments"]) == (4 * parameters, 4 * parameters, 8 * parameters)
    many = training_bytes(replace(GROUPED, vocab_size=128_000), 8, 1024, torch.bfloat16)
    assert many["logits"] == 12 * CHUNK_ELEMENTS  # not kept: recomputed chunk by chunk
