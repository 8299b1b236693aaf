"""The planner's closed form of a rank's peak is what the dry run counts, to 1%."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sekkei.model.config import ModelConfig
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job
from sekkei.parallel.peak import instants, rank_bytes
from sekkei.prove.trace import trace

LONG = ModelConfig(
    hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=4, intermediate_size=704, vocab_size=4096, max_context=512
)
GROUPED = replace(LONG, num_heads=8, num_kv_heads=4, head_dim=24, qk_norm=True, vocab_size=8192, max_context=1024)
SHORT = replace(LONG, hidden_size=512, num_heads=8, num_kv_heads=8, intermediate_size=1408, vocab_size=2048)
JOB = Job(model=LONG, context=512, rows=32, micro_rows=4, weights="fp32")
GROUP = Job(model=GROUPED, context=1024, rows=16, micro_rows=2, weights="fp32")
BRIEF = Job(model=SHORT, context=256, rows=32, micro_rows=4, weights="fp32")  # a CPU writes scores of such rows out
SPLIT = Job(  # between tensor-parallel ranks the stream is wider than what they compute
    model=replace(LONG, num_heads=8, num_kv_heads=8, intermediate_size=512), context=512, rows=64, micro_rows=4
)
HEAD = Job(model=replace(LONG, vocab_size=32768), context=512, rows=16, micro_rows=1)  # it fills a bucket
CASES = (  # job, layout, rank
    (JOB, Layout(dp=4, zero=2, weights="bf16"), 0),
    (JOB, Layout(dp=4, zero=3, weights="bf16", recompute="full"), 0),
    (JOB, Layout(tp=4, recompute="full"), 0),
    (JOB, Layout(dp=2, cp=2, zero=1), 0),
    (JOB, Layout(pp=4, weights="bf16"), 0),
    (JOB, Layout(pp=4), 3),
    (JOB, Layout(pp=2, dp=2, schedule="zero_bubble", weights="bf16"), 3),
    (JOB, Layout(pp=2, tp=2, schedule="interleaved", sequence_parallel=True), 3),
    (GROUP, Layout(dp=4, zero=3), 0),
    (GROUP, Layout(tp=2, dp=2, zero=2, sequence_parallel=True), 0),
    (GROUP, Layout(pp=2, dp=2, schedule="gpipe"), 3),
    (GROUP, Layout(pp=2, dp=2, schedule="zero_bubble"), 3),
    (JOB, Layout(pp=2, dp=2, schedule="zero_bubble", recompute="selective"), 3),
    (BRIEF, Layout(dp=4, zero=2, weights="bf16", recompute="selective"), 0),
    (BRIEF, Layout(pp=2, dp=2, zero=3, schedule="interleaved"), 3),
    (SPLIT, Layout(dp=2, tp=4, zero=3, weights="bf16", recompute="full"), 0),
    (SPLIT, Layout(pp=2, dp=2, tp=4, weights="bf16"), 0),
    (SPLIT, Layout(tp=8, sequence_parallel=True, recompute="full"), 0),
    (HEAD, Layout(dp=4, zero=2, weights="bf16"), 0),
    (HEAD, Layout(pp=2, dp=2, zero=2, weights="bf16"), 3),
    (HEAD, Layout(dp=2, tp=2, zero=3, weights="bf16"), 0),
)
MORE = (  # of kinds that stand above
    (JOB, Layout(dp=4, recompute="full"), 0),
    (JOB, Layout(pp=2, dp=2, schedule="zero_bubble"), 0),
    (GROUP, Layout(pp=2, dp=2, schedule="interleaved"), 0),
    (GROUP, Layout(pp=2, dp=2, schedule="zero_bubble"), 0),
    (BRIEF, Layout(dp=4, zero=2), 0),
    (BRIEF, Layout(pp=2, dp=2, zero=3, schedule="interleaved"), 0),
    (BRIEF, Layout(pp=2, dp=2, recompute="full"), 3),
    (BRIEF, Layout(pp=2, dp=2, schedule="zero_bubble", recompute="selective"), 0),
    (GROUP, Layout(pp=2, dp=2, schedule="zero_bubble", recompute="selective", weights="bf16"), 3),
    (SPLIT, Layout(dp=2, tp=8, recompute="selective"), 0),
)


@pytest.mark.parametrize(
    ("job", "layout", "rank"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
    ids=lambda x: getattr(x, "name", None),
)
def test_the_closed_form_is_the_dry_run(job: Job, layout: Layout, rank: int) -> None:
    job = replace(job, weights=layout.weights)
    assert sum(rank_bytes(job, layout, rank, "cpu").values()) == pytest.approx(trace(job, layout, rank).peak, rel=0.01)


def test_the_peak_is_the_largest_instant() -> None:
    layout = Layout(pp=2, dp=2)
    first, last = (instants(JOB, layout, rank) for rank in (0, 2))
    assert "loss" not in first
    assert set(last) == {"pass", "scores", "loss", "early", "block", "sums", "update"}
    assert rank_bytes(JOB, layout, 2) == max(last.values(), key=lambda parts: sum(parts.values()))
    assert last["sums"]["activations"] == last["update"]["activations"] == 0 < last["loss"]["activations"]
