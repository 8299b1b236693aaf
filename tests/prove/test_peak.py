"""The planner's closed form of a rank's peak is what the dry run counts, to 1%."""

from __future__ import annotations

import pytest

from sekkei.model.config import ModelConfig
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job
from sekkei.parallel.peak import instants, rank_bytes
from sekkei.prove.trace import trace

MODEL = ModelConfig(
    hidden_size=256, num_layers=8, num_heads=4, num_kv_heads=4, intermediate_size=704, vocab_size=4096, max_context=512
)
JOB = Job(model=MODEL, context=512, rows=64, micro_rows=4, weights="fp32")
BF16 = Job(model=MODEL, context=512, rows=64, micro_rows=4, weights="bf16")
CASES = (  # job, layout, rank
    (JOB, Layout(dp=4), 0),
    (BF16, Layout(dp=4, zero=2, weights="bf16"), 0),
    (BF16, Layout(dp=4, zero=3, weights="bf16"), 0),
    (BF16, Layout(dp=4, zero=3, weights="bf16", recompute="full"), 0),
    (JOB, Layout(dp=4, zero=2, recompute="full"), 0),
    (JOB, Layout(dp=4, recompute="full"), 0),
    (JOB, Layout(tp=4, recompute="full"), 0),
    (JOB, Layout(cp=4), 0),
    (BF16, Layout(pp=4, weights="bf16"), 0),
    (JOB, Layout(pp=4), 3),
)


@pytest.mark.parametrize(("job", "layout", "rank"), CASES, ids=lambda x: getattr(x, "name", None))
def test_the_closed_form_is_the_dry_run(job: Job, layout: Layout, rank: int) -> None:
    assert sum(rank_bytes(job, layout, rank, "cpu").values()) == pytest.approx(trace(job, layout, rank).peak, rel=0.01)


def test_the_peak_is_the_largest_instant() -> None:
    layout = Layout(pp=2, dp=2)
    first, last = (instants(JOB, layout, rank) for rank in (0, 2))
    assert "loss" not in first
    assert set(last) == {"scores", "loss", "block", "sums", "update"}
    assert rank_bytes(JOB, layout, 2) == max(last.values(), key=lambda parts: sum(parts.values()))
    assert last["sums"]["activations"] == last["update"]["activations"] == 0 < last["loss"]["activations"]
