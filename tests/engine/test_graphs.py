"""Decode passes of fixed shape, as a GPU replays them from graphs: everything but the capture, on a CPU.

The property test of test_arrivals.py runs with them, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from sekkei.core.errors import ConfigError, UserError
from sekkei.engine.engine import Engine
from sekkei.engine.forward import Forward
from sekkei.engine.graphs import SWITCH, DecodeGraphs, wants_graphs
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.model.config import ModelConfig, MoEConfig
from sekkei.model.init import build
from sekkei.model.lora import LoRAConfig, add_lora, lora_layers, save_lora
from sekkei.model.transformer import Transformer

CONFIG = ModelConfig(
    hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, vocab_size=50,
    max_context=40, qk_norm=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Transformer:
    return build(CONFIG, seed=3)


def graphs_of(engine: Engine) -> DecodeGraphs:
    assert engine.runner.graphs is not None
    return engine.runner.graphs


def same(found: list[list[Completion]], wanted: list[list[Completion]]) -> None:
    for a, b in zip((x for group in found for x in group), (x for group in wanted for x in group), strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def prompt_of(rng: random.Random) -> tuple[int, ...]:
    """Prompts that often share a beginning with each other."""
    return (*((7 * i) % 50 for i in range(rng.choice([1, 8, 16, 25]))), *(rng.randrange(50) for _ in range(3)))


def some(rng: random.Random, count: int, temperature: float = 1.0, **options: object) -> list[Request]:
    sampling = Sampling(temperature=temperature, max_tokens=12, **options)  # type: ignore[arg-type]
    return [Request(prompt_ids=prompt_of(rng), sampling=sampling, n=rng.randint(1, 3), seed=i) for i in range(count)]


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": True, "num_layers": 1}, {"num_kv_heads": 4}])
def test_fixed_shapes_draw_what_the_ordinary_pass_draws(changes: dict[str, object]) -> None:
    model, rng = build(replace(CONFIG, **changes), seed=5), random.Random(7)  # type: ignore[arg-type]
    requests = some(rng, 9) + some(rng, 3, temperature=0.0, top_logprobs=3, repetition_penalty=1.3)
    fixed = Engine(model, max_batch=7, block_size=4, blocks=24, graphs=True)
    plain = Engine(model, max_batch=7, block_size=4, blocks=24, graphs=False)
    same(fixed.generate(requests), plain.generate(requests))
    assert fixed.preemptions == plain.preemptions > 0
    shapes = set(graphs_of(fixed).ready)
    assert 3 <= len(shapes) <= 12, "few shapes, whatever comes"
    assert all(rows in (1, 2, 4, 7) and columns in (1, 2, 4, 8, 10) for rows, columns in shapes)
    assert plain.runner.graphs is None


class Operations(TorchDispatchMode):
    """Writes down what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


