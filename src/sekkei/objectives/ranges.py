"""Which numbers an objective's settings may hold; the same words for all of them.

    check_ranges(self, counts=("steps", "pairs"), positive=("beta",), not_negative=("nll", "gamma"))

Every float must be finite: nan passes any comparison's refusal, and a loss with it is skipped step after step. What
depends on another setting is checked where both are known; what does nothing beside another setting is refused, too
(`check_used`), as far as it differs from its default: what equals it cannot be told from what was left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from sekkei.core.errors import ConfigError


def check_ranges(
    config: Any,
    *,
    counts: Sequence[str] = (),
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Refuse numbers out of their range; a value of None is not looked at.

    Args:
        config: a dataclass. counts: fields that must be >= 1; positive: > 0; not_negative: >= 0; shares: in 0 … 1.
    Raises:
        ConfigError: names the field, its value and what would be right.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(each.name, f"got {value}, must be a finite number")
    rules = (
        (counts, "must be >= 1", lambda x: x >= 1),
        (positive, "must be > 0", lambda x: x > 0),
        (not_negative, "must be >= 0", lambda x: x >= 0),
        (shares, "must be in 0 … 1", lambda x: 0 <= x <= 1),
    )
    for names, words, holds in rules:
        for name in names:
            value = getattr(config, name)
            if value is not None and not holds(value):
                raise ConfigError(name, f"got {value}, {words}")


def check_used(config: Any, *idle: tuple[bool, str, Sequence[str]]) -> None:
    """Refuse settings that differ from their defaults and would do nothing.

    Args:
        config: a dataclass. idle: whether these fields do nothing, why and what would be right, and the fields.
    Raises:
        ConfigError: names the field, its value and what would be right.
    """
    reasons = {name: why for here, why, names in idle if here for name in names}
    for each in fields(config):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        value = getattr(config, each.name)
        if each.name in reasons and value != default:
            shown = "set" if is_dataclass(value) else f"got {value}"
            raise ConfigError(each.name, f"{shown}, but {reasons[each.name]}; or leave {each.name} out")
