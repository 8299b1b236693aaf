"""A dry run from a few layers and micro-batches counts, to the byte, what the whole one does."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from sekkei.model.config import ModelConfig
from sekkei.parallel import zero
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job
from sekkei.prove import repeated
from sekkei.prove.repeated import foretell
from sekkei.prove.trace import trace

# (1) of these shapes real tensors are counted like fake ones (test_trace.py), in a seventh of the time
MODEL = ModelConfig(
    hidden_size=64, num_layers=5, num_heads=4, num_kv_heads=4, intermediate_size=640, vocab_size=512, max_context=64
)


@pytest.mark.parametrize(
    ("layout", "layers", "passes", "rank"),
    [
        (Layout(dp=4, zero=3, recompute="full"), 6, 2, 0),
        (Layout(dp=2, tp=2, zero=2, recompute="selective"), 6, 2, 3),
        (Layout(dp=4, weights="bf16"), 6, 2, 0),
        (Layout(pp=2, dp=2, zero=1, weights="bf16"), 4, 10, 0),
        (Layout(pp=2, schedule="gpipe"), 10, 9, 1),
        (Layout(pp=2, schedule="zero_bubble"), 4, 14, 0),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_repeats_need_not_be_run(
    monkeypatch: pytest.MonkeyPatch, layout: Layout, layers: int, passes: int, rank: int
) -> None:
    monkeypatch.setattr(zero, "BUCKET_ELEMENTS", 1 << 14)  # as in a large model, a matrix fills one
    monkeypatch.setattr(repeated, "BUCKET_ELEMENTS", 1 << 14)
    monkeypatch.setattr("sekkei.prove.trace._without_values", contextlib.nullcontext)  # (1)
    model = replace(MODEL, num_layers=layers)
    job = Job(model=model, context=64, rows=passes * layout.dp, weights=layout.weights)
    found, run = foretell(job, layout, rank)
    whole = trace(job, layout, rank)
    assert (found.held, found.peak) == (whole.held, whole.peak)
    assert len(run) > 1
    assert all(short.model.num_layers < layers or short.passes(layout) < passes for short in run)


def test_what_is_little_or_unequal_is_run_as_it_is() -> None:
    job = Job(model=MODEL, context=64, rows=4)
    assert foretell(job, Layout(dp=4))[1] == [job], "a bucket holds several layers"
