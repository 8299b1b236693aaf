"""The orders of actions are those that torch's schedules run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

from sekkei.parallel.order import order, states

KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}


def torch_order(schedule: Any, pp: int, rank: int, passes: int) -> list[tuple[str, int, int]]:
    """As torch's class computes it, without processes."""
    rounds = max(1, passes // pp)
    made = SimpleNamespace(
        n_local_stages=2, pp_group_size=pp, _n_microbatches=passes, microbatches_per_round=passes // rounds
    )
    actions = schedule._calculate_single_rank_operations(made, rank)
    return [(KINDS[a.computation_type.name], a.stage_index // pp, a.microbatch_index) for a in actions if a is not None]


@pytest.mark.parametrize("pp", [2, 3, 4, 8])
def test_orders_of_two_stages_per_rank_are_torchs(pp: int) -> None:
    both = {"interleaved": ScheduleInterleaved1F1B, "zero_bubble": ScheduleInterleavedZeroBubble}
    for name, schedule in both.items():
        for passes in (pp, 2 * pp, 5 * pp):
            for rank in range(pp):
                assert list(order(name, pp, rank, passes)) == torch_order(schedule, pp, rank, passes)


def test_orders_of_one_stage_per_rank() -> None:
    """By hand: one forward pass ahead per rank that follows, then one backward and one forward in turns."""
    plain = [("F", 0, 0), ("F", 0, 1), ("B", 0, 0), ("F", 0, 2), ("B", 0, 1), ("B", 0, 2)]
    assert list(order("1f1b", 3, 1, 3)) == plain
    assert [kind for kind, _, _ in order("gpipe", 3, 1, 3)] == ["F", "F", "F", "B", "B", "B"]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble"])
def test_long_steps_have_few_states(schedule: Any) -> None:
    for rank in (0, 3):
        found = states(schedule, 4, rank, 256)
        assert len(found) < 80
        last = order(schedule, 4, rank, 256)[-1]
        assert last[0] in ("B", "W")
        assert last[2] == 255
