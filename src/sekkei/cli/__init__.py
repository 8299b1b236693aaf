"""The `sekkei` command: one table of verbs, each imported only when it is called.

    sekkei VERB [arguments]      sekkei VERB --help      sekkei --help      sekkei --version

How to add a verb: write `sekkei/cli/<verb>.py` with one public function named `command`, whose
parameters carry typer annotations (`Annotated[str, typer.Argument(help=…)]`) and whose docstring is
the help text, examples included (a block that must keep its line breaks starts with a `\\b` line).
Then add a line to `VERBS`. The function returns None or an exit code, and raises `UserError` for
whatever its user can mend; it never prints an error itself.

Exit codes: 0 done, 1 the verb says so, 2 a `UserError` or a wrong option, printed as one
`error: …` line, 130 interrupted. Any other exception is a bug and keeps its traceback.

Listing the verbs must stay light: this file imports neither torch nor numpy nor typer at its top.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sekkei.core.errors import UserError

# verb -> (module with `command`, one line of help), in the order of a first session
VERBS: dict[str, tuple[str, str]] = {
    "run": ("sekkei.cli.run", "bring a recipe to life: from raw pages to a chatting, reasoning model"),
    "chat": ("sekkei.cli.chat", "talk to the newest model of a run"),
    "report": ("sekkei.cli.report", "draw a run's report.html again"),
    "schema": ("sekkei.cli.schema", "print the JSON Schema of recipes, for editors"),
    "doctor": ("sekkei.cli.doctor", "show this machine, and which optional parts are missing"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: what follows `sekkei`; the process's own arguments if None.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Idle OpenMP threads sleep instead of spinning: beside other work on the same cores, spinning costs up to
    # 20x of the speed. It is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if os.environ.get("TORCH_LOGS") == "":
        del os.environ["TORCH_LOGS"]  # `import torch` crashes on a variable that is set but empty
    try:
        if not arguments or arguments[0] in ("--help", "-h"):
            print(_overview())
            return 0
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(f"sekkei {version('sekkei')}")
            return 0
        return _call(arguments[0], arguments[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _InterruptedError):
        print("interrupted: the same command goes on from a run's last checkpoint", file=sys.stderr)
        return 130


class _InterruptedError(Exception):
    """Ctrl-C inside a verb, under a name that typer does not turn into its own message."""


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [
        "Usage: sekkei VERB [arguments]",
        "",
        "The whole stack of a large language model in one small, readable package.",
        "",
        "Verbs:",
        *(f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items()),
        "",
        "sekkei VERB --help shows a verb's arguments and examples, sekkei --version the version.",
    ]
    return "\n".join(lines)


def _call(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"verbs: {', '.join(VERBS)}"
        raise UserError(f"{verb}: no such verb; {hint}")
    import typer
    import typer.main

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(_shielded(importlib.import_module(VERBS[verb][0]).command))
    usage_error: Any = typer.BadParameter.__base__  # typer has its own click, or uses click's, by version
    try:
        result = typer.main.get_command(app).main(arguments, prog_name=f"sekkei {verb}", standalone_mode=False)
    except usage_error as error:
        raise UserError(f"{error.format_message().rstrip('.')}; see sekkei {verb} --help") from None
    return int(result or 0)


def _shielded(command: Callable[..., int | None]) -> Callable[..., int | None]:
    @functools.wraps(command)
    def shielded(*args: Any, **kwargs: Any) -> int | None:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise _InterruptedError from None

    return shielded
