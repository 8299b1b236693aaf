"""The engine under random arrival, preemption, prefix hits and requests given up: greedy tokens stay the naive ones."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sekkei.engine.answer import Answer
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer

GAP = 1e-4
CONTEXT = 40


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, vocab_size=50,
        max_context=CONTEXT, qk_norm=True,
    )  # fmt: skip
    return build(config, seed=3)


@torch.no_grad()
def check_naive(model: Transformer, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> float:
    """Each token is the argmax of a full forward pass over all before it; returns the smallest top-2 gap."""
    ids = torch.tensor([[*prompt, *tokens]])
    hidden = model.hidden(ids[:, :-1], torch.arange(ids.shape[1] - 1)[None], DenseAttend(None))
    best = model.logits(hidden)[0, len(prompt) - 1 :].topk(2)
    gaps = best.values[:, 0] - best.values[:, 1]
    for token, expected, gap in zip(tokens, best.indices[:, 0].tolist(), gaps.tolist()):
        assert token == expected or gap < GAP, f"token {token}, the naive decoder says {expected}, gap {gap}"
        if token != expected:
            break
    return float(gaps.min())


def prompt_of(rng: random.Random) -> tuple[int, ...]:
    """Prompts that often share a beginning with each other."""
    base = [(7 * i + rng.randrange(2)) % 50 if i == 12 else (7 * i) % 50 for i in range(30)]
    end = [rng.randrange(50) for _ in range(rng.randrange(4))]
    return (*base[: rng.choice([1, 3, 8, 16, 25, 30])], *end)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    block_size=st.sampled_from([1, 3, 8]),
    spare=st.integers(0, 12),
    max_batch=st.integers(1, 9),
    prefill_tokens=st.sampled_from([1, 5, 16, 8192]),
    refill=st.integers(1, 3),
    graphs=st.booleans(),
)
def test_greedy_is_naive_whatever_comes_when(
    model: Transformer,
    seed: int,
    block_size: int,
    spare: int,
    max_batch: int,
    prefill_tokens: int,
    refill: int,
    graphs: bool,
) -> None:
    rng = random.Random(seed)
    blocks = -(-CONTEXT // block_size) + spare
    engine = Engine(
        model, max_batch=max_batch, block_size=block_size, blocks=blocks, prefill_tokens=prefill_tokens, refill=refill,
        graphs=graphs,
    )  # fmt: skip
    answers: list[Answer] = []
    open_ones: list[Answer] = []
    for _ in range(12):
        for _ in range(rng.randrange(3)):
            sampling = Sampling(temperature=0.0, max_tokens=rng.choice([1, 4, 12]), prompt_logprobs=rng.random() < 0.2)
            open_ones.append(engine.submit(Request(prompt_ids=prompt_of(rng), sampling=sampling, n=rng.randint(1, 4))))
        for _ in range(rng.randrange(4)):
            engine.step()
        if open_ones and rng.random() < 0.2:
            given_up = open_ones.pop(rng.randrange(len(open_ones)))
            engine.abort(given_up)
        answers += [answer for answer in open_ones if answer.finished]
        open_ones = [answer for answer in open_ones if not answer.finished]
    while not engine.idle:
        engine.step()
    answers += open_ones
    for answer in answers:
        tokens = {completion.token_ids for completion in answer.completions()}
        assert len(tokens) == 1
        check_naive(model, answer.request.prompt_ids, tokens.pop())
    assert engine.pool.held == 0
    assert engine.samples == {}


def test_a_full_store_preempts_and_the_answers_stay(model: Transformer, capsys: pytest.CaptureFixture) -> None:
    rng = random.Random(5)
    engine = Engine(model, max_batch=8, block_size=4, blocks=16)
    requests = [
        Request(prompt_ids=prompt_of(rng), sampling=Sampling(temperature=0.0, max_tokens=12), n=2) for _ in range(16)
    ]
    gaps = []
    for request, completions in zip(requests, engine.generate(requests)):
        gaps += [check_naive(model, request.prompt_ids, completion.token_ids) for completion in completions]
    assert engine.preemptions > 3
    with capsys.disabled():
        print(f"\n  {engine.preemptions} preemptions, smallest top-2 gap {min(gaps):.1e}")


def test_giving_up_frees_the_blocks_at_once(model: Transformer) -> None:
    engine = Engine(model, block_size=4)
    answer = engine.submit(Request(prompt_ids=(1,) * 20, sampling=Sampling(max_tokens=15), n=5))
    beside = engine.submit(Request(prompt_ids=(2,) * 6, sampling=Sampling(temperature=0.0, max_tokens=9)))
    engine.step()
    held = engine.pool.held
    engine.abort(answer)
    assert engine.pool.held < held
    while not engine.idle:
        engine.step()
    check_naive(model, (2,) * 6, beside.completions()[0].token_ids)
    assert engine.pool.held == 0


def test_new_weights_forget_the_blocks(model: Transformer) -> None:
    own = build(model.config, seed=4)
    engine = Engine(own, block_size=4)
    request = Request(prompt_ids=tuple(range(20)), sampling=Sampling(temperature=0.0, max_tokens=9))
    engine.generate([request])
    assert engine.generate([request])[0][0].token_ids
    assert engine.prefilled == 20 + 4  # four of the five blocks were found, the last is computed for its score
    engine.refresh(dict(model.named_parameters()))
    ((after,),) = engine.generate([request])
    check_naive(model, request.prompt_ids, after.token_ids)
    answer = engine.submit(request)
    with pytest.raises(RuntimeError, match="while requests are being answered"):
        engine.refresh(None)
    engine.abort(answer)


def test_a_broken_pass_leaves_an_engine_that_works(model: Transformer) -> None:
    engine = Engine(model, block_size=4)
    run, calls = engine.runner.run, []

    def broken(plan, scored=()):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return run(plan, scored)

    engine.runner.run = broken  # type: ignore[method-assign]
    request = Request(prompt_ids=(3, 4, 5), sampling=Sampling(temperature=0.0, max_tokens=9), n=3)
    with pytest.raises(MemoryError):
        engine.generate([request])
    assert engine.idle
    assert engine.pool.held == 0
    for completion in engine.generate([request])[0]:
        check_naive(model, request.prompt_ids, completion.token_ids)
