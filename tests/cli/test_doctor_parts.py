"""`sekkei doctor` knows every extra of pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

from sekkei.cli.doctor import EXTRAS, optional_parts

ROOT = Path(__file__).resolve().parents[2]


def test_every_extra_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {extra for extra, _, _ in EXTRAS} == set(project["optional-dependencies"]) - {"dev"}
    assert {part.name for part in optional_parts()} == {extra for extra, _, _ in EXTRAS}
