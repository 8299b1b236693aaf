"""The engine's own way through the layers: shared storage, tiles, and the last layer for some tokens only."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sekkei.engine import forward
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer

GREEDY = Sampling(temperature=0.0, max_tokens=6)


def small(**settings: object) -> Transformer:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48}
    return build(ModelConfig(**{**sizes, "vocab_size": 90, "max_context": 96, **settings}), seed=2)


def random_requests(count: int) -> list[Request]:
    rng = random.Random(count)
    lengths = (1, 2, 17, 40, 70)
    prompts = [tuple(rng.randrange(90) for _ in range(rng.choice(lengths))) for _ in range(count)]
    return [Request(prompt_ids=prompt, sampling=Sampling(temperature=0.0, max_tokens=12), n=2) for prompt in prompts]


@torch.no_grad()
def check_greedy(model: Transformer, request: Request, found: Completion) -> None:
    """Every token is that of one pass of the model over the whole text, up to rounding."""
    ids = torch.tensor([[*request.prompt_ids, *found.token_ids]])
    scores = model.logits(model.hidden(ids, torch.arange(ids.shape[1])[None], DenseAttend(None)))[0]
    scores = scores[len(request.prompt_ids) - 1 : -1]
    drawn = scores.gather(-1, torch.tensor(found.token_ids)[:, None]).squeeze(-1)
    assert (scores.amax(-1) - drawn).max() < 1e-4
    expected = drawn - scores.logsumexp(-1)
    assert (torch.tensor(found.logprobs) - expected).abs().max() < 1e-4


def loss_of(model: Transformer) -> torch.Tensor:
    ids = torch.arange(1, 20)[None]
    return model.logits(model.hidden(ids, torch.arange(19)[None], DenseAttend(None))).logsumexp(-1).sum()


def test_a_trainer_and_the_engine_share_the_weights(tmp_path: Path) -> None:
    model, plain = small(), small()
    engine = Engine(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name))
    attention = model.layers["0"].attention
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    for one in (model, plain):
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-2)
        loss_of(one).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name
    engine.refresh(None)
    request = Request(prompt_ids=(3, 4, 5, 6), sampling=GREEDY)
    ((found,),) = engine.generate([request])
    check_greedy(plain, request, found)
    safetensors.torch.save_file(dict(model.named_parameters()), tmp_path / "all.safetensors")
    kept = safetensors.torch.load_file(tmp_path / "all.safetensors")
    assert all(torch.equal(kept[name], parameter) for name, parameter in plain.named_parameters())


def test_weights_that_were_moved_are_found_again_by_refresh() -> None:
    model = small()
    engine = Engine(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.flip(0).clone()
    engine.refresh(None)
    request = Request(prompt_ids=(3, 4, 5, 6), sampling=GREEDY)
    check_greedy(model, request, engine.generate([request])[0][0])


def test_two_engines_share_one_storage() -> None:
    model = small()
    Engine(model)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    Engine(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"tied_embeddings": True}, {"num_layers": 1}])
def test_tiles_do_not_change_what_is_drawn(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(**settings)
    requests = random_requests(5)
    whole = Engine(model).generate(requests)
    for request, group in zip(requests, whole, strict=True):
        check_greedy(model, request, group[0])
    monkeypatch.setattr(forward, "TILE", 5)
    for a, b in zip(Engine(model).generate(requests), whole, strict=True):
        assert [one.token_ids for one in a] == [one.token_ids for one in b]


def test_the_last_layer_of_a_prompt_is_the_same_for_all_tokens_and_for_the_last() -> None:
    """A request for the prompt's scores takes the long way, for all pieces of its pass."""
    model = small(qk_norm=True)
    plain = [Request(prompt_ids=tuple(range(1, n)), sampling=GREEDY, seed=n) for n in (3, 30, 70)]
    scored = Request(prompt_ids=(8, 9, 10), sampling=Sampling(temperature=0.0, max_tokens=6, prompt_logprobs=True))
    short, long = Engine(model).generate(plain), Engine(model).generate([*plain, scored])
    for (a,), (b,) in zip(short, long):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_computes_as_the_model_does(dtype: torch.dtype) -> None:
    """Rollouts in the trainer's precision: log-probabilities of a whole pass of the model under the same autocast."""
    model = small(qk_norm=True)
    request = Request(prompt_ids=tuple(range(1, 30)), sampling=Sampling(max_tokens=12), seed=1)
    ((found,),) = Engine(model, dtype=dtype).generate([request])
    ids = torch.tensor([[*request.prompt_ids, *found.token_ids]])
    with torch.no_grad(), torch.autocast("cpu", dtype):
        scores = model.logits(model.hidden(ids, torch.arange(ids.shape[1])[None], DenseAttend(None)))[0]
    expected = scores.float().log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
    expected = expected.gather(-1, torch.tensor(found.token_ids)[:, None]).squeeze(-1)
    assert (torch.tensor(found.logprobs) - expected).abs().max() < 0.05


def test_experts_are_run_as_the_model_runs_them() -> None:
    from sekkei.model.config import MoEConfig

    model = small(moe=MoEConfig(experts=4, active=2, intermediate_size=16, shared=1, first_dense=1), num_layers=3)
    requests = random_requests(4)
    for request, group in zip(requests, Engine(model).generate(requests), strict=True):
        check_greedy(model, request, group[0])
