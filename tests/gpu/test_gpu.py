"""What a GPU computes is what a CPU computes; run where there is one: `python -m pytest -m gpu tests/gpu`.

    SEKKEI_GPU_TESTS_ON=cpu python -m pytest -m gpu tests/gpu      the same checks of a CPU against itself

It needs torch and pytest, nothing else of the suite's packages.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from torch import Tensor

from sekkei.data.batch import Batch, Sample
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.pretrain import TokenLoss
from sekkei.objectives.sft import pack_samples
from sekkei.parallel import kernels
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job
from sekkei.parallel.ops import LocalOps
from sekkei.parallel.peak import rank_bytes
from sekkei.train.objective import Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

pytestmark = pytest.mark.gpu
NAME = os.environ.get("SEKKEI_GPU_TESTS_ON", "cuda")
CPU = torch.device("cpu")
GAP = 1e-3  # between the two best scores; below it, rounding decides
CONFIG = ModelConfig(
    hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=96, vocab_size=101, max_context=256,
    qk_norm=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def device() -> torch.device:
    if NAME == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    return torch.device(NAME)


def packed() -> list[Batch]:
    """Rows of several documents, unevenly scored, with padding."""
    rng = random.Random(0)
    lengths = [50, 7, 130, 64, 33, 21, 90, 12]
    ids = [[rng.randrange(CONFIG.vocab_size) for _ in range(length)] for length in lengths]
    weights = [[float(rng.random() < 0.7) for _ in range(length)] for length in lengths]
    return pack_samples([Sample(ids=i, weights=w) for i, w in zip(ids, weights, strict=True)], 1024)


def gradients(
    device: torch.device, dtype: torch.dtype, autocast: torch.dtype | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and every gradient of one update, in float64 on the CPU."""
    model = build(CONFIG, seed=3).to(device, dtype)
    metrics = PlainStep({"policy": model}, LocalOps(), device, autocast).backward(
        Update("policy", packed(), TokenLoss())
    )
    found = {name: p.grad.cpu().double() for name, p in model.named_parameters() if p.grad is not None}
    return metrics["loss"].total.cpu().double(), found


