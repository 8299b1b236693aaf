"""Every recipe that ships with the package is accepted by a dry run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sekkei.cli import main

RECIPES = sorted((Path(__file__).parents[2] / "src" / "sekkei" / "recipes").glob("*.yaml"))


def test_the_named_recipes_are_there() -> None:
    assert {"laptop", "smoke"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES])
def test_dry_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["run", recipe, "--dry-run"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.strip()
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"
