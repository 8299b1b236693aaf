"""Evaluation and preferences under a layout: held-out bits with each rank's part of the model; answers with a whole
model on every rank, and each its share of what is asked. All have the figures of one process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sekkei.core.dist import Ranks
from sekkei.core.errors import UserError
from sekkei.core.progress import Console
from sekkei.core.runlog import RunLog, SilentLog
from sekkei.engine.request import Request, Sampling
from sekkei.parallel.mesh import Mesh
from sekkei.prove.spawned import spawned
from sekkei.recipes.recipe import load
from sekkei.stages.evaluate import BitsStage, EvaluateStage
from sekkei.stages.model_artifact import load_model
from sekkei.stages.preferences import PAIRS, PreferencesStage
from sekkei.stages.run import Run
from sekkei.train.gathered import SharedEngine

SMALL = ("eval.tokens=600", "eval.long_windows=2", "eval.problems=3", "preferences.prompts=60")
LAYOUTS = ("{dp: 2, zero: 3}", "{cp: 2, zero: 1, weights: bf16}", "{pp: 2}")
ODD = [Request(prompt_ids=(1, 5 + i), sampling=Sampling(max_tokens=8), n=2, seed=i) for i in range(3)]


def run_of(folder: str, layout: str | None, patient: dist.ProcessGroup | None = None) -> Run:
    recipe = load("smoke", [*SMALL, *([] if layout is None else [f"layout={layout}"])])
    mesh, ranks = None if layout is None else Mesh(recipe.layout, "cpu"), Ranks(torch.device("cpu"), patient)
    log = (RunLog if ranks.first else SilentLog)(Path(folder) / "asked.jsonl")
    return Run(recipe, Path(folder), Console(silent=True), log, ranks, mesh)


def measured(run: Run) -> dict[str, Any]:
    """Figures of the bits, of what the SFT model answers, and of the pairs that it makes."""
    out = run.folder / f"pairs-{run.recipe.layout.world}"
    out.mkdir(exist_ok=True)
    stages = (BitsStage(run.recipe, "general", None, None), EvaluateStage(run.recipe, "sft", "sft"))
    first, second = (stage.run(run, out) for stage in stages)
    return {"bits": first, "asked": second, "pairs": PreferencesStage(run.recipe).run(run, out)}


def under_layouts(folder: str) -> list[Any]:
    patient = dist.new_group(backend="gloo")
    bits = [
        BitsStage(run.recipe, "general", None, None).run(run, Path(folder))
        for run in (run_of(folder, layout, patient) for layout in LAYOUTS[1:])
    ]
    with pytest.raises(UserError, match="a prompt of 0 tokens"):  # of the other rank's share: nobody waits
        shared_engine(folder).generate([*ODD, Request(prompt_ids=(), sampling=Sampling())])
    return [bits, measured(run_of(folder, LAYOUTS[0], patient)), drawn(folder)]


def shared_engine(folder: str) -> SharedEngine:
    return SharedEngine(load_model(Path(folder) / "sft" / "model"))


def drawn(folder: str) -> Any:
    """Ids and seeds of all answers, and how many tokens this process drew."""
    engine = shared_engine(folder)
    found = engine.generate(ODD)
    return [[[list(c.token_ids), c.seed, c.weights_hash] for c in group] for group in found], engine.drawn


def test_every_rank_has_the_figures_of_one_process(smoke_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("data", "tokenizer", "tokens", "pretrain.general", "sft"):
        (folder / name).symlink_to(smoke_run / name)
    alone, (told, total) = measured(run_of(str(folder), None)), drawn(str(folder))
    assert len(alone["bits"]) > 6
    assert len(alone["asked"]) > 12
    assert sum(alone["pairs"].values()) > 4
    ranks = spawned(under_layouts, 2, str(folder))
    for others, figures, (answers, _) in ranks:
        for layout, bits in zip(LAYOUTS, [figures["bits"], *others], strict=True):
            assert bits == pytest.approx(alone["bits"], rel=1e-5), layout
        assert figures["asked"] == alone["asked"]
        assert figures["pairs"] == alone["pairs"]
        assert answers == told
    shares = [share for _, _, (_, share) in ranks]
    assert sum(shares) == total
    assert 0 < shares[1] <= shares[0] < total  # one of the three requests, and two
    one, two = (folder / f"pairs-{world}" / PAIRS for world in (1, 2))
    assert [json.loads(line) for line in one.open()] == [json.loads(line) for line in two.open()]
