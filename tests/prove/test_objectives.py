"""Every objective's loss has one process's gradients on data, tensor, context and pipeline ranks."""

from __future__ import annotations

import random

import pytest

from sekkei.prove.certificate import OTHERS, SPREAD, rows_for
from sekkei.prove.faults import FAULTS
from sekkei.prove.objectives import OBJECTIVES
from sekkei.prove.worker import LIMIT, Row, run_rows

NUMBERS = {fault.name: number for number, fault in enumerate(FAULTS)}
LOCAL_SUMS = NUMBERS["sequence sums of own tokens only"]
ROWS = (
    *(Row(layout, name) for name in OTHERS for layout in SPREAD),
    *(Row(layout, name, dtype="fp32") for layout, name in zip(SPREAD, ("grpo", "dpo", "grpo", "dpo"), strict=True)),
)
PLANTED = tuple(Row(SPREAD[2], name, LOCAL_SUMS) for name in ("kto", "reward", "gspo"))


@pytest.fixture(scope="module")
def found() -> list[dict[str, object]]:
    return run_rows([*ROWS, *PLANTED], 2)


def test_all_are_equal(found: list[dict[str, object]]) -> None:
    for row in found[: len(ROWS)]:
        assert row["passed"], row
    exact = [row for row in found[: len(ROWS)] if "fp32" not in str(row["layout"])]
    assert len(exact) == 28
    assert max(float(str(row["grad_rel_max"])) for row in exact) < 1e-13


def test_sums_over_a_rank_s_own_tokens_are_noticed(found: list[dict[str, object]]) -> None:
    for row in found[len(ROWS) :]:
        assert not row["passed"]
        assert float(str(row["grad_rel_max"])) > 1e6 * LIMIT, row


def test_clips_cut_some_tokens_and_leave_others() -> None:
    """Else a clip that is never reached would prove nothing."""
    import torch

    from sekkei.model.output import Output
    from sekkei.parallel.ops import LocalOps

    rng = random.Random(3)
    for name in ("ppo", "grpo", "critic"):
        asked = OBJECTIVES[name]  # type: ignore[index]
        batch = asked.batch(rng)
        assert (batch.segments == -1).any()
        shape = batch.ids.shape
        out = Output(logprobs=torch.full(shape, -4.5), entropy=torch.ones(shape), values=torch.zeros(shape))
        _, metrics = asked.loss.terms(out, batch, LocalOps())
        cut = metrics["value_clip_fraction" if name == "critic" else "clip_fraction"]
        assert 0 < float(cut.total) < float(cut.weight), name


def test_the_certificate_has_a_row_of_each() -> None:
    assert {row.objective for row in rows_for(4, False)} == set(OBJECTIVES)
    every = rows_for(4, True)
    for name in OTHERS:
        assert {row.layout for row in every if row.objective == name} > set(SPREAD)
    assert any(row.layout.compile for row in every)
    assert not any(row.layout.compile for row in rows_for(4, True, compiler=False))
