"""The strict loader: what it accepts comes back unchanged, what it refuses names key and remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sekkei.core.config import from_mapping, merge, override, parse_yaml, read_yaml, to_mapping
from sekkei.core.errors import ConfigError, UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 8
    rate: float = 1e-3
    kind: Literal["plain", "ring"] = "plain"

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ConfigError("width", f"got {self.width}, must not be negative")
        if self.rate < 0:
            raise ValueError("the rate must not be negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    on: bool = False
    limit: int | None = None
    betas: tuple[float, ...] = (0.9, 0.95)
    names: list[str] = field(default_factory=list)
    parts: dict[str, Inner] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


finite = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(
    Inner, width=st.integers(min_value=0), rate=finite.filter(lambda x: x >= 0), kind=st.sampled_from(["plain", "ring"])
)
plain_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
outers = st.builds(
    Outer,
    name=plain_text,
    on=st.booleans(),
    limit=st.none() | st.integers(),
    betas=st.lists(finite).map(tuple),
    names=st.lists(plain_text),
    parts=st.dictionaries(plain_text, inners, max_size=3),
    inner=inners,
)


@given(outers)
def test_round_trip_through_yaml(config: Outer) -> None:
    text = yaml.safe_dump(to_mapping(config), allow_unicode=True)
    assert from_mapping(Outer, parse_yaml(text, "test")) == config


def test_defaults_fill_in() -> None:
    assert from_mapping(Outer, {"name": "a"}) == Outer(name="a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "a", "inner": {"widht": 4}}, "inner.widht: unknown key; did you mean 'width'?"),
        ({"name": "a", "zzz": 4}, "zzz: unknown key; known keys: betas, inner, limit, name, names, on, parts"),
        ({}, "name: is required (str)"),
        ({"name": 3}, "name: expected str, got int 3"),
        ({"name": "a", "on": 1}, "on: expected bool, got int 1"),
        ({"name": "a", "limit": True}, "limit: expected int, got bool True"),
        ({"name": "a", "limit": 2.0}, "limit: expected int, got float 2.0"),
        ({"name": "a", "betas": 0.9}, "betas: expected a list, got float 0.9"),
        ({"name": "a", "betas": [0.9, "x"]}, "betas[1]: expected float, got str 'x'"),
        ({"name": "a", "inner": None}, "inner: expected a mapping of keys, got nothing"),
        ({"name": "a", "inner": {"kind": "rings"}}, "inner.kind: got str 'rings', must be one of plain, ring"),
        ({"name": "a", "inner": {"width": -1}}, "inner.width: got -1, must not be negative"),
        ({"name": "a", "parts": {"b": {"width": -1}}}, "parts.b.width: got -1, must not be negative"),
        ({"name": "a", "inner": {"rate": -1}}, "inner: the rate must not be negative"),
        ([1], "expected a mapping of keys, got list [1]"),
    ],
)
def test_what_does_not_fit_is_refused(data: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, data)
    assert str(caught.value) == message


def test_only_an_int_becomes_a_float() -> None:
    assert from_mapping(Inner, {"rate": 1}).rate == 1.0
    assert from_mapping(Inner, parse_yaml("rate: 1e-3", "test")).rate == 0.001  # YAML 1.1 reads this as text
    with pytest.raises(ConfigError, match="expected float, got bool True"):
        from_mapping(Inner, {"rate": True})


def test_merge_goes_key_by_key() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}}
    assert merge(base, {"a": {"c": [3]}, "d": None}) == {"a": {"b": 1, "c": [3]}, "d": None}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}}


def test_override_reads_values_as_yaml() -> None:
    data = override({"inner": {"width": 1}}, ["inner.width=4", "names=[a, b]", "limit=null", "new.deep=true"])
    assert data == {"inner": {"width": 4}, "names": ["a", "b"], "limit": None, "new": {"deep": True}}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [("inner.width", "written key=value"), ("=3", "written key=value"), ("name.deep=3", "it has no key 'deep'")],
)
def test_a_wrong_override_is_refused(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        override({"name": "a"}, [assignment])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "line 1 is not valid YAML"),
        ("- 1", "a recipe is a mapping"),
        ("a: !!python/name:os.system", "not valid"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "c stands twice in one mapping, in line 2 and in line 2; leave one out"),
        ("a: 1\nb: [{c: 1}, {c: 2}]\na: 2", "a stands twice in one mapping, in line 1 and in line 3"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_key_may_stand_in_several_mappings_and_an_anchor_in_itself() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: {b: 2}\nd: *x", "test") == {"a": {"b": 1}, "c": {"b": 2}, "d": {"b": 1}}
    assert list(parse_yaml("a: &x {b: *x}", "test")) == ["a"]


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "binary.yaml")
