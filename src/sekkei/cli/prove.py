"""`sekkei prove`: a certificate that every parallel layout computes what one process computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sekkei.prove.certificate import Certificate


def command(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="with --recipe: key.path=value, as in layout.tp=2")
    ] = None,
    nproc: Annotated[int, typer.Option(help="most processes to use: 2, 4 or 8")] = 4,
    everything: Annotated[bool, typer.Option("--all", help="every layout that fits, not the named ones")] = False,
    recipe: Annotated[
        str | None, typer.Option(help="prove this recipe's model under its layout (or one of each kind), no faults")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the findings to this file")] = None,
) -> int:
    """Compare layouts with one process in float64: loss, every gradient, their norm, parameters after three steps.

    Then plant faults on purpose, each of which must be noticed. The exit code is 0 if everything holds, else 1.

    \b
    Examples:
      sekkei prove
      sekkei prove --nproc 8 --json certificate.json
      sekkei prove --recipe my-recipe.yaml
      sekkei prove --recipe laptop layout.dp=2 layout.zero=2
    """
    import json
    import time

    from sekkei.prove.spawned import start_server

    start_server()  # it imports torch while we do

    from sekkei.core import atomic
    from sekkei.core.errors import ConfigError, UserError
    from sekkei.core.progress import Console
    from sekkei.parallel.compiled import check_compiler
    from sekkei.prove.certificate import prove, rows_for, rows_of

    if recipe is not None:
        from dataclasses import replace

        from sekkei.recipes.recipe import load

        own = load(recipe, overrides or [])
        rows = rows_of(replace(own.model, vocab_size=own.tokenizer.vocab_size), own.layout, nproc)
    elif overrides:
        raise UserError(f"{overrides[0]}: changes a recipe, and --recipe names none")
    else:
        try:
            check_compiler()
            rows = rows_for(nproc, everything)
        except ConfigError as error:
            rows = rows_for(nproc, everything, compiler=False)
            if everything:
                print(f"without the rows that compile: {error}")
    console, began = Console(), time.perf_counter()
    with console.bar("prove", 0) as bar:
        found = prove(rows, nproc, bar.update, faults=recipe is None)
    _show(found)
    verdict = "holds" if found.holds else "DOES NOT HOLD"
    print(f"\n{len(found.rows)} layouts, {len(found.faults)} faults, {time.perf_counter() - began:.0f} s: {verdict}")
    if json_file is not None:
        atomic.write_text(json_file, json.dumps({"rows": found.rows, "faults": dict(found.faults)}, indent=1) + "\n")
        print(f"findings: {json_file}")
    return 0 if found.holds else 1


def _show(found: Certificate) -> None:
    """One line per layout, then one per planted fault."""
    head = f"{'layout':<32}{'objective':<10}{'n':>2}  {'loss':>9}  {'gradient':>9}  {'after 3':>9}  "
    print(head + f"{'params':>10}{'grads':>10}{'optim':>10}{'sent':>10}  bytes of rank 0; the gradient furthest off")
    for row in found.rows:
        held = "".join(f"{row[key]:>10,}" for key in ("bytes_params", "bytes_grads", "bytes_optim", "bytes_sent"))
        print(
            f"{row['layout']:<32}{row['objective']:<10}{row['nproc']:>2}  {row['loss_diff']:9.1e}  "
            f"{row['grad_rel_max']:9.1e}  {row['param_rel_max']:9.1e}  {held}  "
            f"{'equal' if row['passed'] else 'DIFFERS'}: {row['grad_worst']}"
        )
    if found.faults:
        print(f"\n{'planted fault':<40}{'layout':<16}{'gradient':>9}  {'norm':>9}")
    for name, row in found.faults:
        verdict = "NOT NOTICED" if row["passed"] else "noticed"
        print(f"{name:<40}{row['layout']:<16}{row['grad_rel_max']:9.1e}  {row['norm_diff']:9.1e}  {verdict}")
