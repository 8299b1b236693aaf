"""The strict loader between YAML and frozen dataclasses.

A recipe is a tree of frozen keyword-only dataclasses, each defined beside the component that it
configures. This file turns plain mappings into them and back:

    mapping --from_mapping(cls)--> dataclass --to_mapping--> mapping

Strict means: an unknown key is refused with the nearest known one, a value of the wrong type is
refused with the type that is wanted, and nothing is coerced except `int -> float`, and numbers that
YAML 1.1 reads as text (`1e-3`). Supported annotations: bool, int, float, str, `X | None`,
`Literal[...]`, `list[X]`, `tuple[X, ...]`, `dict[str, X]` and nested dataclasses.
It does not handle unions of two real types.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sekkei.core.errors import ConfigError, UserError

ABSENT: Mapping[str, Any] = types.MappingProxyType({"none": "absent"})
"""Metadata of a field that `to_mapping` leaves out while it is None: a key that came later, so that the hashes of
recipes without it stay."""

T = TypeVar("T")


def from_mapping(cls: type[T], data: object, path: str = "") -> T:
    """Build dataclass `cls` from `data`, refusing whatever does not fit.

    Raises:
        ConfigError: unknown key, missing key, wrong type, or the dataclass's own `__post_init__`
            refused the values (`ValueError` there is reported under `path`).
    """
    if not isinstance(data, Mapping):
        raise ConfigError(path, f"expected a mapping of keys, got {_show(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(_join(path, key), _unknown(str(key), list(fields)))
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(_join(path, name), f"is required ({_name(hints[name])})")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(_join(path, error.key), str(error).removeprefix(f"{error.key}: ")) from None
    except ValueError as error:
        raise ConfigError(path, str(error)) from None


def to_mapping(config: object) -> Any:
    """The inverse of `from_mapping`: plain dicts and lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = [(f, getattr(config, f.name)) for f in dataclasses.fields(config)]
        return {f.name: to_mapping(value) for f, value in values if value is not None or f.metadata != ABSENT}
    if isinstance(config, Mapping):
        return {str(key): to_mapping(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_mapping(value) for value in config]
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, got {_show(data)}")
    return data


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML safely (no Python tags), with a one-line error that names `source`.

    Raises:
        UserError: it is not YAML, or a mapping has a key twice (YAML forbids that, its parser would keep the last).
    """
    import yaml

    try:
        _refuse_doubles(yaml.compose(text, Loader=yaml.SafeLoader), source)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}:{where} is not valid YAML ({getattr(error, 'problem', error)})") from None


def _refuse_doubles(root: Any, source: str) -> None:
    """Walk a parsed document, each node once (an anchor may stand for many, or for itself)."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen or isinstance(node.value, str):
            continue
        seen.add(id(node))
        lines: dict[str, int] = {}
        for item in node.value:
            if not isinstance(item, tuple):
                waiting.append(item)
                continue
            key, value = item
            waiting.append(value)
            if not isinstance(key.value, str):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{source}: {key.value} stands twice in one mapping, in line {lines[key.value]} and in line "
                    f"{line}; leave one out"
                )
            lines[key.value] = line


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`: mappings merge key by key, everything else is replaced, `null` removes a block."""
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b.c=value` assignments from the command line; the value is read as YAML.

    Raises:
        ConfigError: no `=`, or a step of the path is not a mapping.
    """
    result: dict[str, Any] = dict(data)
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key:
            raise ConfigError(assignment, "an override is written key=value, as in model.num_layers=6")
        patch: Any = parse_yaml(text, key)
        steps = key.split(".")
        for depth in range(len(steps) - 1):
            node = _get(result, steps[: depth + 1])
            if node is not None and not isinstance(node, Mapping):
                raise ConfigError(".".join(steps[: depth + 1]), f"is {_show(node)}, it has no key {steps[depth + 1]!r}")
        for step in reversed(steps):
            patch = {step: patch}
        result = merge(result, patch)
    return result


def _get(data: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        if not isinstance(data, Mapping):
            return None
        data = data.get(step)
    return data


def _convert(kind: Any, value: object, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = [arg for arg in args if arg is not type(None)]
        return _convert(inner, value, path)
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool) != any(value is a for a in args if isinstance(a, bool)):
            raise ConfigError(path, f"got {_show(value)}, must be one of {', '.join(map(str, args))}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(path, f"expected a list, got {_show(value)}")
        return origin(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"expected a mapping, got {_show(value)}")
        return {str(key): _convert(args[1], item, _join(path, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return from_mapping(typing.cast(type, kind), value, path)
    return _scalar(kind, value, path)


def _scalar(kind: Any, value: object, path: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 (no dot) as text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Any or (type(value) is kind):
        return value
    raise ConfigError(path, f"expected {_name(kind)}, got {_show(value)}")


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key; {hint}"


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind)


def _show(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path and key else f"{path or key}"
