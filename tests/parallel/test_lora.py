"""An adapter under every layout: its gradients and its training are those of one process, and the rest stays frozen."""

from __future__ import annotations

from typing import Any

import pytest

from sekkei.parallel.cuts import cut_dim
from sekkei.parallel.layout import Layout
from sekkei.prove import case
from sekkei.prove.certificate import ADAPTERS
from sekkei.prove.faults import FAULTS
from sekkei.prove.worker import LIMIT, Row, run_rows

LAYOUTS = [*(layout for layout in ADAPTERS if layout.world == 2), Layout(pp=2, schedule="zero_bubble")]
UNSUMMED = next(i for i, fault in enumerate(FAULTS) if fault.name == "q_norm not summed over tp")


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_rows([*(Row(layout, lora=True) for layout in LAYOUTS), Row(Layout(tp=2), fault=UNSUMMED, lora=True)], 2)


def test_every_layout_equals_one_process(found: list[dict[str, Any]]) -> None:
    assert {layout.zero for layout in LAYOUTS} == {0, 1, 2, 3}
    for row in found[:-1]:
        assert row["passed"], row
        assert row["grad_rel_max"] < 1e-13, row
        assert row["param_rel_max"] < 1e-13, row


def test_a_whole_side_that_is_not_summed_is_noticed(found: list[dict[str, Any]]) -> None:
    assert not found[-1]["passed"]
    assert found[-1]["grad_rel_max"] > 1e6 * LIMIT
    assert ".lora_" in found[-1]["grad_worst"]


def test_only_the_adapter_is_divided(found: list[dict[str, Any]]) -> None:
    model = case.model(case.CONFIG, lora=True)
    sizes = {name: 8 * p.numel() for name, p in model.named_parameters()}
    adapter = sum(size for name, size in sizes.items() if ".lora_" in name)
    rows = {row["layout"]: row for row in found}
    assert rows["dp2 lora"]["bytes_params"] == sum(sizes.values())
    assert rows["dp2 lora"]["bytes_grads"] == adapter
    assert rows["dp2 lora"]["bytes_optim"] == 2 * adapter
    assert rows["dp2 zero2 lora"]["bytes_grads"] == pytest.approx(adapter / 2, rel=1e-3)
    assert rows["dp2 zero3 lora"]["bytes_params"] == pytest.approx(sum(sizes.values()) / 2, rel=1e-3)


def test_the_side_that_meets_the_cut_is_cut() -> None:
    assert cut_dim("layers.0.attention.q_proj.lora_a") is None
    assert cut_dim("layers.0.attention.q_proj.lora_b") == 0
    assert cut_dim("layers.0.mlp.down_proj.lora_a") == 1
    assert cut_dim("layers.0.mlp.down_proj.lora_b") is None
    assert cut_dim("layers.0.mlp.down_proj.weight") == 1
