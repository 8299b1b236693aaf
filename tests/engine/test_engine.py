"""Generation against a naive decoder that reruns the whole sequence for every token."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer, run_recomputed

VOCABULARY = 90
GAP = 1e-4  # a mismatch below this distance between the two best scores is rounding, not a bug


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        vocab_size=VOCABULARY,
        max_context=96,
        qk_norm=True,
    )
    return build(config, seed=1)  # random weights at this size give varied, non-repeating argmaxes


def random_requests(count: int, seed: int, temperature: float = 0.0, **settings: object) -> list[Request]:
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.choice([1, 2, 5, 17, 40, 70])))
        sampling = Sampling(temperature=temperature, max_tokens=rng.choice([1, 3, 12, 30]), **settings)
        requests.append(Request(prompt_ids=prompt, sampling=sampling, n=rng.choice([1, 1, 3, 5]), seed=seed + i))
    return requests


@torch.no_grad()
def scores(model: Transformer, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of one row without any cache."""
    row = torch.tensor([ids])
    positions = torch.arange(len(ids))[None]
    return model.logits(model.hidden(row, positions, DenseAttend(None)))[0]


def check_greedy(model: Transformer, request: Request, completion: Completion) -> float:
    """Every token is the naive decoder's; returns the smallest gap between the two best scores that was met."""
    ids, smallest = list(request.prompt_ids), float("inf")
    for token in completion.token_ids:
        best = scores(model, ids)[-1].topk(2)
        gap = float(best.values[0] - best.values[1])
        if token != int(best.indices[0]):
            assert gap < GAP, f"token {token}, the naive decoder says {int(best.indices[0])}, gap {gap}"
            break  # from here on the two histories differ
        smallest = min(smallest, gap)
        ids.append(token)
    return smallest


@pytest.mark.parametrize("max_batch", [1, 3, 256])
def test_greedy_equals_the_naive_decoder(model: Transformer, max_batch: int, capsys: pytest.CaptureFixture) -> None:
    requests = random_requests(9, seed=max_batch)
    answers = Engine(model, max_batch=max_batch).generate(requests)
    gaps, distinct = [], set()
    for request, completions in zip(requests, answers, strict=True):
        assert len(completions) == request.n
        assert len({completion.token_ids for completion in completions}) == 1
        assert len(completions[0].token_ids) == request.sampling.max_tokens or completions[0].finish_reason == "length"
        gaps.append(check_greedy(model, request, completions[0]))
        distinct |= set(completions[0].token_ids)
    assert len(distinct) > 10  # the argmax is not degenerate
    with capsys.disabled():
        print(f"\n  greedy, max_batch {max_batch}: smallest top-2 gap {min(gaps):.1e}")


def test_the_naive_comparison_notices_one_wrong_token(model: Transformer) -> None:
    request = Request(prompt_ids=(1, 2, 3), sampling=Sampling(temperature=0.0, max_tokens=8))
    ((completion,),) = Engine(model).generate([request])
    wrong = list(completion.token_ids)
    wrong[5] = (wrong[5] + 1) % VOCABULARY
    with pytest.raises(AssertionError, match="the naive decoder says"):
        check_greedy(model, request, Completion(**{**vars(completion), "token_ids": tuple(wrong)}))


def test_samples_do_not_depend_on_the_batch(model: Transformer) -> None:
    requests = random_requests(8, seed=5, temperature=0.9, top_p=0.95, stop_tokens=(7, 8))
    wide = Engine(model).generate(requests)
    for max_batch in (1, 4, 11):
        assert tokens_of(Engine(model, max_batch=max_batch, prefill_tokens=64).generate(requests)) == tokens_of(wide)
    assert tokens_of(Engine(model).generate(requests[::-1])[::-1]) == tokens_of(wide)
    assert tokens_of([Engine(model).generate([request])[0] for request in requests]) == tokens_of(wide)


def tokens_of(answers: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in completions] for completions in answers]


