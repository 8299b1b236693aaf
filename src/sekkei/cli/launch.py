"""`sekkei launch`: a script that starts a recipe on several machines, checked before it is written."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sekkei.recipes.recipe import Recipe


def command(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe or a path to a .yaml file that the machines see")],
    words: Annotated[
        list[str] | None, typer.Argument(help="of the cluster (nodes=4) or the recipe (layout.dp=4), as key=value")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="a script for sbatch")] = False,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="a Job and its Service for kubectl apply")] = False,
    out: Annotated[Path | None, typer.Option(help="write to this file [default: print]")] = None,
    run_dir: Annotated[str | None, typer.Option(help="folder of the run, seen by all machines")] = None,
    until: Annotated[str | None, typer.Option(help="stop after this stage")] = None,
) -> None:
    """Write the script that starts a recipe on several machines; the recipe's layout must fill them exactly.

    Keys for --slurm: nodes, gpus_per_node, partition, account, qos, constraint, time, cpus_per_gpu, restarts, python,
    setup, job. For --kubernetes: nodes, gpus_per_node, image, claim, mount, namespace, cpus, memory, shm, resource,
    restarts, python, job. All other key=value words are the recipe's. What the scripts do: docs/cluster.md.

    \b
    Examples:
      sekkei launch big.yaml --slurm nodes=4 gpus_per_node=8 partition=gpu time=24:00:00 --out big.sbatch
      sekkei launch big.yaml --kubernetes nodes=2 gpus_per_node=8 image=me/sekkei:1 claim=runs --out big.yml
    """
    import sys

    from sekkei.core import atomic, cluster
    from sekkei.core import config as loader
    from sekkei.core.errors import UserError
    from sekkei.recipes.recipe import load

    if slurm == kubernetes:
        raise UserError("sekkei launch: give one of --slurm and --kubernetes")
    kind: Any = cluster.Slurm if slurm else cluster.Kubernetes
    known = {field.name for field in fields(kind)}
    mine = [word for word in words or [] if word.partition("=")[0] in known]
    overrides = [word for word in words or [] if word not in mine]
    for key in ("nodes", "gpus_per_node", *(() if slurm else ("image", "claim"))):
        if not any(word.startswith(f"{key}=") for word in mine):
            raise UserError(f"{key}: not given; add {key}=… to the command line")
    job = loader.from_mapping(kind, _texts(mine, kind))
    loaded = load(recipe, overrides)
    _check(loaded, job.nodes, job.gpus_per_node)
    if until is not None:
        from sekkei.stages.life import stages_of
        from sekkei.stages.run import check_selection

        check_selection([stage.name for stage in stages_of(loaded)], until, None, None)
    arguments = ["run", recipe, *overrides]
    arguments += ["--run-dir", run_dir] if run_dir else []
    arguments += ["--until", until] if until else []
    write = cluster.slurm_script if slurm else cluster.kubernetes_manifest
    text = write(loaded.name, arguments, job)
    if loaded.layout.tp > job.gpus_per_node:
        print(
            f"warning: layout.tp={loaded.layout.tp} is more than gpus_per_node={job.gpus_per_node}: every layer's sums "
            "cross the network between machines; tp inside a node and pp between nodes is faster (see sekkei plan)",
            file=sys.stderr,
        )
    if out is None:
        print(text, end="")
        return
    atomic.write_text(out, text)
    print(f"{out}: start with {'sbatch' if slurm else 'kubectl apply -f'} {out}")


def _texts(words: list[str], kind: Any) -> dict[str, Any]:
    """key=value words as a mapping: numbers where the key is a number, texts as they stand (a time is no YAML number).

    Raises:
        UserError: no number, or a key twice.
    """
    from sekkei.core.errors import UserError

    numbers = {field.name for field in fields(kind) if field.type in ("int", int)}
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key in found:
            raise UserError(f"{key}: given twice, {found[key]} and {value}")
        if key in numbers and not value.lstrip("-").isdecimal():
            raise UserError(f"{key}: got {value!r}, must be a whole number")
        found[key] = int(value) if key in numbers else value
    return found


def _check(recipe: Recipe, nodes: int, gpus_per_node: int) -> None:
    """Refuse a layout that does not fill the machines, or does not divide the model.

    Raises:
        ConfigError: with the arithmetic.
    """
    from sekkei.core.errors import ConfigError

    layout, world = recipe.layout, nodes * gpus_per_node
    if layout.world != world:
        product = f"pp·dp·cp·tp = {layout.pp}·{layout.dp}·{layout.cp}·{layout.tp} = {layout.world}"
        raise ConfigError("layout", f"{product}, and nodes·gpus_per_node = {nodes}·{gpus_per_node} = {world}")
    model = replace(recipe.model, vocab_size=recipe.tokenizer.vocab_size)
    layout.check(model, world)
