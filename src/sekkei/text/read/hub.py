"""Data sets of the hub, or any folder that the library `datasets` can read, row by row without downloading the whole.

    hub:OWNER/NAME          the split "train"                      hub:OWNER/NAME:SPLIT
    hub:OWNER/NAME:SPLIT:CONFIG                                     hub:/local/folder:SPLIT

One task per file of the data set (its shards), so many workers read side by side; a row is the page of its column
`read.text`, as in a Parquet file. What names the input for the store is the builder's hash: on the hub it follows the
revision and the files' digests, for a local folder their names, sizes and times.

Not handled: loading scripts (the library dropped them), data sets that need an account (log in with its own command).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sekkei.core.errors import UserError
from sekkei.text.blocks.block import need
from sekkei.text.document import EXCERPT_CHARS, Dropped
from sekkei.text.page import Page
from sekkei.text.read.tables import missing, row_page

if TYPE_CHECKING:
    from sekkei.text.read.files import Read

SCHEME = "hub:"


@dataclass(frozen=True)
class Address:
    """A data set, its split and configuration ("": the only one); `shard`: one of its files, -1 for all."""

    name: str
    split: str = "train"
    config: str = ""
    shard: int = -1

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}:{self.split}:{self.config}:{self.shard}"


def is_hub(path: str) -> bool:
    """Whether `path` is an address of this kind, and no file."""
    return path.startswith(SCHEME)


def address_of(path: str) -> Address:
    """The inverse of `str(address)`; parts that are left out have their defaults.

    Raises:
        UserError: there is no name, or there are too many parts.
    """
    parts = path.removeprefix(SCHEME).split(":")
    if not parts[0] or len(parts) > 4:
        raise UserError(f"{path}: must be hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or hub:OWNER/NAME:SPLIT:CONFIG")
    name, split, config, shard = (*parts, "", "", "")[:4]
    return Address(name, split or "train", config, int(shard or -1))


def shards_of(path: str) -> list[tuple[str, str]]:
    """(name, address) of every file of a data set, in order.

    Raises:
        UserError: it cannot be opened.
    """
    address = address_of(path)
    count = _stream(address).num_shards
    return [
        (
            f"{address.name}/{address.split}/{shard:05d}",
            str(Address(address.name, address.split, address.config, shard)),
        )
        for shard in range(count)
    ]


@functools.lru_cache(maxsize=8)
def fingerprint(path: str) -> str:
    """What names the content of a data set; asked once per process."""
    address = address_of(path)
    return f"{_called('load_dataset_builder', address).hash} {address.shard}"


def read_hub(path: str, name: str, source: str, options: Read) -> Iterator[Page | Dropped]:
    """Pages of one file of a data set."""
    address = address_of(path)
    stream = _stream(address)
    if address.shard >= 0:
        stream = stream.shard(num_shards=stream.num_shards, index=address.shard)
    known = stream.column_names
    if known is not None and options.text not in known:
        yield missing(name, options.text, known)
        return
    ordinal = 0
    try:
        for row in stream:
            yield row_page(f"{name}#{ordinal}", row, source, options)
            ordinal += 1
    except Exception as error:  # each format and transport has errors of its own
        first = (str(error).splitlines() or [""])[0]
        yield Dropped(f"{name}#{ordinal}", "read.damaged", float(ordinal), 0.0, f"{first}"[:EXCERPT_CHARS])


def rows_of(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, row) of a whole data set, for those who read other things than pages.

    Raises:
        UserError: it cannot be opened, or breaks off.
    """
    address, number = address_of(path), 0
    rows = iter(_stream(address))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{SCHEME}{address.name}[{number}]: cannot be read ({first})") from None
        yield f"{SCHEME}{address.name}[{number}]", row
        number += 1


def _stream(address: Address) -> Any:
    return _called("load_dataset", address, split=address.split, streaming=True)


def _called(function: str, address: Address, **more: Any) -> Any:
    """`datasets.FUNCTION` for an address; its errors as one line."""
    library = need("datasets", "datasets", f"reading {SCHEME}{address.name}", "hub")
    name = str(Path(address.name).resolve()) if Path(address.name).is_dir() else address.name
    try:
        return getattr(library, function)(name, address.config or None, **more)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{SCHEME}{address.name}: cannot be opened ({first})") from None
