"""`sekkei doctor`: what this machine has, what is missing, and the command that adds it.

It looks and never changes anything. It does not judge whether a recipe fits the machine: that is
what `sekkei run RECIPE --dry-run` says.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from sekkei.core import hardware
from sekkei.core.hardware import GIB

# extra of pyproject.toml, what it is for, and the packages that show that it is there
EXTRAS = (
    ("tensorboard", "live charts", ("tensorboard",)),
    ("wandb", "live charts", ("wandb",)),
    ("trackio", "live charts", ("trackio",)),
    ("data", "sekkei data: WARC, mending encodings", ("fastwarc", "ftfy", "trafilatura", "zstandard")),
    ("llm", "models behind an HTTP endpoint", ("httpx",)),
    ("hub", "data sets of the Hugging Face hub", ("datasets",)),
    ("scale", "cleaning as jobs of Slurm or Ray", ("datatrove", "ray")),
    ("rag", "sekkei rag, ask", ("lancedb", "httpx", "pypdf", "nbformat")),
    ("qdrant", "an index in Qdrant", ("qdrant_client",)),
    ("agent", "sekkei agent", ("mcp", "jsonschema", "httpx")),
    ("eval", "mathematical equivalence of answers", ("math_verify",)),
    ("judge", "sekkei judge", ("sklearn", "scipy", "httpx")),
    ("serve", "sekkei serve", ("fastapi", "uvicorn", "prometheus_client", "llguidance")),
    ("gguf", "export for llama.cpp", ("gguf",)),
)


class Part(NamedTuple):
    """Something that sekkei uses where it is present."""

    name: str
    use: str
    present: bool
    remedy: str


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show this machine, and which optional parts are present or missing.

    \b
    Examples:
      sekkei doctor
      sekkei doctor --json
    """
    facts, parts = machine(), optional_parts()
    if as_json:
        print(json.dumps({"machine": facts, "parts": [part._asdict() for part in parts]}, indent=2, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in facts.items():
        table.add_row(name, _words(value))
    console.print(table)
    table = Table(box=box.SIMPLE)
    for title in ("optional part", "for", "", "add it with"):
        table.add_column(title, no_wrap=title != "for")
    for part in parts:
        table.add_row(
            part.name, part.use, "present" if part.present else "missing", "" if part.present else part.remedy
        )
    # A remedy in brackets, as sekkei[wandb], is text and no markup.
    console.print(table, markup=False)


def machine() -> dict[str, object]:
    """Name -> value of every fact; sizes are in GiB and the flags are booleans."""
    import torch

    memory = hardware.memory()
    return {
        "sekkei": version("sekkei"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
        "device": _devices(),
        "cores": hardware.cores(),
        "threads": hardware.threads(),
        "AMX bf16": hardware.has_amx_bf16(),
        "AVX-512 bf16": hardware.has_avx512_bf16(),
        "memory GiB": round(memory.total / GIB, 1),
        "memory available GiB": round(memory.available / GIB, 1),
        "disk free here GiB": round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
    }


def optional_parts() -> list[Part]:
    """Every optional part with its use, whether it is present, and the command that adds it."""
    return [
        Part(
            extra,
            use,
            all(_installed(package) for package in packages),
            f"pip install 'sekkei[{extra}]'",
        )
        for extra, use, packages in EXTRAS
    ]


def _devices() -> str:
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return ", ".join(f"{card.name} {card.total_memory / GIB:.0f} GiB" for card in cards)
    return hardware.cpu_name()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
