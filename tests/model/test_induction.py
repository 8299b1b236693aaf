"""The seeded circuit, read from an untrained model's attention; the seeds depend on name and seed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sekkei.core.errors import ConfigError
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build, initialize
from sekkei.model.transformer import Transformer

CONFIG = ModelConfig(
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=128,
    vocab_size=500,
    qk_norm=True,
    init="induction",
)
LENGTH = 24


class Watching(DenseAttend):
    """Dense attention that keeps the weights of every layer, [N, T, T], mean over rows."""

    def __init__(self) -> None:
        super().__init__(None)
        self.weights: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
        self.weights.append(scores.masked_fill(~self._allowed(q), -torch.inf).softmax(-1).mean(0))
        return super().__call__(q, k, v, layer)


@torch.no_grad()
def watch(config: ModelConfig) -> tuple[Watching, Tensor, Tensor]:
    """Attention, ids [B, 2 L] of random tokens said twice, and log-probabilities of the next ones."""
    model = build(config, 0)
    ids = torch.randint(config.vocab_size, (16, LENGTH), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    attend = Watching()
    hidden = model.hidden(ids, torch.arange(2 * LENGTH).expand(len(ids), -1), attend)
    logprobs = model.logits(hidden)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return attend, ids, logprobs


def at_distance(weights: Tensor, distance: int) -> Tensor:
    """[N] mean weight that tokens of the second half give to the one `distance` before them."""
    t = torch.arange(LENGTH + 1, 2 * LENGTH)
    return weights[:, t, t - distance].mean(-1)


def test_the_first_layer_looks_one_back_and_later_ones_at_what_followed() -> None:
    attend, _, logprobs = watch(CONFIG)
    back = at_distance(attend.weights[0], 1)
    assert back[:2].min() > 0.7  # the query heads of the first key/value head
    assert back[2:].max() < 0.15
    uniform = 1 / (1.5 * LENGTH)
    for weights in attend.weights[1:]:
        followed = at_distance(weights, LENGTH - 1)
        assert followed[:2].min() > 1.5 * uniform
        assert followed[:2].min() > followed[2:].max()
    assert logprobs[:, LENGTH:].mean() > logprobs[:, : LENGTH - 1].mean() + 0.05  # it already leans towards copying
    usual, _, logprobs = watch(replace(CONFIG, init="normal"))
    assert at_distance(usual.weights[0], 1).max() < 0.2
    assert abs(float(logprobs[:, LENGTH:].mean() - logprobs[:, : LENGTH - 1].mean())) < 0.05


def test_parts_of_a_model_get_the_same_seeds() -> None:
    whole = build(CONFIG, 3)
    part = Transformer(CONFIG, heads=("lm",), layers=(2,), embedding=False)
    initialize(part, 3)
    for name, parameter in part.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name
    assert whole.embed is not None
    assert whole.lm_head is not None
    assert whole.lm_head.weight is not whole.embed.weight
    assert not torch.equal(build(CONFIG, 4).embed.weight, whole.embed.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("change", [{"qk_norm": False}, {"tied_embeddings": True}, {"head_dim": 128}])
def test_models_that_cannot_hold_the_seeds_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"init: 'induction' needs qk_norm: true"):
        replace(CONFIG, **change)  # type: ignore[arg-type]
