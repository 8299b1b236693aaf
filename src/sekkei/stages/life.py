"""The life of a model: which stages a recipe has, in order, and how a run of them begins and ends.

data → tokenizer → tokens → pretrain.* (each with its bits) → [base] → sft → preferences → dpo → grpo → tune.* → report

With `imported`, a checkpoint is taken in after its tokenizer; without pretraining stages it is the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core import config as loader
from sekkei.core import dist, hardware
from sekkei.core.progress import Console
from sekkei.core.runlog import RunLock, SilentLog
from sekkei.core.stage_names import PAIRED
from sekkei.core.tracker import open_tracker
from sekkei.evals.maths import verifier
from sekkei.parallel.mesh import Mesh
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import BASE, ROLLOUTS
from sekkei.report.page import closing_screen, render
from sekkei.stages.agent import AgentStage
from sekkei.stages.corpus import DataStage, TokenizerStage, TokensStage
from sekkei.stages.documents import DocumentsStage
from sekkei.stages.evaluate import BitsStage, EvaluateStage
from sekkei.stages.imported import ImportedStage
from sekkei.stages.inference import InferenceStage
from sekkei.stages.judge import JudgeStage
from sekkei.stages.paired import PairedStage
from sekkei.stages.preferences import PreferencesStage
from sekkei.stages.pretrain import PretrainStage
from sekkei.stages.rollouts import RolloutStage
from sekkei.stages.run import Run, Runner, Stage, open_folder
from sekkei.stages.sft import SFTStage
from sekkei.stages.tracked import TrackedLog

BUILDERS: Mapping[str, Callable[[Recipe, str], Stage]] = {
    "sft": SFTStage,
    **dict.fromkeys(PAIRED, PairedStage),
    **dict.fromkeys(ROLLOUTS, RolloutStage),
}


@dataclass(frozen=True)
class Selection:
    """Which stages a command wants (see `Runner.go`)."""

    until: str | None = None
    begin: str | None = None
    only: str | None = None
    force: bool = False


def stages_of(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe in order."""
    stages: list[Any] = [DataStage(recipe), TokenizerStage(recipe)]
    if recipe.pretrain:
        stages.append(TokensStage(recipe))
    if recipe.imported is not None:
        stages.append(ImportedStage(recipe))
    for key in recipe.pretrain:
        stage = PretrainStage(recipe, key)
        stages += [stage, BitsStage(recipe, key, stage.before, stage.rescaled)]
    base = recipe.stage_of(BASE)
    stages.append(EvaluateStage(recipe, base, "base"))
    if any(tune.form == "document" and tune.start == BASE for tune in recipe.tuning.values()):
        stages.append(EvaluateStage(recipe, base, "base-document", "document"))  # what RL on it begins with
    for name, tune in recipe.tuning.items():
        if tune.kind in PAIRED and not any(stage.name == "preferences" for stage in stages):
            stages.append(PreferencesStage(recipe))
        stages.append(BUILDERS[tune.kind](recipe, name))
        if tune.kind != "reward":
            stages.append(EvaluateStage(recipe, name, name, recipe.form_of(name)))
    line = [name for name in recipe.tuning if name not in recipe.tune]
    if any(stage.kind == "sft" and stage.config.tools for stage in recipe.tuning.values()) and line:
        stages.append(AgentStage(recipe, line[-1]))
    for key in recipe.inference:
        asked = recipe.asked(key)
        if asked is not None:
            stages.append(InferenceStage(recipe, key, asked))
    if recipe.documents is not None and recipe.asked(recipe.documents.stage) is not None:
        stages.append(DocumentsStage(recipe))
    if recipe.judge is not None and any(recipe.asked(name) is not None for name in recipe.judge.stages):
        stages.append(JudgeStage(recipe))
    return stages


def live(recipe: Recipe, folder: Path, selection: Selection, console: Console) -> None:
    """Run a recipe in `folder`, from wherever it stands, and render its report; as one rank of several, if it is one.

    Raises:
        UserError: whatever the user can mend; the folder then holds only whole things.
    """
    ranks = dist.start(hardware.best_device().type) if dist.launched() else dist.Ranks(hardware.best_device())
    try:
        mesh = _mesh(recipe, ranks)
        if ranks.first:
            _live_first(recipe, folder, selection, console, ranks, mesh)
        else:
            hardware.tune_allocator()
            run = Run(recipe, folder, Console(silent=True), SilentLog(folder / "metrics.jsonl"), ranks, mesh)
            Runner(run, stages_of(recipe)).go(selection.until, selection.begin, selection.only, selection.force)
    finally:
        dist.finish()


def _asks_own(recipe: Recipe) -> bool:
    """Whether problems of a file are asked somewhere."""
    return any(path is not None for path in (recipe.eval.path, *(tune.path for tune in recipe.tuning.values())))


def _mesh(recipe: Recipe, ranks: dist.Ranks) -> Mesh | None:
    """The recipe's layout over the processes there are; None for one alone.

    Raises:
        ConfigError: the layout needs another number of processes.
    """
    if recipe.layout.world != dist.world_size():
        recipe.layout.check(recipe.model, dist.world_size())
    return Mesh(recipe.layout, ranks.device.type) if dist.world_size() > 1 else None


def _live_first(
    recipe: Recipe, folder: Path, selection: Selection, console: Console, ranks: dist.Ranks, mesh: Mesh | None
) -> None:
    """The rank that keeps the books, or the only one."""
    open_folder(folder, recipe)
    with RunLock(folder):
        console.say(hardware.tune_allocator())
        tracker = open_tracker(recipe.tracker, folder, recipe.name, loader.to_mapping(recipe))
        try:
            with TrackedLog(folder / "metrics.jsonl", tracker) as log:
                run = Run(recipe, folder, console, log, ranks, mesh)
                console.say(f"loop.dtype auto: {hardware.fast_dtype(run.device)} on this machine")
                if _asks_own(recipe) and verifier() is None:
                    console.say("math-verify is not installed (extra `eval`): answers are equal as exact numbers only")
                if mesh is not None:
                    console.say(f"layout {recipe.layout.name}: {dist.world_size()} ranks")
                Runner(run, stages_of(recipe)).go(selection.until, selection.begin, selection.only, selection.force)
        finally:
            tracker.close()
        render(folder)
    console.say()
    console.say(closing_screen(folder))
