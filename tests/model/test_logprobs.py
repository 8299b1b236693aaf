"""Log-probabilities and entropies, with their gradients, against plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sekkei.model import logprobs
from sekkei.model.logprobs import IGNORED, label_logprobs


def plainly(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scores = (hidden @ weight.T / temperature).log_softmax(-1)
    scored = labels != IGNORED
    picked = scores.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return picked * scored, -(scores.exp() * scores).sum(-1) * scored


def random_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 7, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64) / 2
    labels = torch.randint(0, 50, (3, 7), generator=generator)
    labels[0, 2:5] = IGNORED
    labels[2] = IGNORED
    return hidden, weight, labels


@pytest.mark.parametrize("sizes", [(1 << 23, 1 << 25), (1 << 23, 0), (150, 1 << 25), (150, 0)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0), (0.4, -0.3)])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], temperature: float, parts: tuple[float, float]
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", sizes[0])
    monkeypatch.setattr(logprobs, "KEEP_ELEMENTS", sizes[1])
    found, expected = [], []
    upstream = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for function, results in ((label_logprobs, found), (plainly, expected)):
        hidden, weight, labels = random_case()
        hidden.requires_grad_()
        weight.requires_grad_()
        logprob, entropy = function(hidden, weight, labels, temperature)
        (parts[0] * upstream[0] * logprob + parts[1] * upstream[1] * entropy).sum().backward()
        results += [logprob.detach(), entropy.detach(), hidden.grad, weight.grad]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_logits_are_kept_or_recomputed_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels = random_case()
    saved: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    for keep in (1 << 25, 0):
        monkeypatch.setattr(logprobs, "KEEP_ELEMENTS", keep)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            label_logprobs(hidden.requires_grad_(), weight, labels)
        assert ((11, 50) in saved) == (keep > 0)  # 11 scored tokens


def test_without_entropy_the_rest_is_the_same() -> None:
    results = []
    for with_entropy in (True, False):
        hidden, weight, labels = random_case()
        hidden.requires_grad_()
        logprob, entropy = label_logprobs(hidden, weight, labels, 0.7, with_entropy)
        logprob.square().sum().backward()
        assert bool(entropy.any()) is with_entropy
        results.append([logprob.detach(), hidden.grad])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-14)


def test_nothing_scored_gives_zeros_and_no_gradient() -> None:
    hidden, weight, labels = random_case()
    hidden.requires_grad_()
    logprob, entropy = label_logprobs(hidden, weight, torch.full_like(labels, IGNORED))
    (logprob + entropy).sum().backward()
    assert not logprob.any()
    assert not entropy.any()
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_autocast_computes_low_and_returns_float32() -> None:
    hidden, weight, labels = (x.float() if x.is_floating_point() else x for x in random_case())
    exact = plainly(hidden, weight, labels, 1.0)
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = label_logprobs(hidden, weight, labels)
    found[0].sum().backward()
    assert found[0].dtype == found[1].dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    torch.testing.assert_close(list(found), list(exact), rtol=0, atol=0.1)
    assert not torch.equal(found[0], exact[0])
