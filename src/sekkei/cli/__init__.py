"""The `sekkei` command: one table of verbs, each imported only when it is called.

    sekkei VERB [arguments]      sekkei VERB --help      sekkei --help      sekkei --version

How to add a verb: write `sekkei/cli/<verb>.py` with one public function named `command`, whose
parameters carry typer annotations (`Annotated[str, typer.Argument(help=…)]`) and whose docstring is
the help text, examples included (a block that must keep its line breaks starts with a `\\b` line).
Then add a line to `VERBS`. A verb of several actions (`sekkei judge winrate …`) has instead of `command` a table
`COMMANDS`, action -> function, of at least two. The function returns None or an exit code, and raises `UserError` for
whatever its user can mend; it never prints an error itself.

Exit codes: 0 done, 1 the verb says so, 2 a `UserError` or a wrong option, printed as one `error: …` line, 3 a rank that
this one works with has died, 130 interrupted. Any other exception is a bug and keeps its traceback.

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
from sekkei.core.signals import interrupt_on_sigterm

LOST = ("Connection closed by peer", "Connection reset by peer")  # what gloo says where a rank has died
RANK_LOST = 3  # unlike 1 and 2 mended by a restart (core/launch.py)

# verb -> (module with `command`, one line of help), in the order of a first session
VERBS: dict[str, tuple[str, str]] = {
    "run": ("sekkei.cli.run", "bring a recipe to life: from raw pages to a chatting, reasoning model"),
    "chat": ("sekkei.cli.chat", "talk to the newest model of a run"),
    "serve": ("sekkei.cli.serve", "answer over HTTP as OpenAI's API does, with a chat page"),
    "export": ("sekkei.cli.export", "write a model where transformers, vLLM or llama.cpp open it"),
    "import": ("sekkei.cli.import_", "take in a Hugging Face checkpoint (dense Llama 3, Qwen 3)"),
    "report": ("sekkei.cli.report", "draw a run's report.html again"),
    "schema": ("sekkei.cli.schema", "print the JSON Schema of recipes, for editors"),
    "prove": ("sekkei.cli.prove", "show that every parallel layout computes what one process computes"),
    "plan": ("sekkei.cli.plan", "price every parallel layout of a model on a cluster, and say which fit"),
    "launch": ("sekkei.cli.launch", "write the script that starts a recipe on several machines: Slurm, Kubernetes"),
    "picture": ("sekkei.cli.picture", "draw parallel training as measured: schedules, a ZeRO-3 step, ZeRO's bytes"),
    "data": ("sekkei.cli.data", "clean a folder of real pages, prove and show what was kept and why"),
    "tokenizer": ("sekkei.cli.tokenizer", "train a tokenizer, and compare tokenizers in bytes per token"),
    "eval": ("sekkei.cli.eval", "measure a model on what programs check: maths, code, instructions, choices, needles"),
    "judge": ("sekkei.cli.judge", "compare models from judgements: win rates, rankings, the judge's own biases"),
    "rag": ("sekkei.cli.rag", "make a folder of documents searchable, search it, measure how well that works"),
    "ask": ("sekkei.cli.ask", "answer a question from such documents, with citations that are checked"),
    "solve": ("sekkei.cli.solve", "reason about one question: chains of thought, votes, Tree of Thoughts, drawn"),
    "agent": ("sekkei.cli.agent", "let a model work on a task with tools: calculator, sandboxed Python, files, search"),
    "doctor": ("sekkei.cli.doctor", "show this machine, and which optional parts are missing"),
}


def _bound_spinning() -> None:
    """Let OpenMP's idle threads spin for some ten microseconds before they sleep. torch reads it when imported.

    To sleep at once costs a sixth of a training step on idle cores; to spin without a bound, libgomp's `active`,
    costs up to 20 times beside other work. libgomp's spin count has no effect while the policy is unset or passive and
    threads are more than cores; other OpenMPs (macOS) know no count, and sleep. A user's own policy is left alone.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    if sys.platform == "linux":
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ["OMP_WAIT_POLICY"] = "active" if sys.platform == "linux" else "passive"


given: list[str] = []  # what this process was called with, for ranks that it starts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: what follows `sekkei`; the process's own arguments if None.
    """
    given[:] = arguments = list(sys.argv[1:] if arguments is None else arguments)
    _bound_spinning()
    interrupt_on_sigterm()
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
    except RuntimeError as error:
        lost = next((words for words in LOST if words in str(error)), None)
        if lost is None or "RANK" not in os.environ:
            raise
        print(f"rank {os.environ['RANK']}: a rank that it works with is gone ({lost})", file=sys.stderr)
        return RANK_LOST


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

    module = importlib.import_module(VERBS[verb][0])
    actions = getattr(module, "COMMANDS", None)
    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, help=_actions_help(verb, actions) if actions else None
    )
    for name, function in (actions or {None: module.command}).items():
        app.command(name)(_shielded(function))
    usage_error: Any = typer.BadParameter.__base__  # typer has its own click, or uses click's, by version
    try:
        result = typer.main.get_command(app).main(arguments, prog_name=f"sekkei {verb}", standalone_mode=False)
    except usage_error as error:
        raise UserError(f"{error.format_message().rstrip('.')}; see sekkei {verb} --help") from None
    return int(result or 0)


def _actions_help(verb: str, actions: dict[str, Callable[..., int | None]]) -> str:
    """The help of a verb of several actions: its line, and the examples of all of them."""
    lines = [line.strip() for function in actions.values() for line in (function.__doc__ or "").splitlines()]
    examples = [f"  {line}" for line in lines if line.startswith(f"sekkei {verb} ")]
    return "\n".join([f"{VERBS[verb][1].capitalize()}.", "", "\b", "Examples:", *examples])


def _shielded(command: Callable[..., int | None]) -> Callable[..., int | None]:
    @functools.wraps(command)
    def shielded(*args: Any, **kwargs: Any) -> int | None:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise _InterruptedError from None

    return shielded
