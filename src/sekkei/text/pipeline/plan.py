"""A corpus and a block list, cut into tasks that can run anywhere and in any order.

    files ──by size──> tasks ──read──> parts ──blocks──> states ──corpus block──> states ──> …

A task is one large file, or a pack of small ones; a part is what is read of a task before some 16 MB are full. Where
a pack ends is told by hashes of file names, so a new file moves the parts of its own pack and of no other.

A plan is plain data (`to_json`): a task on another machine needs nothing but it, the input and the work folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core import config as loader
from sekkei.core.errors import ConfigError, UserError
from sekkei.text.blocks.block import CorpusBlock
from sekkei.text.blocks.extract import Extract
from sekkei.text.document import Dropped
from sekkei.text.page import Page
from sekkei.text.pipeline import declare
from sekkei.text.pipeline.part import Step
from sekkei.text.pipeline.store import Store
from sekkei.text.read.files import Read, files_in, read_file
from sekkei.text.read.hub import is_hub, shards_of

PART_BYTES = 16_000_000
PACK_FILES = 64  # a file ends its pack with probability 1/64, so packs of small files hold about as many


@dataclass(frozen=True)
class Task:
    """Files that are read one after another.

    Args:
        files: (name, path, source). size: their bytes.
    """

    files: tuple[tuple[str, str, str], ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done, and where its intermediate results live.

    Args:
        path: input file or folder, or a data set of the hub (`hub:OWNER/NAME`). work: folder of intermediate results.
        items: the block list as `declare.parse` reads it. part_bytes: of input, per part; it changes no outcome.
    """

    path: str
    work: str
    read: Read = field(default_factory=Read)
    items: tuple[Any, ...] = declare.DEFAULT
    part_bytes: int = PART_BYTES

    def __post_init__(self) -> None:
        if self.part_bytes < 1:
            raise ConfigError("part_bytes", f"{self.part_bytes} must be at least 1")
        object.__setattr__(self, "_blocks", declare.parse(list(self.items)))

    @property
    def blocks(self) -> list[declare.AnyBlock]:
        return self._blocks  # type: ignore[attr-defined]

    @property
    def store(self) -> Store:
        return Store(Path(self.work) / "store")

    @property
    def extract(self) -> Extract:
        return self.blocks[0]  # type: ignore[return-value]

    def segments(self) -> list[tuple[CorpusBlock | None, list[declare.AnyBlock]]]:
        """(the corpus block that opens a segment, the doc-by-doc blocks behind it); the first opens with none."""
        found: list[tuple[CorpusBlock | None, list[declare.AnyBlock]]] = [(None, [])]
        for block in self.blocks[1:]:
            if declare.is_corpus(block):
                found.append((block, []))  # type: ignore[arg-type]
            else:
                found[-1][1].append(block)
        return found

    def tasks(self) -> list[Task]:
        """The input cut into tasks, in the order of names.

        Raises:
            UserError: there are no files, or the work folder lies inside the input.
        """
        if is_hub(self.path):
            source = self.read.source or self.path.removeprefix("hub:").split(":")[0].rstrip("/").rpartition("/")[2]
            return [Task(((name, address, source),), 1) for name, address in shards_of(self.path)]
        root = Path(self.path)
        work = Path(self.work).resolve()
        if root.is_dir() and work.is_relative_to(root.resolve()):
            raise UserError(f"{self.work}: the output must not lie inside the input folder {self.path}")
        tasks, pack, size = [], [], 0
        for name, file in files_in(root):
            folder = name.partition("/")[0] if "/" in name else root.name if root.is_dir() else root.parent.name
            pack.append((name, str(file), self.read.source or folder or "pages"))
            size += file.stat().st_size
            if size >= self.part_bytes or _ends_pack(name):
                tasks.append(Task(tuple(pack), size))
                pack, size = [], 0
        if pack:
            tasks.append(Task(tuple(pack), size))
        return tasks

    def key(self) -> str:
        """Digest of everything but the input that the outcome depends on."""
        blocks = [declare.key_of(block) for block in self.blocks]
        return atomic.sha256_json(["plan", self.read.version, dataclasses.asdict(self.read), blocks])

    def to_json(self) -> str:
        return json.dumps(loader.to_mapping(self), ensure_ascii=False)


def plan_of(text: str) -> Plan:
    """The inverse of `Plan.to_json`."""
    return loader.from_mapping(Plan, json.loads(text))


def steps_of(blocks: Sequence[Any]) -> list[Step]:
    """Doc-by-doc blocks as the machinery runs them."""
    return [Step(block.name, declare.key_of(block), block.rewrites, block.build) for block in blocks]


def cut(items: Iterator[Page | Dropped], part_bytes: int) -> Iterator[list[Page | Dropped]]:
    """Items in lists of about `part_bytes` of content; at least one list, so that an empty task leaves its mark."""
    part: list[Page | Dropped] = []
    size = 0
    for item in items:
        part.append(item)
        size += len(item.content) if isinstance(item, Page) else 1_000
        if size >= part_bytes:
            yield part
            part, size = [], 0
    if part:
        yield part


def _ends_pack(name: str) -> bool:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=2).digest()[0] % PACK_FILES == 0


def texts_of(path: Path) -> list[str]:
    """The texts of a file or folder, read and extracted as cleaning does it, in the order of names."""
    extract = Extract().build()
    found = []
    for name, file in files_in(path):
        for item in read_file(file, name, "", Read()):
            document = extract(item)[0] if isinstance(item, Page) else None
            if document is not None:
                found.append(document.text)
    return found
