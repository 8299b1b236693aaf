"""Tools from typed functions: the schema that a model sees, and what becomes of wrong arguments."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jsonschema
import pydantic
import pytest

from sekkei.agent.builtin import retrieval
from sekkei.agent.registry import Registry, Tool, ToolError, from_function, show
from sekkei.core.errors import ConfigError


@dataclasses.dataclass
class Place:
    x: float
    y: float = 0.0


def draw(
    title: str,
    size: Annotated[int, pydantic.Field(ge=1, le=10)],
    colour: Literal["red", "blue"] = "red",
    places: list[Place] | None = None,
    model_config: bool = False,
) -> str:
    """Draw something.

    It is drawn
    on paper.

    Args:
        title: what stands above it,
            in one line
        size: from 1 to 10
    Returns:
        nothing that a model needs
    """
    return f"{title} {size} {colour} {places} {model_config}"


def test_the_schema_is_derived_from_signature_and_docstring() -> None:
    tool = from_function(draw)
    assert (tool.name, tool.description, tool.writes) == ("draw", "Draw something.\n\nIt is drawn on paper.", False)
    properties = tool.parameters["properties"]
    assert properties["title"] == {"type": "string", "description": "what stands above it, in one line"}
    assert properties["size"] == {"type": "integer", "minimum": 1, "maximum": 10, "description": "from 1 to 10"}
    assert properties["colour"] == {"type": "string", "enum": ["red", "blue"], "default": "red"}
    assert properties["model_config"] == {"type": "boolean", "default": False}
    assert tool.parameters["required"] == ["title", "size"]
    assert tool.parameters["additionalProperties"] is False
    jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))
    assert tool.schema["type"] == "function"
    assert tool.only_argument is None


def test_right_arguments_arrive_as_the_function_wants_them() -> None:
    registry = Registry([from_function(draw)])
    tool, given = registry.prepare("draw", '{"title": "t", "size": "3", "places": [{"x": 1}]}')
    assert given["places"] == [Place(1.0)]
    assert tool.call(**given) == "t 3 red [Place(x=1.0, y=0.0)] False"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{}", "title is required; size is required"),
        ('{"title": "t", "size": 11}', r"size should be less than or equal to 10 \(got '11'\)"),
        ('{"title": "t", "size": 1, "colour": "green"}', "colour should be 'red' or 'blue'"),
        ('{"title": "t", "size": 1, "places": [{"y": 1}]}', r"places\.0\.x is required"),
        ('{"title": "t", "size": 1, "shape": 1}', "shape is not an argument of this tool"),
        ("[1]", r"must be a JSON object, as \{\"title\": "),
        ("{", "are not JSON"),
    ],
)
def test_wrong_arguments_are_explained(arguments: str, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        Registry([from_function(draw)]).prepare("draw", arguments)


def test_functions_that_cannot_be_tools_are_refused() -> None:
    def silent(x: int) -> int:
        return x

    def bare(x) -> int:  # type: ignore[no-untyped-def]
        """Doc."""
        return int(x)

    def many(*values: int) -> int:
        """Doc."""
        return sum(values)

    for function, words in ((silent, "needs a docstring"), (bare, "needs an annotation"), (many, "by name")):
        with pytest.raises(ConfigError, match=words):
            from_function(function)
    with pytest.raises(ConfigError, match="is no tool name"):
        Tool("a b", "", {"type": "object"}, silent)
    with pytest.raises(ConfigError, match="type object"):
        Tool("a", "", {"type": "string"}, silent)


def test_results_become_text() -> None:
    assert show("設計") == "設計"
    assert show({"a": [1, None, "設"]}) == '{"a": [1, null, "設"]}'
    assert show(3) == "3"
    circle: list[object] = []
    circle.append(circle)
    assert show(circle) == "[[...]]"


def test_retrieval_gives_passages_with_their_sources() -> None:
    asked: list[str] = []

    def search(query: str) -> list[str]:
        asked.append(query)
        return ["a.md [0:9]\nfirst", "b.md [3:7]\nsecond"] if query == "known" else []

    tool = retrieval(search, "Searches notes.")
    assert (tool.name, tool.only_argument, tool.writes) == ("search", "query", False)
    assert tool.description.startswith("Searches notes. Search documents")
    assert tool.call(query="known") == "a.md [0:9]\nfirst\n\nb.md [3:7]\nsecond"
    assert tool.call(query="other") == "(nothing found)"
    assert asked == ["known", "other"]