def test_samples_of_a_group_differ_and_carry_their_seeds(model: Transformer) -> None:
    request = Request(prompt_ids=(4, 5), sampling=Sampling(max_tokens=20), n=6, seed=11)
    (group,) = Engine(model, max_batch=4).generate([request])
    assert [completion.seed for completion in group] == [derive_seed(11, i) for i in range(6)]
    assert len({completion.token_ids for completion in group}) == 6


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_logprobs_equal_a_teacher_forced_forward(model: Transformer, temperature: float) -> None:
    requests = random_requests(6, seed=21, temperature=temperature, top_k=30)
    compared = 0
    for request, completions in zip(requests, Engine(model, max_batch=5).generate(requests), strict=True):
        for completion in completions:
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
            labels = ids[:, 1:].clone()
            labels[:, : len(request.prompt_ids) - 1] = -100
            positions = torch.arange(ids.shape[1] - 1)[None]
            out = model(ids[:, :-1], positions, DenseAttend(None), labels, ("logprobs",), temperature or 1.0)
            assert out.logprobs is not None
            forced = out.logprobs[0, len(request.prompt_ids) - 1 :].detach().numpy()
            np.testing.assert_allclose(completion.logprobs, forced, atol=1e-4)
            compared += len(forced)
    assert compared > 50


def test_stop_tokens_end_a_row_and_are_kept(model: Transformer) -> None:
    free = Request(prompt_ids=(9, 8, 7), sampling=Sampling(max_tokens=40), n=8, seed=3)
    (whole,) = Engine(model).generate([free])
    stops = (whole[0].token_ids[4], whole[1].token_ids[9])
    stopped = Request(prompt_ids=(9, 8, 7), sampling=Sampling(max_tokens=40, stop_tokens=stops), n=8, seed=3)
    (cut,) = Engine(model, max_batch=3).generate([stopped])
    assert cut[0].finish_reason == "stop"
    for long, short in zip(whole, cut, strict=True):
        ends = [i for i, token in enumerate(long.token_ids) if token in stops]
        end = ends[0] + 1 if ends else 40
        assert short.token_ids == long.token_ids[:end]
        assert len(short.logprobs) == end
        assert short.finish_reason == ("stop" if ends else "length")


