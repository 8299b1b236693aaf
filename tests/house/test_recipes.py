"""Every recipe that ships with the package is accepted by a dry run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sekkei.cli import main
from sekkei.stages import plan

TRIED = ("laptop", "smoke")  # timed by a trial; the others have a model as laptop's, and are priced by its matmuls
RECIPES = sorted((Path(__file__).parents[2] / "src" / "sekkei" / "recipes").glob("*.yaml"))


def test_the_named_recipes_are_there() -> None:
    assert {"laptop", "smoke"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES])
def test_dry_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if recipe not in TRIED:
        monkeypatch.setattr(plan, "MOST_MEASURED", 0)
    code = main(["run", recipe, "--dry-run"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert ("by short trials" if recipe in TRIED else "at 30% of the matmul speed") in captured.out
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"
