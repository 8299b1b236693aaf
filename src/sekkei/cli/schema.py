"""`sekkei schema`: the JSON Schema of recipe files, for editors that complete and check YAML.

The tree of config dataclasses is mirrored into pydantic models that forbid unknown keys (pydantic reads a
plain dataclass too, but then lets unknown keys of nested ones pass). A file may take what it leaves out from
the recipe that it `extends`, so no key is required here. What contradicts another key is not seen by a
schema: that is what `sekkei run RECIPE --dry-run` checks.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

if typing.TYPE_CHECKING:
    from pydantic import BaseModel


def command(
    out: Annotated[Path | None, typer.Option(help="write it to this file instead of the screen")] = None,
) -> None:
    """Print the JSON Schema of recipes, for editors.

    In VS Code with the YAML extension, a recipe that begins with
    `# yaml-language-server: $schema=recipe.schema.json` is completed and checked while you type.

    \b
    Examples:
      sekkei schema
      sekkei schema --out recipe.schema.json
    """
    text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return
    from sekkei.core import atomic

    atomic.write_text(out, text)
    print(out)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **recipe_model().model_json_schema()}


def recipe_model() -> type[BaseModel]:
    """A pydantic model of recipe files: the recipe's keys, and `extends`."""
    from sekkei.recipes.recipe import Recipe

    extends = (str | None, _optional(None, "Another recipe, by name or path, whose keys are the base of this one."))
    return _mirror(Recipe, {}, extends=extends)


def descriptions(config: type) -> dict[str, str]:
    """What a config's docstring says about each field, as in `steps: optimizer steps. rows: of the batch.`"""
    names = {field.name for field in dataclasses.fields(config)}
    text = " ".join((config.__doc__ or "").split())
    marks = [
        (match, [name.strip() for name in match[1].split(",")])
        for match in re.finditer(r"(?<![\w.])(\w+(?:, \w+)*): ", text)
    ]
    marks = [(match, fields) for match, fields in marks if set(fields) <= names]
    found: dict[str, str] = {}
    for index, (match, fields) in enumerate(marks):
        end = marks[index + 1][0].start() if index + 1 < len(marks) else len(text)
        found |= dict.fromkeys(fields, text[match.end() : end].strip())
    return found


def _mirror(config: type, known: dict[type, type[BaseModel]], **more: Any) -> type[BaseModel]:
    from pydantic import ConfigDict, create_model

    if config in known:
        return known[config]
    hints, said = typing.get_type_hints(config), descriptions(config)
    fields: dict[str, Any] = dict(more)
    for field in dataclasses.fields(config):
        default = None if field.default is dataclasses.MISSING else field.default
        kind = _kind(hints[field.name], known)
        if typing.get_origin(kind) is dict:  # null takes away what the recipe that is extended has
            kind = dict[str, typing.Optional[typing.get_args(kind)[1]]]  # type: ignore[misc]  # noqa: UP045
        fields[field.name] = (kind, _optional(default, said.get(field.name)))
    model: type[BaseModel] = create_model(
        config.__name__,
        __config__=ConfigDict(extra="forbid", protected_namespaces=()),
        __doc__=(config.__doc__ or "").strip().split("\n")[0],
        **fields,
    )
    known[config] = model
    return model


def _kind(kind: Any, known: dict[type, type[BaseModel]]) -> Any:
    """The same annotation with dataclasses mirrored."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _mirror(kind, known)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is None or origin is typing.Literal:
        return kind
    inner = tuple(_kind(argument, known) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[inner]  # noqa: UP007 (built from a tuple)
    return origin[inner]


def _optional(default: Any, description: str | None) -> Any:
    """A key that may be left out; its default is shown where there is a plain one."""
    from pydantic import Field

    def tidy(part: dict[str, Any]) -> None:
        if part.get("default") is None:
            part.pop("default", None)

    return Field(default=default, description=description, json_schema_extra=tidy)
