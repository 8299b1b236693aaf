"""Evaluation items from JSON lines, and a seeded choice of them.

    {"question": …}      one object a line; empty lines are skipped; .gz is unpacked

Every mistake names the file and the line.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed

T = TypeVar("T")


def read_items(path: Path, make: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """`make` of every line of a file.

    Args:
        make: turns one object into an item; KeyError, TypeError and ValueError there name what is wrong with it.
    Raises:
        UserError: the file cannot be read, is empty, or a line is no such item.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise TypeError("it is no JSON object")
            items.append(make(data))
        except KeyError as error:
            raise UserError(f"{path} line {number}: {error} is missing") from None
        except (ValueError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{path} line {number}: {error}") from None
    if not items:
        raise UserError(f"{path}: holds no items")
    return items


def chosen(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """`limit` of the items, drawn without replacement, in the file's order; all of them for None."""
    if limit is None or limit >= len(items):
        return list(items)
    places = random.Random(derive_seed("evaluation items", seed)).sample(range(len(items)), limit)
    return [items[place] for place in sorted(places)]
