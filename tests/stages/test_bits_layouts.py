"""Held-out bits per byte under a layout: every rank keeps its part, and all have the figures of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sekkei.core.dist import Ranks
from sekkei.core.progress import Console
from sekkei.core.runlog import SilentLog
from sekkei.parallel.layout import Mesh
from sekkei.prove.spawned import spawned
from sekkei.recipes.recipe import load
from sekkei.stages.evaluate import BitsStage
from sekkei.stages.run import Figures, Run

SMALL = ("eval.tokens=600", "eval.long_windows=2")
LAYOUTS = ("{dp: 2, zero: 3}", "{cp: 2, zero: 1, weights: bf16}", "{pp: 2}")


def measured(folder: str, layout: str | None, patient: dist.ProcessGroup | None = None) -> Figures:
    recipe = load("smoke", [*SMALL, *([] if layout is None else [f"layout={layout}"])])
    mesh = None if layout is None else Mesh(recipe.layout, "cpu")
    log = SilentLog(Path(folder) / "metrics.jsonl")
    run = Run(recipe, Path(folder), Console(silent=True), log, Ranks(torch.device("cpu"), patient), mesh)
    return BitsStage(recipe, "general", None, None).run(run, Path(folder))


def under_layouts(folder: str) -> list[Figures]:
    patient = dist.new_group(backend="gloo")
    return [measured(folder, layout, patient) for layout in LAYOUTS]


def test_every_rank_has_the_bits_of_one_process(smoke_run: Path) -> None:
    alone = measured(str(smoke_run), None)
    assert len(alone) > 6
    for ranks in spawned(under_layouts, 2, str(smoke_run)):
        for layout, figures in zip(LAYOUTS, ranks, strict=True):
            assert figures == pytest.approx(alone, rel=1e-5), layout
