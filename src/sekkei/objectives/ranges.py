"""Which numbers an objective's settings may hold; the same words for all of them.

    check_ranges(self, counts=("steps", "pairs"), positive=("beta",), not_negative=("nll", "gamma"))

Every float must be finite: nan passes any comparison's refusal, and a loss with it is skipped step after step. What
depends on another setting is checked where both are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
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
