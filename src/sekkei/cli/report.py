"""`sekkei report RUN_DIR`: draw a run's report again and print where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run_dir: Annotated[Path, typer.Argument(help="folder of a run, finished or not, as runs/laptop")],
) -> None:
    """Draw report.html anew from what a run wrote, and print its path.

    Nothing is computed again and nothing is downloaded; a run that is still going on is drawn as it stands.

    \b
    Examples:
      sekkei report runs/laptop
    """
    from sekkei.report.page import render

    print(render(run_dir))
