"""Bytes per parameter of every ZeRO stage, on real ranks, against the formulas."""

from __future__ import annotations

import pytest

from sekkei.prove.bars import Held, formula, held_bytes
from sekkei.report import pictures


@pytest.fixture(scope="module")
def found() -> list[Held]:
    return held_bytes((2, 4, 8))


def test_formulas() -> None:
    assert [formula(zero, 4, "bf16") for zero in range(4)] == [16, 7, 5.5, 4]
    assert [formula(zero, 4, "fp32") for zero in range(4)] == [16, 10, 7, 4]
    assert formula(1, 1_000_000, "bf16") == pytest.approx(16 / 4, rel=1e-4)  # the textbook's limit


def test_measured_equals_the_formulas(found: list[Held]) -> None:
    assert [(held.ranks, held.zero) for held in found] == [(ranks, zero) for ranks in (2, 4, 8) for zero in range(4)]
    for held in found:
        assert held.total == pytest.approx(held.formula, rel=1e-3), held
    two = found[:4]
    assert [held.params for held in two] == pytest.approx([2, 2, 2, 2])  # stage 3: 4 / 2 of float32 shards
    assert [held.optimizer for held in two] == pytest.approx([12, 6, 6, 4], rel=1e-3)


def test_the_picture_has_a_bar_per_stage_and_part(found: list[Held]) -> None:
    bars = [pictures.Bar(f.ranks, f.zero, (f.params, f.grads, f.optimizer), f.formula) for f in found]
    text = pictures.stages(bars)
    assert text.count("<rect") == 3 * len(found) + 3
    assert text.count("stroke-dasharray") == len(found)
    for held in found:
        assert f">{held.total:.2f}</text>" in text
