"""The schema accepts every recipe that ships, and refuses what the strict loader refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from sekkei.cli import main
from sekkei.cli.schema import descriptions, recipe_model, schema
from sekkei.core import config
from sekkei.recipes.recipe import Recipe, load, shipped

RECIPES = Path(__file__).parents[2] / "src" / "sekkei" / "recipes"


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_fit(name: str) -> None:
    recipe_model().model_validate(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
    recipe_model().model_validate(config.to_mapping(load(name)))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"modle": {}}, ("modle",)),
        ({"model": {"layers": 4}}, ("model", "layers")),
        ({"pretrain": {"general": {"optim": {"learning_rate": 1}}}}, ("pretrain", "general", "optim", "learning_rate")),
        ({"tracker": "tensorbord"}, ("tracker",)),
        ({"sft": {"gate": {"rounds": "many"}}}, ("sft", "gate", "rounds")),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], where: tuple[str, ...]) -> None:
    data = config.merge(config.to_mapping(load("smoke")), change)
    with pytest.raises(ValidationError) as caught:
        recipe_model().model_validate(data)
    (error,) = caught.value.errors()
    assert error["loc"] == where


def test_every_object_of_ours_forbids_unknown_keys_and_requires_none() -> None:
    document = schema()
    objects = [document, *document["$defs"].values()]
    assert len(objects) > 10
    for part in objects:
        assert part["additionalProperties"] is False
        assert "required" not in part


def test_the_schema_has_every_key_of_the_recipe() -> None:
    known = set(schema()["properties"])
    assert known == {field.name for field in dataclasses.fields(Recipe)} | {"extends"}


def test_docstrings_become_descriptions() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Example:
        """A thing. Note: not a field.

        Args:
            first: of the things, e.g. this one. second, third: of the others,
                over two lines.
        """

        first: int = 1
        second: int = 2
        third: int = 3
        silent: int = 4

    others = "of the others, over two lines."
    assert descriptions(Example) == {"first": "of the things, e.g. this one.", "second": others, "third": others}


def test_the_verb_prints_or_writes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == schema()
    assert main(["schema", "--out", str(tmp_path / "recipe.schema.json")]) == 0
    assert (tmp_path / "recipe.schema.json").read_text() == printed
