"""Tools: what a model may call, made from typed Python functions or from any function with a JSON Schema.

    def area(width: float, height: float) -> str:
        \"\"\"Area of a rectangle.                      name         area
                                                        description  Area of a rectangle.
        Args:                                           parameters   {"type": "object", "properties":
            width: in metres.                               {"width": {"type": "number", "description": "in metres."},
            height: in metres.                               …}, "required": ["width", "height"], …}
        \"\"\"

    tool = from_function(area)          registry = Registry([tool, …])          registry.schemas() -> the OpenAI form

Arguments are checked against the signature before the function is called (pydantic; "3" passes for 3, unknown names
do not pass), and whatever is wrong becomes a `ToolError`, whose text the model reads. A tool says whether it
`writes`: such a call needs a person's approval.

It does not handle *args, **kwargs and parameters without annotations (refused when the tool is made), or streaming
results.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from sekkei.core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")  # what OpenAI-compatible endpoints accept
Check = Callable[[dict[str, Any]], dict[str, Any]]


class ToolError(Exception):
    """A call that failed in a way that its caller can mend. The text goes back to the model."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Args:
        name: letters, digits, "_" and "-". description: what it does, for the model.
        parameters: JSON Schema of the arguments, an object.
        call: gets the checked arguments by name; plain or a coroutine. Its result becomes text: a str as it is,
            anything else as JSON.
        check: raw arguments -> checked ones, or `ToolError`. None: they pass as they are.
        writes: changes something outside, so a person is asked first.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[..., Any]
    check: Check | None = None
    writes: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError("tools", f"{self.name!r} is no tool name: at most 64 letters, digits, '_' and '-'")
        if self.parameters.get("type") != "object":
            raise ConfigError(f"tools.{self.name}", "its parameters must be a JSON Schema of type object")

    @property
    def schema(self) -> dict[str, Any]:
        """As OpenAI-compatible endpoints take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @property
    def only_argument(self) -> str | None:
        """The argument that a bare text stands for: the only one, or the only one that is required."""
        names = list(self.parameters.get("properties", {}))
        required = list(self.parameters.get("required", []))
        return names[0] if len(names) == 1 else required[0] if len(required) == 1 else None


def from_function(function: Callable[..., Any], *, name: str | None = None, writes: bool = False) -> Tool:
    """A tool of a function with annotations and a docstring (Google style, as everywhere in this house).

    Raises:
        ConfigError: a parameter without an annotation, *args or **kwargs, or no docstring.
    """
    name = name or str(getattr(function, "__name__", "tool"))
    where = f"tools.{name}"
    about, notes = _documented(inspect.getdoc(function) or "")
    if not about:
        raise ConfigError(where, "needs a docstring: it is what the model reads")
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for place, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(where, f"{parameter.name!r} cannot be given by name, and models give arguments by name")
        if parameter.name not in hints:
            raise ConfigError(where, f"{parameter.name!r} needs an annotation: the model is told the type")
        default = ... if parameter.default is parameter.empty else parameter.default
        # a neutral field name, because some names mean something to pydantic
        names[f"f{place}"] = parameter.name
        fields[f"f{place}"] = (
            hints[parameter.name],
            pydantic.Field(default, alias=parameter.name, description=notes.get(parameter.name)),
        )
    model = pydantic.create_model(name, __config__=pydantic.ConfigDict(extra="forbid"), **fields)

    def check(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            found = model.model_validate(arguments)
        except pydantic.ValidationError as error:
            raise ToolError(_complaint(error)) from None
        return {given: getattr(found, inner) for inner, given in names.items()}

    return Tool(name, about, _untitled(model.model_json_schema()), function, check, writes)


class Registry:
    """The tools of an agent, by name.

    Raises:
        ConfigError: two tools of one name.
    """

    def __init__(self, tools: Sequence[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ConfigError("tools", f"two tools are called {tool.name!r}")
            self._tools[tool.name] = tool

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def schemas(self) -> list[dict[str, Any]]:
        return [tool.schema for tool in self]

    def get(self, name: str) -> Tool:
        """The tool of that name.

        Raises:
            ToolError: there is none; the text names the nearest, for the model.
        """
        if name in self._tools:
            return self._tools[name]
        near = difflib.get_close_matches(name, self._tools, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self._tools) or 'none'}"
        raise ToolError(f"no tool is called {name!r}; {hint}")

    def prepare(self, name: str, arguments: str) -> tuple[Tool, dict[str, Any]]:
        """The tool and the checked arguments of a call as a model wrote it.

        Raises:
            ToolError: no such tool, arguments that are no JSON object, or do not fit the tool.
        """
        tool = self.get(name)
        try:
            given = json.loads(arguments or "{}")
        except ValueError as error:
            raise ToolError(f"the arguments of {name} are not JSON ({error})") from None
        if not isinstance(given, dict):
            raise ToolError(f"the arguments of {name} must be a JSON object, as {_example(tool)}")
        try:
            return tool, tool.check(given) if tool.check else given
        except ToolError as error:
            raise ToolError(f"{name}: {error}") from None


def show(result: object) -> str:
    """What a tool returned, as text for the model."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        return str(result)


def _documented(doc: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, as one paragraph per paragraph, and the notes of the "Args:" section."""
    head, *rest = re.split(r"^(Args|Returns|Raises|Yields|Examples?):[ \t]*$", doc, flags=re.MULTILINE)
    about = "\n\n".join(" ".join(paragraph.split()) for paragraph in head.split("\n\n") if paragraph.strip())
    notes: dict[str, str] = {}
    for title, body in zip(rest[::2], rest[1::2]):
        if title == "Args":
            for entry in re.split(r"\n(?=\s{4}\S)", body.rstrip()):
                found = re.match(r"\s*(\w+)(?:\s*\([^)]*\))?:\s*(.*)", entry, flags=re.DOTALL)
                if found:
                    notes[found[1]] = " ".join(found[2].split())
    return about, notes


def _complaint(error: pydantic.ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"]))
        what = {"missing": "is required", "extra_forbidden": "is not an argument of this tool"}.get(problem["type"])
        given = "" if problem["type"] == "missing" else f" (got {str(problem['input'])[:80]!r})"
        lines.append(f"{place} {what or problem['msg'].removeprefix('Input ').lower()}{given}")
    return "; ".join(lines)


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic derives from names; a property that is called "title" stays."""
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            found[key] = {name: _untitled(inner) for name, inner in value.items()}
        elif key in ("default", "const", "enum", "examples"):
            found[key] = value
        elif not (key == "title" and isinstance(value, str)):
            found[key] = _untitled(value)
    return found


def _example(tool: Tool) -> str:
    return json.dumps(dict.fromkeys(tool.parameters.get("properties", {}), "…"), ensure_ascii=False)
