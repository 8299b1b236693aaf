"""nan and infinity are refused wherever a tuning stage wants a fraction, with key and value, before anything runs."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from sekkei.core import config as loader
from sekkei.core.errors import ConfigError
from sekkei.objectives.preference import PairingConfig
from sekkei.recipes.tune import TuneConfig

JUDGE = {"by": "env"}
REQUIRED = {"own": {"stage": "sft"}, "lora": {"rank": 4}}
KINDS = ("sft", "reward", "dpo", "kto", "online_dpo", "ppo", "grpo")


def fractions(cls: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where numbers with a fraction stand in a config, those of the configs inside it too."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kinds = [hints[field.name]]
        if typing.get_origin(kinds[0]) in (typing.Union, types.UnionType):
            kinds = list(typing.get_args(kinds[0]))
        for kind in kinds:
            if kind is float:
                yield (*path, field.name)
            elif dataclasses.is_dataclass(kind):
                yield from fractions(kind, (*path, field.name))


def stage(path: tuple[str, ...], value: float) -> dict[str, Any]:
    """A tuning stage in which one number is set, and nothing else but what has to be."""
    kind = path[0] if path[0] in KINDS else "grpo"
    data: dict[str, Any] = {"start": "sft", kind: {"steps": 1}}
    node = data
    for step in path[:-1]:
        node = node.setdefault(step, dict(JUDGE if step == "judge" else REQUIRED.get(step, {})))
    node[path[-1]] = value
    return data


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", [pytest.param(path, id=".".join(path)) for path in fractions(TuneConfig)])
def test_no_fraction_may_be_nan_or_infinite(path: tuple[str, ...], value: float) -> None:
    with pytest.raises(ConfigError, match=f"{path[-1]}.*{value}"):
        loader.from_mapping(TuneConfig, stage(path, value))


def test_every_kind_of_number_is_looked_at() -> None:
    found = {".".join(path) for path in fractions(TuneConfig)}
    assert {"lora.alpha", "judge.weight", "rewards.verifier", "grpo.kl", "sft.own.temperature"} <= found
    assert {f"{kind}.optim.lr" for kind in KINDS} | {"ppo.critic_optim.lr"} <= found
    for path in (("lora", "alpha"), ("judge", "weight"), ("rewards", "format")):
        loader.from_mapping(TuneConfig, stage(path, 0.5))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["temperature", "refusals"])
def test_nor_where_pairs_are_made(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*{value}"):
        loader.from_mapping(PairingConfig, {key: value})
