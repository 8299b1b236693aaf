"""The block list of a recipe: names and parameters in, checked blocks out, and the default list.

    blocks:
      - extract: {extractor: trafilatura}
      - language: {keep: [en, ja]}
      - gopher_quality
      - near_duplicates: {bands: 20}

`extract` stands first, the rest in any order; a block may stand twice. The default list follows FineWeb (Penedo et
al. 2024, section 3) for scripts that part words and `unspaced` for those that do not: cheap rules before dear ones,
duplicates after the filters, so that no page goes in favour of one that is itself dropped, personal data last.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sekkei.core import atomic
from sekkei.core import config as loader
from sekkei.core.errors import ConfigError
from sekkei.text.blocks.block import Block, CorpusBlock
from sekkei.text.blocks.c4 import C4
from sekkei.text.blocks.classify import Classifier
from sekkei.text.blocks.decontaminate import Decontaminate, inputs_digest
from sekkei.text.blocks.duplicates import ExactDuplicates, NearDuplicates
from sekkei.text.blocks.extract import Extract
from sekkei.text.blocks.language import Language
from sekkei.text.blocks.lines import RepeatedLines
from sekkei.text.blocks.published import FineWeb, GopherQuality, GopherRepetition, Reference
from sekkei.text.blocks.repair import Repair
from sekkei.text.blocks.scrub import Scrub
from sekkei.text.blocks.unspaced import Unspaced

KNOWN: dict[str, type] = {
    cls.name: cls
    for cls in (
        Extract, Repair, Language, GopherRepetition, GopherQuality, C4, FineWeb, Unspaced, Reference, Classifier,
        ExactDuplicates, NearDuplicates, RepeatedLines, Scrub, Decontaminate,
    )
}  # fmt: skip
DEFAULT: tuple[str, ...] = (
    "extract", "repair", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "unspaced",
    "exact_duplicates", "near_duplicates", "repeated_lines", "scrub",
)  # fmt: skip
AnyBlock = Extract | Block | CorpusBlock


def parse(items: Sequence[Any], path: str = "blocks") -> list[AnyBlock]:
    """Blocks from a recipe's list.

    Args:
        items: each a name, or a mapping of one name to parameters.
    Raises:
        ConfigError: an unknown block or parameter, or `extract` does not stand first and alone.
    """
    if not isinstance(items, list | tuple) or not items:
        raise ConfigError(path, "must be a list of blocks, the first of them extract")
    blocks: list[AnyBlock] = []
    for place, item in enumerate(items):
        name, parameters = (item, {}) if isinstance(item, str) else _single(item, f"{path}[{place}]")
        if name not in KNOWN:
            near = difflib.get_close_matches(str(name), KNOWN, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known blocks: {', '.join(KNOWN)}"
            raise ConfigError(f"{path}[{place}]", f"no block is named {name!r}; {hint}")
        blocks.append(loader.from_mapping(KNOWN[name], parameters or {}, f"{path}[{place}].{name}"))
    if not isinstance(blocks[0], Extract) or any(isinstance(block, Extract) for block in blocks[1:]):
        raise ConfigError(path, "extract must stand first, and only there")
    return blocks


def declared(blocks: Sequence[AnyBlock]) -> list[dict[str, Any]]:
    """The list that `parse` reads, with every parameter spelled out."""
    return [{block.name: loader.to_mapping(block)} for block in blocks]


def with_changes(items: Sequence[Any], changes: Sequence[str], without: Sequence[str] = ()) -> list[Any]:
    """The list with `BLOCK.KEY=VALUE` set wherever that block stands, and without the named blocks.

    Raises:
        ConfigError: a change or a name is not about a block of the list.
    """
    found: list[dict[str, Any]] = []
    for item in items:
        found.append({item: {}} if isinstance(item, str) else {k: dict(v or {}) for k, v in item.items()})
    names = [next(iter(item)) for item in found]
    for name in without:
        if name not in names:
            raise ConfigError("without", f"{name!r} is not in the list: {', '.join(names)}")
    for change in changes:
        block, dot, rest = change.partition(".")
        key, equals, value = rest.partition("=")
        if not dot or not equals or block not in names:
            raise ConfigError("set", f"{change!r} must be BLOCK.KEY=VALUE with a block of {', '.join(names)}")
        for item in found:
            if block in item:
                item[block][key] = loader.parse_yaml(value, f"--set {change}")
    return [item for item in found if next(iter(item)) not in without]


def is_corpus(block: AnyBlock) -> bool:
    """Whether the block judges documents by each other."""
    return hasattr(block, "resolve")


def key_of(block: Any) -> str:
    """Digest of whatever a block's outcome depends on besides its input: code, parameters, files, libraries."""
    if "_key" not in vars(block):
        files = inputs_digest(block.inputs()) if hasattr(block, "inputs") else []
        made_with = {name: _version(name) for name in getattr(block, "libraries", ())}
        key = atomic.sha256_json([block.name, block.version, dataclasses.asdict(block), files, made_with])
        object.__setattr__(block, "_key", key)  # once per object: some blocks digest files for it
    return vars(block)["_key"]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _single(item: Any, path: str) -> tuple[str, Any]:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise ConfigError(path, "must be a block's name, or one name with its parameters")
    ((name, parameters),) = item.items()
    return name, parameters
