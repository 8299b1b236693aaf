"""Imports only go down the floors of docs/design.md, along the edges of tests/floors.toml.

Every import statement of src/sekkei is read from the syntax tree, those inside functions and under
TYPE_CHECKING too, and `importlib.import_module("sekkei.…")` with a literal name.
"""

from __future__ import annotations

import ast
import graphlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sekkei"
RULES: dict[str, Any] = tomllib.loads((ROOT / "tests" / "floors.toml").read_text())
ENTRANCE = "cli"  # sekkei/__init__.py and __main__.py stand on the floor of the command line


def imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that a module imports; `package` is the one that its relative imports start from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            steps = package.split(".")
            start = steps[: len(steps) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def folder_of(module: str) -> str | None:
    """The folder of src/sekkei that a dotted name is in; None for everything that is not ours."""
    steps = module.split(".")
    if steps[0] != "sekkei":
        return None
    return steps[1] if len(steps) > 1 and steps[1] in RULES["floors"] else ENTRANCE


def violations(source: str, folder: str, rules: dict[str, Any]) -> list[str]:
    """What is wrong with the imports of one module of `folder`."""
    floors, same = rules["floors"], rules["same_floor"]
    found = []
    for module in imported_modules(ast.parse(source), f"sekkei.{folder}"):
        for banned in rules["forbidden"].get(folder, ()):
            if module == banned or module.startswith(f"{banned}."):
                found.append(f"{folder} may not import {banned}: {module}")
        other = folder_of(module)
        if other is None or other == folder:
            continue
        if floors[other] > floors[folder]:
            found.append(f"upward: {folder} (F{floors[folder]}) imports {module} (F{floors[other]})")
        elif floors[other] == floors[folder] and other not in same.get(folder, ()):
            found.append(f"undeclared edge on one floor: {folder} imports {module}")
    return found


def test_every_folder_has_a_floor() -> None:
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert folders
    assert folders <= set(RULES["floors"]), "give the new folder a floor in tests/floors.toml and docs/design.md"


def test_imports_go_down() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE).parts
        folder = inside[0] if len(inside) > 1 else ENTRANCE
        found += [f"{'/'.join(inside)}: {wrong}" for wrong in violations(path.read_text(), folder, RULES)]
    assert found == []


def test_same_floor_edges_are_on_one_floor_without_cycles() -> None:
    floors = RULES["floors"]
    for importer, imported in RULES["same_floor"].items():
        for other in imported:
            assert floors[importer] == floors[other], f"{importer} -> {other} needs no declaration, or is upward"
    graphlib.TopologicalSorter(RULES["same_floor"]).prepare()  # raises CycleError


@pytest.mark.parametrize(
    ("folder", "source", "wrong"),
    [
        ("core", "from sekkei.cli import main", "upward"),
        ("train", "def f():\n    import sekkei.objectives.dpo", "upward"),
        ("train", "def f():\n    from sekkei import stages", "upward"),
        ("model", "from ..engine import request", "upward"),
        ("core", "import importlib\nimportlib.import_module('sekkei.train.loop')", "upward"),
        ("text", "import sekkei", "upward"),
        ("data", "from sekkei.engine.request import Request", "undeclared"),
        ("text", "def f():\n    import torch.nn", "may not import"),
        ("model", "from torch import distributed", "may not import"),
    ],
)
def test_a_planted_import_is_found(folder: str, source: str, wrong: str) -> None:
    (found,) = violations(source, folder, RULES)
    assert wrong in found


def test_a_planted_cycle_is_found() -> None:
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"data": ["engine"], "engine": ["data"]}).prepare()


@pytest.mark.parametrize(
    "source", ["from sekkei.core import seed", "from . import loop", "import torch", "import json"]
)
def test_a_right_import_passes(source: str) -> None:
    assert violations(source, "train", RULES) == []