def largest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative difference of a gradient."""
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)


@pytest.mark.parametrize(
    ("dtype", "autocast", "limit"),
    [(torch.float64, None, 1e-10), (torch.float32, None, 1e-4), (torch.float32, torch.bfloat16, 0.1)],
    ids=["float64", "float32", "bf16"],
)
def test_loss_and_gradients(
    device: torch.device, dtype: torch.dtype, autocast: torch.dtype | None, limit: float
) -> None:
    expected, wanted = gradients(CPU, torch.float64)
    loss, found = gradients(device, dtype, autocast)
    assert float((loss - expected).abs() / expected.abs()) <= limit
    assert largest(found, wanted) <= limit


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_parameters_after_three_steps(device: torch.device, kind: str) -> None:
    sides: list[dict[str, Tensor]] = []
    for where in (CPU, device):
        model = build(CONFIG, seed=3).to(where, torch.float64)
        config = OptimConfig(kind=kind, lr=1e-2, schedule="constant", warmup=0.0)  # type: ignore[arg-type]
        optimizer = Optimizer(model, config, 3, dtype=torch.float64)
        step = PlainStep({"policy": model}, LocalOps(), where, None)
        for number in range(3):
            step.backward(Update("policy", packed(), TokenLoss()))
            optimizer.step(number)
        sides.append({name: p.detach().cpu() for name, p in model.named_parameters()})
    assert largest(sides[1], sides[0]) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_block(device: torch.device, dtype: torch.dtype, masked: bool) -> None:
    """Each kernel of the ring, forward and backward, against float64 on the CPU."""
    torch.manual_seed(5)
    q, k, v, grad = (torch.randn(2, heads, 96, 64, dtype=torch.float64) for heads in (4, 2, 2, 4))
    allowed = (torch.rand(2, 1, 96, 96) < 0.6) | torch.eye(96, dtype=torch.bool) if masked else None
    results = []
    for where, kind in ((CPU, torch.float64), (device, dtype)):
        own = [x.to(where, kind) for x in (q, k, v)]
        mask = None if allowed is None else allowed.to(where)
        out, lse = kernels.block_forward(*own, mask, not masked)
        back = kernels.block_backward(grad.to(where, kind), *own, out, lse, mask, not masked)
        results.append([x.cpu().double() for x in (out, lse, *back)])
    limit = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for found, wanted in zip(results[1], results[0], strict=True):
        assert float((found - wanted).norm() / wanted.norm()) <= limit


@torch.no_grad()
def naive(model: Transformer, ids: list[int], device: torch.device) -> Tensor:
    """Scores of the next token, from a pass over everything."""
    row, positions = torch.tensor([ids], device=device), torch.arange(len(ids), device=device)[None]
    return model.logits(model.hidden(row, positions, DenseAttend(None)))[0, -1].float()


def test_greedy_answers_are_those_of_a_naive_decoder(device: torch.device) -> None:
    """Uneven prompts, a group that shares one, waiting rows, few blocks."""
    model = build(CONFIG, seed=1).to(device)
    rng = random.Random(2)
    requests = [
        Request(
            prompt_ids=tuple(rng.randrange(101) for _ in range(length)), sampling=Sampling(max_tokens=20), n=n, seed=i
        )
        for i, (length, n) in enumerate([(1, 1), (40, 4), (70, 1), (33, 2), (5, 1), (64, 1), (90, 3)])
    ]
    greedy = [
        Request(prompt_ids=r.prompt_ids, sampling=Sampling(temperature=0.0, max_tokens=20), n=r.n, seed=r.seed)
        for r in requests
    ]
    answers = Engine(model, max_batch=5, blocks=24).generate(greedy)
    for request, group in zip(greedy, answers, strict=True):
        assert len({answer.token_ids for answer in group}) == 1
        ids = list(request.prompt_ids)
        for token in group[0].token_ids:
            best = naive(model, ids, device).topk(2)
            if token != int(best.indices[0]):
                assert float(best.values[0] - best.values[1]) < GAP
                break
            ids.append(token)
    drawn = [Engine(model, max_batch=batch).generate(requests) for batch in (3, 64)]
    same = [a.token_ids == b.token_ids for x, y in zip(*drawn, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(same) >= len(same) - 1, "what a sample draws is its own affair, up to a rounding"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bf16"])
def test_replayed_graphs_draw_what_ordinary_passes_draw(device: torch.device, dtype: torch.dtype | None) -> None:
    """Rows that come and go, a shared prompt, preemption; then new weights in place, for which the graphs stay.

    On a CPU the passes have the same fixed shapes and are not captured.
    """
    rng = random.Random(4)
    greedy = Sampling(temperature=0.0, max_tokens=24, top_logprobs=2)
    requests = [
        Request(prompt_ids=tuple(rng.randrange(101) for _ in range(length)), sampling=greedy, n=n, seed=i)
        for i, (length, n) in enumerate([(1, 1), (40, 4), (70, 1), (33, 2), (5, 1), (64, 1), (90, 3)])
    ]
    models = [build(CONFIG, seed=1).to(device) for _ in range(2)]
    engines = [
        Engine(model, max_batch=5, blocks=24, dtype=dtype, graphs=graphs)
        for model, graphs in zip(models, (True, False), strict=True)
    ]
    graphs = engines[0].runner.graphs
    assert graphs is not None
    limit = GAP if dtype is None else 0.1
    captures = 0
    for seed in (1, 2):
        weights = {name: p.detach().to(device) for name, p in build(CONFIG, seed=seed).named_parameters()}
        for engine in engines:
            engine.refresh(weights)
        fixed, plain = (engine.generate(requests) for engine in engines)
        for a, b in zip((x for group in fixed for x in group), (x for group in plain for x in group), strict=True):
            for x, y, top in zip(a.token_ids, b.token_ids, b.top_logprobs, strict=True):
                if x != y:
                    assert top[0][1] - top[1][1] < limit
                    break
        assert seed == 1 or graphs.captures == captures, "weights that change in place need no new graph"
        captures = graphs.captures
    assert (captures > 0) == (device.type == "cuda")


def test_the_planner_knows_the_peak(device: torch.device) -> None:
    """Bytes of one training step in bf16, to 5%."""
    if device.type != "cuda":
        pytest.skip("a CPU's allocator does not count")
    config = ModelConfig(
        hidden_size=1024, num_layers=8, num_heads=16, num_kv_heads=8, intermediate_size=2816, vocab_size=32768,
        max_context=2048,
    )  # fmt: skip
    job = Job(model=config, context=2048, rows=4, micro_rows=2, weights="fp32")
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated()
    model = build(config, 0).to(device)
    optimizer = Optimizer(model, OptimConfig(kind="adamw", schedule="constant", warmup=0.0), 2)
    step = PlainStep({"policy": model}, LocalOps(), device, torch.bfloat16)
    ids = torch.randint(0, config.vocab_size, (2, 2049))
    positions = torch.arange(2048).expand(2, 2048)
    batch = Batch(
        ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous(), mask=torch.ones(2, 2048),
        positions=positions.contiguous(), segments=torch.zeros(2, 2048, dtype=torch.int64), extra={},
    )  # fmt: skip
    for number in range(2):
        torch.cuda.reset_peak_memory_stats()
        step.backward(Update("policy", [batch, batch], TokenLoss()))
        optimizer.step(number)
    measured = torch.cuda.max_memory_allocated() - base
    assert sum(rank_bytes(job, Layout(), 0, "cuda").values()) == pytest.approx(measured, rel=0.05)
