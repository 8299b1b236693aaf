"""Log-probabilities over a cut vocabulary: those of the whole one, chunked or not, and without ever all logits."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sekkei.model.logprobs import label_logprobs
from sekkei.parallel import vocab
from sekkei.parallel.live_bytes import LiveBytes
from sekkei.parallel.vocab import VocabLogprobs
from sekkei.prove.spawned import spawned

B, T, D, V = 3, 20, 8, 24
CASES = {"one chunk": (1 << 20, 1 << 25), "chunks, kept": (60, 1 << 25), "chunks, made again": (60, 0)}


def _inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weights, labels of which some are not scored, and what flows back to both results."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, V, (B, T), generator=generator)
    labels[torch.rand(B, T, generator=generator) < 0.3] = -100
    pulls = [torch.randn(B, T, generator=generator, dtype=torch.float64) for _ in range(2)]
    return hidden.to(dtype), weight.to(dtype), labels, pulls[0].to(dtype), pulls[1].to(dtype)


def _errors(dtype_name: str) -> dict[str, float]:
    """Of two ranks: the largest relative error of any result and gradient, by case and entropy."""
    dtype = getattr(torch, dtype_name)
    hidden, weight, labels, pull, other = _inputs(dtype)
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    assert group is not None
    found = {}
    for with_entropy in (True, False):
        h, w = hidden.double().clone().requires_grad_(), weight.double().clone().requires_grad_()
        wanted = label_logprobs(h, w, labels, 0.7, with_entropy)
        ((wanted[0] * pull).sum() + (wanted[1] * other).sum()).backward()
        own = slice(rank * V // size, (rank + 1) * V // size)
        for name, (elements, keep) in CASES.items():
            mine, part = hidden.clone().requires_grad_(), weight[own].clone().requires_grad_()
            with patch.multiple(vocab, CHUNK_ELEMENTS=elements, KEEP_ELEMENTS=keep):
                got = VocabLogprobs(rank * V // size, group)(mine, part, labels, 0.7, with_entropy)
                ((got[0] * pull).sum() + (got[1] * other).sum()).backward()
            assert h.grad is not None and w.grad is not None and mine.grad is not None and part.grad is not None  # noqa: PT018
            sides = [(got[0], wanted[0]), (got[1], wanted[1]), (mine.grad, h.grad), (part.grad, w.grad[own])]
            found[f"{name}, {'with' if with_entropy else 'without'} entropy"] = max(
                float((x - y).detach().norm() / y.detach().norm().clamp(min=1e-12)) for x, y in sides
            )
    return found


def _peaks() -> dict[str, float]:
    """Bytes alive at most, forward and backward, beside the inputs."""
    tokens, width, rows = 512, 16, 4096
    hidden, weight = torch.randn(tokens, width), torch.randn(rows, width)
    labels = torch.randint(0, rows, (tokens,))
    found: dict[str, float] = {}
    for name, keep in (("kept", 1 << 25), ("made again", 0)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with patch.multiple(vocab, CHUNK_ELEMENTS=rows * 16, KEEP_ELEMENTS=keep), LiveBytes([h, w, labels]) as live:
            before = live.live
            logprobs, _ = VocabLogprobs(rows * dist.get_rank(), dist.group.WORLD)(h, w, labels, 1.0, False)  # type: ignore[arg-type]
            logprobs.sum().backward()
            found[name] = live.peak - before
    return found


def _measured() -> dict[str, dict[str, float]]:
    return {"float64": _errors("float64"), "float32": _errors("float32"), "peaks": _peaks()}


@pytest.fixture(scope="module")
def measured() -> list[dict[str, dict[str, float]]]:
    """Of two ranks."""
    return spawned(_measured, 2)


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-13), ("float32", 1e-5)])
def test_two_ranks_equal_one(measured: list[dict[str, dict[str, float]]], dtype: str, limit: float) -> None:
    for found in measured:
        assert len(found[dtype]) == 2 * len(CASES)
        assert max(found[dtype].values()) < limit, found[dtype]


def test_logits_never_exist_whole(measured: list[dict[str, dict[str, float]]]) -> None:
    whole = 512 * 4096 * 4
    for found in measured:
        assert found["peaks"]["kept"] > whole
        assert found["peaks"]["made again"] < 0.3 * whole