def test_the_context_is_a_limit(model: Transformer) -> None:
    prompt = tuple(range(60)) + tuple(range(30))
    ((completion,),) = Engine(model).generate([Request(prompt_ids=prompt, sampling=Sampling(temperature=0.0))])
    assert (len(completion.token_ids), completion.finish_reason) == (6, "length")
    check_greedy(model, Request(prompt_ids=prompt, sampling=Sampling(temperature=0.0)), completion)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ((), "a prompt of 0 tokens"),
        ((1,) * 96, "96 tokens.*max_context=96"),
        ((3, 90), "token id 90, the model has 90"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(model: Transformer, prompt: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Engine(model).generate([Request(prompt_ids=prompt, sampling=Sampling())])
    with pytest.raises(UserError, match=words):
        Engine(model).stream(Request(prompt_ids=prompt, sampling=Sampling()))


def test_a_batch_of_nothing_is_refused(model: Transformer) -> None:
    assert Engine(model).generate([]) == []
    with pytest.raises(ConfigError, match="max_batch"):
        Engine(model, max_batch=0)


def test_a_stream_is_the_same_sample(model: Transformer) -> None:
    request = Request(prompt_ids=(1, 2, 3), sampling=Sampling(max_tokens=15, stop_tokens=(5,)), seed=2)
    ((completion,),) = Engine(model).generate([request])
    streamed = list(Engine(model).stream(request))
    assert tuple(token for token, _ in streamed) == completion.token_ids
    assert tuple(logprob for _, logprob in streamed) == pytest.approx(completion.logprobs)
    with pytest.raises(UserError, match="n=2"):
        Engine(model).stream(Request(prompt_ids=(1,), sampling=Sampling(), n=2))


def test_one_prefill_serves_a_group(model: Transformer) -> None:
    requests = [Request(prompt_ids=(i, 1, 2), sampling=Sampling(max_tokens=9), n=7, seed=i) for i in range(4)]
    engine = Engine(model)
    answers = engine.generate(requests)
    assert engine.prefilled == sum(len(request.prompt_ids) for request in requests)
    assert tokens_of(answers) == tokens_of(Engine(model, max_batch=3).generate(requests))


def test_a_pass_holds_at_most_the_budget_of_prompt_tokens(model: Transformer) -> None:
    engine, passes = Engine(model, prefill_tokens=20), []
    run = engine.runner.run

    def watched(plan, scored=()):  # type: ignore[no-untyped-def]
        passes.append(sum(piece.count for piece in plan.prefills))
        return run(plan, scored)

    engine.runner.run = watched  # type: ignore[method-assign]
    requests = random_requests(9, seed=4)
    answers = engine.generate(requests)
    assert max(passes) == 20
    assert sum(passes) == engine.prefilled <= sum(len(request.prompt_ids) for request in requests)
    assert tokens_of(answers) == tokens_of(Engine(model).generate(requests))


def test_generating_beside_submitted_requests_counts_its_own(model: Transformer) -> None:
    engine = Engine(model)
    beside = engine.submit(Request(prompt_ids=(1, 2), sampling=Sampling(temperature=0.0, max_tokens=3), n=4))
    request = Request(prompt_ids=(5, 6, 7), sampling=Sampling(temperature=0.0, max_tokens=12))
    ((completion,),) = engine.generate([request])
    check_greedy(model, request, completion)
    assert len(completion.token_ids) == 12
    assert [len(answer.token_ids) for answer in beside.completions()] == [3] * 4
    assert engine.pool.held == 0


def test_the_weights_hash_follows_the_weights(model: Transformer) -> None:
    own = build(model.config, seed=1)
    engine = Engine(own)
    before = engine.weights_hash
    assert before == Engine(model).weights_hash
    request = Request(prompt_ids=(1, 2), sampling=Sampling(temperature=0.0, max_tokens=12))
    first = engine.generate([request])[0][0]
    assert first.weights_hash == before
    with torch.no_grad():
        own.layers["1"].mlp.up_proj.weight[0, 0] += 1.0
    engine.refresh(None)
    assert engine.weights_hash != before
    other = build(model.config, seed=2)
    engine.refresh(dict(other.named_parameters()))
    assert engine.weights_hash == Engine(other).weights_hash
    assert engine.generate([request])[0][0].token_ids == Engine(other).generate([request])[0][0].token_ids
    assert engine.generate([request])[0][0].token_ids != first.token_ids
    with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
        engine.refresh({name: p for name, p in other.named_parameters() if name != "lm_head.weight"})
    assert Engine(build(model.config, seed=1, dtype=torch.bfloat16)).weights_hash != before


@pytest.mark.parametrize("kind", ["autocast", "weights"])
def test_bfloat16_stays_close_to_a_teacher_forced_forward(model: Transformer, kind: str) -> None:
    bf16 = kind == "weights"
    own = build(model.config, seed=1, dtype=torch.bfloat16 if bf16 else torch.float32)
    requests = random_requests(5, seed=31, temperature=1.0)
    answers = Engine(own, dtype=None if bf16 else torch.bfloat16).generate(requests)
    for request, completions in zip(requests, answers, strict=True):
        ids = [*request.prompt_ids, *completions[0].token_ids]
        with torch.autocast("cpu", torch.bfloat16, enabled=not bf16):
            expected = scores(own, ids[:-1])[len(request.prompt_ids) - 1 :].float().log_softmax(-1)
        tokens = torch.tensor(completions[0].token_ids)
        gap = (expected.gather(-1, tokens[:, None]).squeeze(-1) - torch.tensor(completions[0].logprobs)).abs()
        assert gap.max() < 0.1  # bf16 keeps 8 bits: scores of size 4 are known to 0.015, through three layers


def test_a_model_that_recomputes_in_training_generates_the_same(model: Transformer) -> None:
    own = build(model.config, seed=1)
    own.run_block = run_recomputed
    requests = random_requests(4, seed=8, temperature=1.0)
    assert tokens_of(Engine(own).generate(requests)) == tokens_of(Engine(model).generate(requests))
    assert all(parameter.requires_grad for parameter in own.parameters())


def test_progress_is_told_to_the_end(model: Transformer) -> None:
    class Bar:
        seen: list[int]

        def __init__(self) -> None:
            self.seen = []

        def update(self, done: int, text: str = "") -> None:
            self.seen.append(done)

    bar = Bar()
    requests = random_requests(5, seed=9)
    Engine(model, max_batch=2).generate(requests, bar)
    assert bar.seen == sorted(bar.seen)
    assert bar.seen[-1] == sum(request.n for request in requests)
