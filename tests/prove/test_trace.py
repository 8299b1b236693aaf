"""The dry run: what it predicts for a rank is what four real ranks hold, and what is held is the closed form's."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch.distributed as dist

from sekkei.cli import main
from sekkei.core.errors import ConfigError
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job, state_bytes
from sekkei.parallel.mesh import Mesh
from sekkei.prove import case
from sekkei.prove.spawned import spawned
from sekkei.prove.trace import Traced, one_step, trace

LAYOUTS = (
    Layout(dp=4),
    Layout(dp=4, zero=1),
    Layout(dp=4, zero=2),
    Layout(dp=4, zero=3),
    Layout(dp=2, tp=2, zero=2, sequence_parallel=True),
    Layout(tp=4, recompute="full"),
    Layout(dp=4, zero=2, weights="bf16", reduce="bf16"),
    Layout(cp=4),
    Layout(cp=2, tp=2, context="gather"),
    Layout(pp=4),
    Layout(pp=2, dp=2, zero=1, schedule="gpipe"),
    Layout(pp=2, dp=2, zero=1, schedule="interleaved"),
    Layout(pp=2, dp=2, schedule="zero_bubble"),
)


CASES = [
    (layout, rank) for layout in LAYOUTS for rank in (0, 3) if rank == 0 or layout.pp * layout.tp > 1
]  # else alike
REPEATS = 3


def job(layout: Layout) -> Job:
    return Job(model=case.DEEP if layout.pp > 1 else case.CONFIG, context=48, rows=16, micro_rows=2, weights="fp32")


@cache
def dry(layout: Layout, rank: int) -> Traced:
    return trace(job(layout), layout, rank)


def _steps() -> list[dict[str, int]]:
    """The lowest peak of a few: a thread of gloo's may hold what it carried a moment longer than the step does."""
    found = []
    for layout in LAYOUTS:
        mesh = Mesh(layout, "cpu")
        steps = [one_step(job(layout), mesh) for _ in range(REPEATS)]
        found.append({"held": steps[0].held, "peak": min(step.peak for step in steps)})
    return found


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    """Of the first and the last of four real ranks."""
    found = spawned(_steps, 4)
    return {f"{layout.name} {rank}": found[rank][i] for i, layout in enumerate(LAYOUTS) for rank in (0, 3)}


@pytest.mark.parametrize(("layout", "rank"), CASES, ids=lambda x: getattr(x, "name", None))
def test_the_dry_run_predicts_what_real_ranks_hold(
    measured: dict[str, dict[str, int]], layout: Layout, rank: int
) -> None:
    predicted, real = dry(layout, rank), measured[f"{layout.name} {rank}"]
    assert predicted.peak == pytest.approx(real["peak"], rel=0.01)
    assert predicted.held == pytest.approx(real["held"], rel=0.01)


@pytest.mark.parametrize("layout", LAYOUTS[:5], ids=lambda layout: layout.name)
def test_what_is_held_is_the_closed_form(layout: Layout) -> None:
    """Parameters, gradients and moments between the backward pass and the optimizer's step, within 1%."""
    known = sum(state_bytes(job(layout).model, layout, "fp32").values())
    assert dry(layout, 0).held == pytest.approx(known, rel=0.01, abs=1024)  # the batch's ids are 768


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layout\.offload"):
        trace(job(Layout()), Layout(dp=2, zero=3, offload=True))
    with pytest.raises(ConfigError, match=r"layout\.compile"):
        trace(job(Layout()), Layout(dp=2, compile=True))
    with pytest.raises(ConfigError, match=r"layout\.dp"):
        trace(job(Layout()), Layout(dp=16))
    assert not dist.is_initialized()


def test_the_command_tells_it_beside_the_closed_form(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "smoke", "--gpus", "4", "--layout", "dp=4,zero=2", "--rows", "8"]
    assert main([*words, "--trace"]) == 0
    shown = told(capsys)
    assert re.search(r"held +[\d,]+ bytes after the backward pass; closed form [\d,]+ \([+-]0\.\d+%\)", shown)
    assert re.search(r"peak +[\d,]+ bytes; closed form for a CPU [\d,]+ \([+-]0\.\d+%\)", shown)
    assert main(words) == 0
    assert "dry run" not in told(capsys)
    assert main(["plan", "smoke", "--gpus", "4", "--trace"]) == 2


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out
