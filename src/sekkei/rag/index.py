"""The index of a folder: which files are in it, and what an update has to do.

    folder (files, SHA-256)  --compare-->  added, changed, removed  --read, chunk, embed-->  commits of whole files

An update reads every file's bytes, and works only on those whose digest is new. Files are committed in batches; each
batch is one atomic step in which the old chunks of its files go and the new ones come, so a search never sees half a
file, and an update that is cut off goes on where it stopped. Where a file cannot be read any more its old chunks are
removed: an index says what the folder says.

The settings that chunks and vectors depend on are kept in the store; another embedder or chunk size needs a rebuild.
Not handled: watching a folder; renames (a moved file is removed and added; with a vector cache that costs no model).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sekkei.core.config import from_mapping, to_mapping
from sekkei.core.errors import ConfigError, UserError
from sekkei.rag.chunk import Chunk, ChunkConfig, chunks
from sekkei.rag.embed import Embedder
from sekkei.rag.read import EMPTY, Document, Failure, digest, files_of, read, read_bytes
from sekkei.rag.store import Found, Store

FORMAT = 1
BATCH = 512  # chunks of one commit, at least; a commit is a few files of a store, and some milliseconds


@dataclass
class Update:
    """What one update did: names of files by what became of them."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    chunks: int = 0


class Index:
    """An opened index.

    Args:
        store: where its chunks are. embedder: makes vectors of questions, and of what is added.
    """

    def __init__(self, store: Store, embedder: Embedder) -> None:
        settings = store.settings()
        if settings is None:
            raise UserError("there is no index yet; make one with sekkei rag index DIR")
        if settings.get("format") != FORMAT:
            raise UserError(
                f"the index has format {settings.get('format')}, this version reads {FORMAT}; use --rebuild"
            )
        if settings["embedder"] != embedder.name:
            raise ConfigError("embedder", f"got {embedder.name}, the index was made with {settings['embedder']}")
        self.store, self.embedder = store, embedder
        self.root = Path(settings["root"])
        self.config = from_mapping(ChunkConfig, settings["chunk"], "chunk")

    @classmethod
    def create(cls, store: Store, embedder: Embedder, root: Path, config: ChunkConfig) -> Index:
        """An empty index of the folder `root`, in the place of whatever the store holds."""
        if config.unit == "tokens":
            embedder.count("")  # an embedder that cannot count says so now
        if config.unit == "tokens" and embedder.max_tokens and config.size > embedder.max_tokens:
            limit = embedder.max_tokens
            raise ConfigError("chunk.size", f"{config.size} tokens, but {embedder.name} reads only the first {limit}")
        width = embedder.embed(["width"]).shape[1]
        settings = {"format": FORMAT, "root": str(root.resolve()), "embedder": embedder.name}
        store.create(settings | {"chunk": to_mapping(config)}, width)
        return cls(store, embedder)

    def check(self, root: Path, config: ChunkConfig) -> None:
        """Refuse to go on with another folder or other chunks than the index has.

        Raises:
            UserError
        """
        if root.resolve() != self.root:
            raise UserError(f"the index is of {self.root}, not of {root.resolve()}; name another --index, or --rebuild")
        if config != self.config:
            was = ", ".join(f"{key} {value}" for key, value in to_mapping(self.config).items())
            raise ConfigError("chunk", f"the index was made with {was}; give the same, or --rebuild")

    def update(self, progress: Callable[[int, int, str], None] = lambda done, total, name: None) -> Update:
        """Bring the index to what its folder holds now.

        Args:
            progress: called with (files done, files, name) before each file.
        """
        known, report = self.store.files(), Update()
        names = files_of(self.root)
        waiting = _Batch(self, report)
        waiting.remove += sorted(set(known) - set(names))
        report.removed += waiting.remove
        for done, name in enumerate(names):
            progress(done, len(names), name)
            found = self._read(name, known.get(name))
            if isinstance(found, Document):
                waiting.add(found, name in known)
            elif isinstance(found, Failure):
                if found.reason == EMPTY:
                    report.empty.append(name)
                else:
                    report.failures.append(found)
                if name in known:
                    waiting.remove.append(name)
                    report.removed.append(name)
            else:
                report.unchanged.append(name)
        waiting.commit()
        progress(len(names), len(names), "")
        self.store.finish()
        return report

    def _read(self, name: str, known: str | None) -> Document | Failure | None:
        """The file as it is now; None if its digest is `known`."""
        try:
            data = (self.root / name).read_bytes()
        except OSError as error:
            return Failure(name, error.strerror or str(error))
        return None if digest(data) == known else read_bytes(name, data)

    def count(self, text: str) -> int:
        """Length of a text in the unit of this index's chunk sizes."""
        return self.embedder.count(text)

    def by_text(self, question: str, k: int) -> Found:
        """The k best chunks by BM25."""
        return self.store.by_text(question, k)

    def by_vector(self, question: str, k: int) -> Found:
        """The k best chunks by cosine similarity."""
        return self.store.by_vector(self.embedder.embed([question])[0], k)

    def document_of(self, chunk: Chunk) -> Document:
        """The chunk's file as it is today.

        Raises:
            UserError: it cannot be read, or the chunk's text does not stand at its place any more.
        """
        found = read(self.root, chunk.path)
        if isinstance(found, Failure):
            raise UserError(f"{chunk.path}: {found.reason}")
        if found.text[chunk.start : chunk.end] != chunk.text:
            raise UserError(f"{chunk.path} has changed since it was indexed; run sekkei rag index again")
        return found


class _Batch:
    """Files that are read and not yet committed."""

    def __init__(self, index: Index, report: Update) -> None:
        self.index, self.report = index, report
        self.remove: list[str] = []
        self.rows: list[Chunk] = []
        self.names: list[tuple[str, bool]] = []

    def add(self, document: Document, replaces: bool) -> None:
        config = self.index.config
        count: Any = len if config.unit == "characters" else self.index.count
        self.rows += chunks(document, config, count)
        self.names.append((document.path, replaces))
        if replaces:
            self.remove.append(document.path)
        if len(self.rows) >= BATCH:
            self.commit()

    def commit(self) -> None:
        if self.rows or self.remove:
            vectors = (
                self.index.embedder.embed([chunk.context for chunk in self.rows]) if self.rows else np.zeros((0, 1))
            )
            self.index.store.commit(self.remove, self.rows, vectors)
        for name, replaces in self.names:
            (self.report.changed if replaces else self.report.added).append(name)
        self.report.chunks += len(self.rows)
        self.remove, self.rows, self.names = [], [], []
