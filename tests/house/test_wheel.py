"""The wheel is whole: it holds the recipes and data files and works in an environment of its own.

The environment gets sekkei from the wheel and third-party packages from the development environment
by a path entry (no editable install reaches through one), so no download is needed.
`test_imports_are_declared` is what keeps those packages honest.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {"pyyaml": "yaml"}  # distributions whose import name is another


def test_imports_are_declared() -> None:
    """Third-party packages that src/sekkei imports are dependencies or optional extras."""
    extras = [item for name, items in PROJECT["optional-dependencies"].items() if name != "dev" for item in items]
    names = {re.split(r"[<>=!~\[; ]", item)[0].lower() for item in [*PROJECT["dependencies"], *extras]}
    declared = {IMPORT_NAMES.get(name, name).replace("-", "_") for name in names}
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.split(".")[0])
    assert imported - declared - set(sys.stdlib_module_names) - {"sekkei"} == set()


@pytest.mark.slow
def test_wheel_works_alone(tmp_path: Path) -> None:
    wheel = _build(tmp_path)
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "src").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and "egg-info" not in str(path):
            assert path.relative_to(ROOT / "src").as_posix() in shipped
    assert any(name.endswith("licenses/LICENSE") for name in shipped)

    python = _environment(tmp_path / "env", wheel)
    where = _run(python, "-c", "import sekkei; print(sekkei.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "env")
    command = python.with_name("sekkei")
    assert "Usage: sekkei" in _run(command, "--help", cwd=tmp_path)
    assert _run(command, "run", "smoke", "--dry-run", cwd=tmp_path).strip()


def _build(folder: Path) -> Path:
    """Build from a copy, so that no left-over of an earlier build gets in."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    _run(Path(sys.executable), "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=source)
    (wheel,) = folder.glob("sekkei-*.whl")
    return wheel


def _environment(folder: Path, wheel: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=folder)
    inside = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    (Path(inside) / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _run(program: Path, *arguments: str, cwd: Path) -> str:
    result = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{program} {' '.join(arguments)}\n{result.stdout}\n{result.stderr}"
    return result.stdout
