"""Bytes of experts: the planner's are those that ranks hold; volumes by hand; the search spreads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sekkei.model.config import ModelConfig, MoEConfig
from sekkei.model.flops import count_parameters, training_bytes
from sekkei.model.hf import parameter_shapes
from sekkei.model.init import build
from sekkei.parallel.apply import Sharded
from sekkei.parallel.cost import Cluster, data_bytes, exchange_bytes, find_gpu, step_seconds
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job, parameter_table, state_bytes
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.peak import rank_bytes
from sekkei.parallel.pipeline import Pipelined
from sekkei.parallel.saved import activation_bytes
from sekkei.parallel.search import parse_layout, search
from sekkei.prove.trace import trace

# sizes that 3 ranks do not divide
ODD = ModelConfig(
    hidden_size=10,
    num_layers=4,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=7,
    vocab_size=11,
    qk_norm=True,
    moe=MoEConfig(experts=4, active=2, shared=1, intermediate_size=5, first_dense=1),
)
LARGE = ModelConfig(  # Qwen3-30B-A3B
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


def test_every_parameter_is_in_the_table() -> None:
    assert ODD.moe is not None
    for model in (ODD, replace(ODD, moe=replace(ODD.moe, first_dense=0, shared=0))):
        by_name: dict[str, tuple[int, ...]] = {}
        for name, shape, layers in parameter_table(model):
            for layer in layers:
                by_name[name.replace(f"layers.{layers[0]}.", f"layers.{layer}.")] = shape
        assert by_name == {name: tuple(shape) for name, shape in parameter_shapes(model).items()}


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=2),
        Layout(dp=3, zero=2),
        Layout(dp=3, zero=3),
        Layout(dp=2, ep=2),
        Layout(dp=4, ep=4, zero=2),
        Layout(dp=6, ep=2),
        Layout(dp=6, ep=2, zero=1),
        Layout(dp=3, cp=2, ep=2, zero=2),
        Layout(dp=6, ep=2, zero=3),
        Layout(dp=8, replicate=2, ep=2, zero=3),
        Layout(pp=2, dp=6, ep=2, zero=2),
        Layout(pp=2, dp=4, ep=4, schedule="interleaved"),
        Layout(dp=6, ep=2, weights="bf16"),
        Layout(dp=6, ep=2, zero=1, weights="bf16"),
        Layout(dp=6, ep=2, zero=2, weights="bf16", reduce="bf16"),
    ],
    ids=lambda layout: layout.name,
)
@pytest.mark.parametrize("last", [False, True])
def test_a_rank_holds_what_is_predicted(layout: Layout, last: bool) -> None:
    """One rank alone, among others that are pretended."""
    rank = layout.world - 1 if last else 0
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
    try:
        model = (Pipelined if layout.pp > 1 else Sharded)(build(ODD, 0), Mesh(layout, "cpu"))
        if layout.zero == 3:
            for target in model.targets.values():
                target.grad = torch.zeros_like(target)
        else:
            for parameter in model.model.parameters():
                if parameter.requires_grad:
                    torch.zeros_like(parameter).mul(parameter).sum().backward()
            model.finish_micro_batch()
            model.finish_gradients()
        held = model.bytes()
        moments = sum(2 * getattr(t, "_local_tensor", t).nbytes for t in model.targets.values())
    finally:
        dist.destroy_process_group()
    assert {**held, "moments": moments} == state_bytes(ODD, layout, layout.weights, rank)


def test_one_rank_saves_what_the_model_s_own_table_says() -> None:
    for model in (ODD, LARGE):
        found = activation_bytes(Job(model=model, context=512, rows=2, micro_rows=2, weights="fp32"), Layout())
        known = training_bytes(model, 2, 512, torch.bfloat16)
        assert found["activations"] + found["end"] == known["activations"]
        assert found["casts"] == known["casts"]


def test_volumes_by_hand() -> None:
    job = Job(model=LARGE, context=4096, rows=64)
    layout = Layout(dp=64, ep=8)
    assert exchange_bytes(job, layout)[0] == 7 / 8 * 48 * 4 * 4096 * 8 * 2048 * 2
    assert exchange_bytes(job, replace(layout, recompute="full"))[0] == 1.5 * exchange_bytes(job, layout)[0]
    assert exchange_bytes(job, Layout(dp=64)) == (0.0, 0)
    experts = 48 * 128 * 3 * 2048 * 768
    rest = sum(count_parameters(LARGE).values()) - experts - 48 * 128  # routers' biases have no gradient
    moved = data_bytes(job, layout)
    assert moved["shard"] == pytest.approx(63 / 64 * 2 * 2 * rest)
    assert moved["experts"] == pytest.approx(7 / 8 * 2 * 2 * experts / 8)
    assert data_bytes(job, Layout(dp=64))["experts"] == 0
    assert data_bytes(job, replace(layout, dp=8))["experts"] == 0  # nobody else holds the same ones
    zero3 = data_bytes(job, replace(layout, zero=3))
    assert zero3["experts"] == pytest.approx(7 / 8 * (2 * 2 + 4) * experts / 8)


def test_spreading_experts_divides_their_bytes_and_costs_exchanges() -> None:
    job, cluster = Job(model=LARGE, context=4096, rows=64), Cluster(gpu=find_gpu("h100"), gpus=64)
    whole, spread = (state_bytes(LARGE, Layout(dp=64, ep=ep), "bf16")["params"] for ep in (1, 8))
    assert whole - spread == 2 * (48 * 128 * 3 * 2048 * 768) * 7 / 8
    seconds = step_seconds(job, Layout(dp=64, ep=8), cluster)
    assert seconds["ep"] > 0 == step_seconds(job, Layout(dp=64), cluster)["ep"]
    assert rank_bytes(job, Layout(dp=64, ep=8))["buckets"] > 0
    assert parse_layout("dp=64,ep=8") == Layout(dp=64, ep=8)
    found = search(job, cluster)
    assert {plan.layout.ep for plan in found.fitting} >= {1, 2, 4, 8}
    assert all(plan.layout.tp == 1 for plan in found.fitting + found.others)
    assert "layout.tp" in found.refused


@pytest.mark.parametrize("layout", [Layout(dp=4), Layout(dp=4, zero=2, ep=2), Layout(dp=4, ep=4)], ids=lambda x: x.name)
def test_a_dry_run_goes_through_experts(layout: Layout) -> None:
    """Loads are pretended to be even; what is held does not depend on them."""
    job = Job(model=ODD, context=48, rows=16, micro_rows=2, weights="fp32")
    state = state_bytes(ODD, layout, "fp32")
    known = sum(state.values())
    assert trace(job, layout).held == pytest.approx(known, rel=0.01, abs=2048)  # the batch's ids, and loads
