"""`sekkei run RECIPE`: bring a recipe to the end of its life, from wherever its run folder stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sekkei.recipes.recipe import Recipe
    from sekkei.stages.life import Selection


def command(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe (laptop, smoke) or a path to a .yaml file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, as in pretrain.general.steps=100")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="folder of the run [default: runs/<recipe's name>]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and its costs, run nothing")] = False,
    until: Annotated[str | None, typer.Option(help="stop after this stage")] = None,
    begin: Annotated[str | None, typer.Option("--from", help="redo this stage and all after it")] = None,
    only: Annotated[str | None, typer.Option(help="run this stage alone; its inputs must be finished")] = None,
    force: Annotated[bool, typer.Option("--force", help="redo the selected stages even if they are finished")] = False,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="ranks on this machine [default: as many as the recipe's layout needs]")
    ] = None,
    restarts: Annotated[int, typer.Option(min=0, help="how often to start again after a rank has died")] = 3,
    quiet: Annotated[bool, typer.Option("--quiet", help="no bars, no samples: a line per stage")] = False,
) -> int | None:
    """Run a recipe: data, tokenizer, pretraining, instruction tuning, alignment, evaluation, report.

    A finished stage is reused while nothing that it depends on has changed; a run that was cut off goes
    on from its last checkpoint when the same command is given again (without --from and --force, which
    start their stages anew).

    \b
    Examples:
      sekkei run laptop
      sekkei run laptop --dry-run
      sekkei run laptop pretrain.general.steps=100 model.num_layers=6 --run-dir runs/small
      sekkei run my-recipe.yaml --until sft
      sekkei run laptop --from grpo
      sekkei run laptop layout.dp=4 layout.zero=2                   (four ranks on this machine)
      sekkei run laptop layout.dp=1                                 (one process)
      torchrun --nproc-per-node 8 -m sekkei run big.yaml            (ranks that torchrun has started)
    """
    from sekkei.recipes.recipe import load

    loaded = load(recipe, overrides or [])
    if dry_run:
        from sekkei.stages.life import stages_of
        from sekkei.stages.plan import plan
        from sekkei.stages.run import check_selection

        check_selection([stage.name for stage in stages_of(loaded)], until, begin, only)
        print(plan(loaded))
        return None
    from sekkei.core import dist, launch
    from sekkei.core.progress import Console
    from sekkei.stages.life import Selection, live

    folder, selection = run_dir or Path("runs") / loaded.name, Selection(until, begin, only, force)
    if dist.launched():
        launch.end_with_launcher()
    else:
        loaded = loaded if nproc else _for_this_machine(loaded)
        if (nproc or loaded.layout.world) > 1:
            return _launch(loaded, folder, selection, nproc or loaded.layout.world, restarts)
    live(loaded, folder, selection, Console(quiet))
    return None


def _for_this_machine(recipe: Recipe) -> Recipe:
    """A recipe whose layout is data ranks and no more runs on fewer GPUs as one process, which computes the same."""
    from dataclasses import replace

    import torch

    from sekkei.core import hardware
    from sekkei.parallel.layout import Layout

    ranks = recipe.layout.dp
    if recipe.layout != Layout(dp=ranks) or ranks == 1 or hardware.best_device().type == "cpu":
        return recipe
    if ranks <= torch.cuda.device_count():
        return recipe
    print(f"layout.dp={ranks}: this machine has {torch.cuda.device_count()} GPUs; one process computes the same")
    return replace(recipe, layout=Layout())


def _launch(recipe: Recipe, folder: Path, selection: Selection, nproc: int, restarts: int) -> int:
    """Check before any process starts, then start them with this command line."""
    from sekkei import cli
    from sekkei.core import hardware, launch
    from sekkei.core.errors import UserError
    from sekkei.core.runlog import RunLock
    from sekkei.stages.life import stages_of
    from sekkei.stages.run import check_selection, open_folder

    recipe.layout.check(recipe.model, nproc)
    check_selection([stage.name for stage in stages_of(recipe)], selection.until, selection.begin, selection.only)
    open_folder(folder, recipe)
    with RunLock(folder):  # the first rank holds it from now on
        pass
    if recipe.layout.compile:
        from sekkei.parallel.compiled import check_compiler

        check_compiler()
    if hardware.best_device().type == "cuda":
        import torch

        if nproc > torch.cuda.device_count():
            raise UserError(f"--nproc={nproc}: this machine has {torch.cuda.device_count()} GPUs")
    return launch.run_ranks(cli.given, nproc, restarts)
