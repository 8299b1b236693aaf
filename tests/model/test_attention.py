"""Both attention paths against a loop that follows the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sekkei.model import attention
from sekkei.model.attention import DenseAttend, explicit_attention
from sekkei.model.choices import choose_path

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1], [0] * 11, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, -1]])


def by_definition(q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None) -> Tensor:
    """One query at a time, over the keys that it may see."""
    out = torch.empty_like(q)
    groups = q.shape[1] // k.shape[1]
    for b, head, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen = [s for s in range(t + 1) if segments is None or segments[b, s] == segments[b, t]]
        keys, values = k[b, head // groups, seen], v[b, head // groups, seen]
        weights = torch.softmax(keys @ q[b, head, t] / math.sqrt(q.shape[3]), dim=0)
        out[b, head, t] = weights @ values
    return out


def random_qkv(heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(heads * 10 + kv_heads)
    shapes = [(3, n, 11, 8) for n in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("path", ["explicit", "sdpa"])
@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_a_path_equals_the_definition(
    monkeypatch: pytest.MonkeyPatch, path: str, segments: Tensor | None, heads: int, kv_heads: int
) -> None:
    monkeypatch.setattr(attention, "choose_path", lambda *shape: path)
    q, k, v = random_qkv(heads, kv_heads)
    expected = by_definition(q, k, v, segments)
    torch.testing.assert_close(DenseAttend(segments)(q, k, v, 0), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_the_paths_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch, segments: Tensor | None) -> None:
    gradients = {}
    for path in ("explicit", "sdpa"):
        monkeypatch.setattr(attention, "choose_path", lambda *shape, path=path: path)
        inputs = [x.requires_grad_() for x in random_qkv(4, 2)]
        DenseAttend(segments)(*inputs, 0).square().sum().backward()
        gradients[path] = [x.grad for x in inputs]
    torch.testing.assert_close(gradients["explicit"], gradients["sdpa"], rtol=0, atol=1e-12)


def test_the_table() -> None:
    assert choose_path("cpu", True, 256) == "explicit"
    assert choose_path("cpu", True, 257) == "sdpa"
    assert choose_path("cpu", False, 64) == "sdpa"
    assert choose_path("cuda", True, 64) == "sdpa"


def test_the_explicit_path_runs_in_bfloat16() -> None:
    q, k, v = random_qkv(4, 2)
    expected = by_definition(q, k, v, SEGMENTS)
    low = DenseAttend(SEGMENTS)(*(x.to(torch.bfloat16) for x in (q, k, v)), 0)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected, rtol=0, atol=0.05)


def test_explicit_attention_takes_one_query_over_many_keys() -> None:
    q, k, v = random_qkv(4, 2)
    last = explicit_attention(q[:, :, -1:], k, v, torch.zeros(1, 1, 1, 11, dtype=torch.float64))
    torch.testing.assert_close(last, by_definition(q, k, v, None)[:, :, -1:], rtol=0, atol=1e-12)
