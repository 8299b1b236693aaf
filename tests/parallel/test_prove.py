"""Every layout computes what one process computes, in float64, and every planted fault is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.parallel.cost import data_bytes
from sekkei.parallel.layout import CHUNKS, Layout
from sekkei.parallel.memory import Job
from sekkei.parallel.traffic import Traffic
from sekkei.prove import case
from sekkei.prove.certificate import NAMED, Certificate, prove, rows_for, rows_of
from sekkei.prove.faults import FAULTS
from sekkei.prove.objectives import OBJECTIVES, TOKENS
from sekkei.prove.worker import LIMIT, Row

# one of each kind: `sekkei prove` has more
TESTED = (
    Layout(dp=4),
    Layout(dp=4, zero=1),
    Layout(dp=4, zero=2),
    Layout(dp=4, zero=3),
    Layout(dp=4, replicate=2, zero=3),
    Layout(tp=4, sequence_parallel=True),
    Layout(cp=4),
    Layout(dp=2, tp=2, zero=2),
    Layout(cp=2, tp=2, zero=3),
    Layout(pp=4),
    Layout(pp=2, tp=2, sequence_parallel=True, schedule="interleaved"),
    Layout(pp=2, dp=2, zero=2, schedule="zero_bubble"),
    Layout(pp=2, dp=2, zero=3, schedule="gpipe"),
)


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    rows = [
        *(Row(layout) for layout in TESTED),
        Row(Layout(pp=2, tp=2, recompute="full")),
        Row(Layout(dp=2, tp=2, zero=2), kind="muon"),
        Row(Layout(cp=2, tp=2), dtype="fp32"),
        Row(Layout(dp=2, cp=2, zero=2), "dpo"),
        Row(Layout(pp=2, cp=2), "dpo"),
    ]
    return prove(rows, 4, lambda done, what: None)


def test_every_layout_equals_one_process(certificate: Certificate) -> None:
    for row in certificate.rows:
        assert row["passed"], row
        assert row["grad_rel_max"] < (1e-5 if "fp32" in row["layout"] else 1e-13), row  # far below: no tuning
        assert row["param_rel_max"] < 1e-13, row
    assert {row["objective"] for row in certificate.rows} == {"tokens", "dpo"}
    assert certificate.holds


def test_every_planted_fault_is_noticed(certificate: Certificate) -> None:
    assert [name for name, _ in certificate.faults] == [fault.name for fault in FAULTS]
    assert len(FAULTS) >= 6
    for name, row in certificate.faults:
        assert not row["passed"], name
        assert max(row["grad_rel_max"], row["norm_diff"]) > 1e6 * LIMIT, name


def test_a_certificate_with_an_unnoticed_fault_does_not_hold(certificate: Certificate) -> None:
    name, row = certificate.faults[0]
    assert not Certificate(certificate.rows, [(name, {**row, "passed": True})]).holds
    assert not Certificate([{**certificate.rows[0], "passed": False}], []).holds


def test_bytes_are_divided_as_zero_says(certificate: Certificate) -> None:
    rows = {row["layout"]: row for row in certificate.rows}
    whole = rows["dp4"]
    for name, params, grads, optim in (("zero2", 1, 4, 4), ("zero3", 4, 4, 4)):
        row = rows[f"dp4 {name}"]
        assert whole["bytes_params"] == pytest.approx(params * row["bytes_params"], rel=1e-3)
        assert whole["bytes_grads"] == pytest.approx(grads * row["bytes_grads"], rel=1e-3)
        assert whole["bytes_optim"] == pytest.approx(optim * row["bytes_optim"], rel=1e-3)
    assert whole["bytes_optim"] == pytest.approx(4 * rows["dp4 zero1"]["bytes_optim"], rel=1e-3)
    assert rows["dp4 zero1"]["bytes_params"] == whole["bytes_params"]


def test_what_data_ranks_send_is_what_the_planner_prices(certificate: Certificate) -> None:
    """To the byte, but for a handful of scalars: counts, losses, norms."""
    rows = {row["layout"]: row for row in certificate.rows if row["objective"] == "tokens"}
    for layout in TESTED:
        if layout.dp * layout.cp * layout.replicate == layout.world * layout.replicate and layout.cp == 1:
            job = Job(model=case.CONFIG, context=TOKENS, rows=8, micro_rows=2, weights="fp64")
            priced = sum(data_bytes(job, layout).values())
            assert 0 <= rows[layout.name]["bytes_sent"] - priced < 100, layout.name


def test_a_recipe_s_own_layout_or_one_of_each_kind() -> None:
    model = replace(case.CONFIG, num_kv_heads=1)
    assert [row.layout.name for row in rows_of(model, Layout(), 4)] == ["dp2 zero2", "dp2 zero3", "cp2", "pp2 1f1b"]
    assert [row.name for row in rows_of(case.CONFIG, Layout(tp=4), 4)] == ["tp4"]
    assert rows_of(model, Layout(dp=2), 2)[0].config is model
    with pytest.raises(UserError, match="needs --nproc 8 or more, got 4"):
        rows_of(case.CONFIG, Layout(dp=8), 4)
    with pytest.raises(ConfigError, match=r"tp=4 must divide model\.num_kv_heads=1"):
        rows_of(model, Layout(tp=4), 4)


def test_a_collective_that_is_not_counted_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"c10d\.gather_ is not counted"):
        Traffic()._count("gather_", ())


def test_the_named_rows() -> None:
    assert len(NAMED) >= 24
    named = rows_for(4, False)
    assert {row.layout.world for row in named} == {2, 4}
    assert {row.objective for row in named} == set(OBJECTIVES)
    assert {row.layout.schedule for row in named} == set(CHUNKS)
    assert {(row.layout.dp, row.layout.zero) for row in named} >= {(dp, zero) for dp in (2, 4) for zero in range(4)}
    assert {row.layout.world for row in rows_for(2, False)} == {2}
    assert {row.layout.world for row in rows_for(8, False)} == {2, 4, 8}
    assert len(rows_for(4, True)) > len(rows_for(4, False))
    assert len(set(rows_for(8, True))) == len(rows_for(8, True))
    for row in rows_for(8, True):
        row.layout.check(row.config, row.nproc, TOKENS)
        row.layout.check_micro_batches(case.MICRO_BATCHES // row.layout.dp)
    with pytest.raises(UserError, match="--nproc=3: must be 2, 4 or 8"):
        rows_for(3, False)


@pytest.mark.slow
def test_eight_processes(tmp_path: Path) -> None:
    from sekkei.cli import main

    assert main(["prove", "--nproc", "8", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(row["passed"] for row in found["rows"])
    assert {8} < {row["nproc"] for row in found["rows"]}
