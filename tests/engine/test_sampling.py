"""Draws: the right distribution, the right cuts, the right log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sekkei.core.errors import UserError
from sekkei.core.seed import uniform
from sekkei.engine.sampling import BLOCK, cut_weights, draw


def repeated(logits: torch.Tensor, draws: int, **sampling: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw `draws` times from one row of logits, with uniforms 0, 1, 2, … of one seed."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | sampling
    columns = {name: np.full(draws, value) for name, value in settings.items()}
    uniforms = uniform(np.zeros(draws, np.int64), np.arange(draws))
    tokens, logprobs = draw(logits.expand(draws, -1), uniforms, **columns)
    return tokens.numpy(), logprobs.numpy()


def chi_square(tokens: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """The statistic and its degrees of freedom; rare tokens are pooled so that every cell expects >= 5."""
    counts = np.bincount(tokens, minlength=len(probabilities)).astype(float)
    expected = probabilities * len(tokens)
    common = expected >= 5
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    filled = expected > 0
    return float(((counts[filled] - expected[filled]) ** 2 / expected[filled]).sum()), int(filled.sum()) - 1


@pytest.mark.parametrize("vocabulary", [7, BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_draws_follow_the_distribution(vocabulary: int, temperature: float) -> None:
    logits = 1.5 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    tokens, logprobs = repeated(logits, 20_000, temperature=temperature)
    expected = (logits[0].double() / temperature).log_softmax(-1)
    statistic, freedom = chi_square(tokens, expected.exp().numpy())
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # mean and 4 standard deviations of chi-square
    np.testing.assert_allclose(logprobs, expected[tokens], atol=1e-5)


def test_the_statistic_notices_a_wrong_distribution() -> None:
    logits = 1.5 * torch.randn(1, 200, generator=torch.Generator().manual_seed(1))
    tokens, _ = repeated(logits, 20_000, temperature=1.1)
    statistic, freedom = chi_square(tokens, logits[0].double().softmax(-1).numpy())
    assert statistic > freedom + 4 * (2 * freedom) ** 0.5


def test_the_inverse_is_exact_at_every_boundary() -> None:
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.0, 0.25, 0.0]]).log()
    below = np.nextafter
    uniforms = np.array([0.0, below(0.25, 0), 0.25, below(0.75, 0), 0.75, 1 - 2**-53])
    rows = len(uniforms)
    tokens, _ = draw(logits.expand(rows, -1), uniforms, np.ones(rows), np.zeros(rows, np.int64), np.ones(rows))
    assert tokens.tolist() == [0, 0, 2, 2, 4, 4]


def test_a_large_vocabulary_equals_one_long_sum() -> None:
    rows, vocabulary = 64, 50_257
    logits = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(2))
    uniforms = uniform(np.arange(rows), 0)
    tokens, _ = draw(logits, uniforms, np.ones(rows), np.zeros(rows, np.int64), np.ones(rows))
    running = (logits - logits.amax(-1, keepdim=True)).exp().double().cumsum(-1)
    direct = torch.searchsorted(running, torch.from_numpy(uniforms)[:, None] * running[:, -1:], right=True)
    assert tokens.tolist() == direct.squeeze(-1).tolist()


def test_top_k_and_top_p_keep_what_they_say() -> None:
    weights = torch.tensor([[1.0, 4.0, 1.0, 3.0, 1.0]]).expand(6, -1)
    kept = cut_weights(weights, np.array([2, 0, 0, 3, 2, 1]), np.array([1.0, 0.4, 0.41, 1.0, 0.5, 0.01])) > 0
    assert [row.nonzero().flatten().tolist() for row in kept] == [
        [1, 3],
        [1],
        [1, 3],
        [0, 1, 3],  # a tie goes to the lower id
        [1],  # 4 / 7 of what top-k left already holds 0.5
        [1],
    ]


@pytest.mark.parametrize("cut", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 20, "top_p": 0.8}])
def test_cut_draws_follow_the_renormalised_distribution(cut: dict[str, float]) -> None:
    logits = 1.5 * torch.randn(1, 150, generator=torch.Generator().manual_seed(3))
    tokens, logprobs = repeated(logits, 20_000, **cut)
    full = logits[0].double().softmax(-1)
    order = full.argsort(descending=True)[: int(cut.get("top_k", 150))]
    before = full[order].cumsum(0) - full[order]
    order = order[before < cut.get("top_p", 1.0) * full[order].sum()]
    expected = torch.zeros_like(full).index_copy(0, order, full[order] / full[order].sum())
    assert set(tokens) <= set(order.tolist())
    statistic, freedom = chi_square(tokens, expected.numpy())
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    np.testing.assert_allclose(logprobs, full.log()[tokens], atol=1e-5)  # before the cut


def test_rows_with_different_settings_do_not_disturb_each_other() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = 12
    logits = torch.randn(rows, 90, generator=generator)
    temperature = np.tile([0.0, 0.5, 1.0], 4)
    top_k, top_p = np.repeat([0, 3], 6), np.tile([1.0, 0.7], 6)
    uniforms = uniform(np.arange(rows), 5)
    together = draw(logits, uniforms, temperature, top_k, top_p)
    for i in range(rows):
        own = slice(i, i + 1)
        alone = draw(logits[own], uniforms[own], temperature[own], top_k[own], top_p[own])
        assert together[0][i] == alone[0][0]
        torch.testing.assert_close(together[1][i], alone[1][0])
    greedy = temperature == 0
    assert together[0][greedy].tolist() == logits.argmax(-1)[greedy].tolist()
    expected = logits.log_softmax(-1).amax(-1)
    torch.testing.assert_close(together[1][greedy], expected[greedy])


def test_broken_scores_are_refused() -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        draw(logits, np.zeros(2), np.ones(2), np.zeros(2, np.int64), np.ones(2))