def of_the_host(run: Callable[[], object]) -> set[str]:
    """Operations that a graph cannot hold: numbers that the host reads or gives, and sizes that hang on them."""
    reads = ("item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "lift_fresh")
    with Operations() as operations, torch.inference_mode():
        run()
    assert "aten::linear" in operations.names
    return operations.names & {f"aten::{name}" for name in reads}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_fixed_pass_reads_nothing_on_the_host(model: Transformer, dtype: torch.dtype | None) -> None:
    engine = Engine(model, block_size=4, dtype=dtype, graphs=True)
    engine.generate(some(random.Random(6), 3))
    for step in graphs_of(engine).ready.values():
        assert not of_the_host(step)
    plain = Engine(model, block_size=4, dtype=dtype, graphs=False)
    plain.submit(some(random.Random(6), 1)[0])
    assert of_the_host(plain.step), "the ordinary pass does, and it is noticed"


def test_recorded_passes_can_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph does it: each shape's operations are written down once, with the tensors that they touched, and
    run again from there; later with new weights in the same place."""
    made, recorded = DecodeGraphs._made, []

    def record(
        self: DecodeGraphs, forward: Forward, shape: tuple[int, int], dtype: torch.dtype | None
    ) -> Callable[[], torch.Tensor]:
        step = made(self, forward, shape, dtype)
        step()
        recorded.append(shape)
        return make_fx(step)()

    monkeypatch.setattr(DecodeGraphs, "_made", record)
    requests, sizes = some(random.Random(7), 6), {"max_batch": 5, "block_size": 4, "blocks": 20}
    engine = Engine(build(CONFIG, seed=3), graphs=True, **sizes)  # type: ignore[arg-type]
    for seed in (3, 9):
        other = build(CONFIG, seed)
        engine.refresh(dict(other.named_parameters()))
        same(engine.generate(requests), Engine(other, **sizes).generate(requests))  # type: ignore[arg-type]
        assert engine.preemptions > 0
    assert len(recorded) == len(set(recorded)) > 2


def test_new_weights_in_place_keep_the_graphs_and_moved_ones_do_not() -> None:
    model, rng = build(CONFIG, seed=4), random.Random(1)
    requests = some(rng, 4, temperature=0.0)
    engine = Engine(model, block_size=4, graphs=True)
    engine.generate(requests)
    ready = dict(graphs_of(engine).ready)
    other = build(CONFIG, seed=6)
    engine.refresh(dict(other.named_parameters()))
    same(engine.generate(requests), Engine(other, block_size=4).generate(requests))
    assert all(graphs_of(engine).ready[shape] is step for shape, step in ready.items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.flip(0).clone()
    engine.refresh(None)
    same(engine.generate(requests), Engine(model, block_size=4).generate(requests))
    assert not any(graphs_of(engine).ready[shape] is step for shape, step in ready.items() if shape in ready)


def test_narrow_copies_take_new_weights_in_place_even_if_these_come_after_refresh() -> None:
    model, rng = build(CONFIG, seed=4), random.Random(1)
    requests = some(rng, 4, temperature=0.0)
    engines = [Engine(model, block_size=4, dtype=torch.bfloat16, graphs=graphs) for graphs in (True, False)]
    for engine in engines:
        engine.generate(requests)
    ready = dict(graphs_of(engines[0]).ready)
    other = build(CONFIG, seed=6)
    for engine in engines:
        engine.refresh(None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(other.get_parameter(name))
    wanted = Engine(other, block_size=4, dtype=torch.bfloat16).generate(requests)
    assert [c.logprobs for group in engines[1].generate(requests) for c in group] == [
        c.logprobs for group in wanted for c in group
    ]
    engines[0].generate(requests)
    assert all(graphs_of(engines[0]).ready[shape] is step for shape, step in ready.items())


def test_an_adapter_of_the_model_that_is_switched_or_added_is_seen() -> None:
    model, rng = build(CONFIG, seed=4), random.Random(2)
    requests = some(rng, 3, temperature=0.0)
    engine = Engine(model, block_size=4, graphs=True)
    engine.generate(requests)
    add_lora(model, LoRAConfig(rank=2, alpha=4), seed=0)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_b.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    for on in (True, False):
        for layer in lora_layers(model).values():
            layer.on = on
        engine.refresh(None)
        same(engine.generate(requests), Engine(model, block_size=4).generate(requests))


def test_adapters_by_request_go_the_ordinary_way(model: Transformer, tmp_path: Path) -> None:
    adapted, config, rng = build(CONFIG, seed=3), LoRAConfig(rank=2, alpha=4), random.Random(3)
    add_lora(adapted, config, seed=0)
    with torch.no_grad():
        for layer in lora_layers(adapted).values():
            layer.lora_b.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    save_lora(tmp_path, adapted, config)
    plain = some(rng, 2, temperature=0.0)
    asked = [Request(prompt_ids=r.prompt_ids, sampling=r.sampling, n=r.n, adapter="one") for r in plain]
    engines = [Engine(model, adapters={"one": tmp_path}, graphs=graphs) for graphs in (True, False)]
    same(*(engine.generate([*plain, *asked]) for engine in engines))  # type: ignore[arg-type]
    graphs_of(engines[0]).forget()
    engines[0].generate(asked)
    assert not graphs_of(engines[0]).ready


def test_a_pass_that_failed_leaves_no_graph_of_the_old_store(model: Transformer) -> None:
    engine, requests = Engine(model, block_size=4, graphs=True), some(random.Random(4), 3, temperature=0.0)
    wanted = engine.generate(requests)
    with torch.no_grad():
        kept = model.norm.weight.clone()  # type: ignore[union-attr]
        model.norm.weight.fill_(float("nan"))  # type: ignore[union-attr]
        with pytest.raises(UserError, match="not finite"):
            engine.generate(requests)
        model.norm.weight.copy_(kept)  # type: ignore[union-attr]
    same(engine.generate(requests), wanted)


def test_where_graphs_are_used(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert wants_graphs(model, cuda, None)
    assert not wants_graphs(model, cpu, None)
    assert not wants_graphs(model, cuda, False)
    monkeypatch.setenv(SWITCH, "0")
    assert not wants_graphs(model, cuda, None)
    experts = build(ModelConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, vocab_size=50, max_context=40,
        moe=MoEConfig(experts=4, active=2, intermediate_size=16),
    ), seed=1)  # fmt: skip
    monkeypatch.delenv(SWITCH)
    assert not wants_graphs(experts, cuda, None)
    with pytest.raises(ConfigError, match="graphs"):
        Engine(experts, graphs=True)


def test_a_capture_that_fails_names_the_switch(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine there is no CUDA, so a capture does fail."""
    engine = Engine(model, graphs=True)
    graphs = graphs_of(engine)
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "graph", None)
    graphs.cuda = True
    with pytest.raises(UserError, match=rf"CUDA graph .*{SWITCH}=0"):
        engine.generate(some(random.Random(5), 1))
    assert engine.idle
    assert engine.pool.held == 0
