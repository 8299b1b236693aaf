"""Where chunks live: the contract of a store, and LanceDB, which keeps vectors and full text on disk without a server.

    commit(remove, rows)      one atomic step: rows of the paths in `remove` go, `rows` come; a killed process has done
                              all of it or nothing
    by_text(query, k)         BM25 over the tokens of tokens.py; English words stemmed (Snowball) without stop words
    by_vector(vector, k)      nearest by inner product of unit vectors; exact up to `ANN_ROWS` rows, HNSW above

A Lance table is a folder or an object-store prefix (`s3://bucket/prefix`, `gs://…`, `az://…`; keys come from the
environment, as lancedb reads them), and every commit is a new version that older readers do not see. The settings
that rows depend on (embedder, chunk sizes, root) are metadata of the table's schema: they cannot be parted from it.

Not handled: two writers at once on object storage without conditional writes (Lance then needs a commit lock). Rows
that were committed but not yet indexed (`finish` was cut off) are found, with scores that are a little off.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sekkei.core.errors import UserError
from sekkei.rag.chunk import Chunk
from sekkei.rag.tokens import tokens

ANN_ROWS = 100_000  # an exact scan of so many 384-wide vectors takes about 50 ms
TABLE = "chunks"
COLUMNS = tuple(field.name for field in fields(Chunk))
Found = list[tuple[float, Chunk]]  # best first


class Store(Protocol):
    """Chunks with their vectors, searchable both ways."""

    def settings(self) -> dict[str, Any] | None:
        """What `create` was given; None where nothing has been created."""
        ...

    def create(self, settings: dict[str, Any], width: int) -> None:
        """Begin an empty store, in the place of one that is there."""
        ...

    def files(self) -> dict[str, str]:
        """Path -> digest of every file that has chunks here."""
        ...

    def commit(self, remove: Sequence[str], rows: Sequence[Chunk], vectors: np.ndarray) -> None:
        """Replace, atomically, all chunks of the paths in `remove` by `rows`, whose vectors are [N, W]."""
        ...

    def finish(self) -> None:
        """Bring the search structures up to date after commits."""
        ...

    def by_text(self, query: str, k: int) -> Found: ...

    def by_vector(self, vector: np.ndarray, k: int) -> Found: ...

    def __len__(self) -> int: ...


def open_store(address: str) -> Store:
    """A folder or an object-store URL: LanceDB. `qdrant+http://host:6333/collection`: Qdrant."""
    if address.startswith("qdrant+"):
        from sekkei.rag.qdrant import QdrantStore

        return QdrantStore(address.removeprefix("qdrant+"))
    return LanceStore(address)


def words(chunk: Chunk) -> str:
    """The tokens that full-text search counts: of the file's name, the heading and the text, parted by spaces."""
    name = chunk.path.rpartition(".")[0]
    return " ".join(tokens(f"{name}\n{chunk.context}"))


class LanceStore:
    """One LanceDB database with one table."""

    def __init__(self, address: str, ann_rows: int = ANN_ROWS) -> None:
        os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are of its own insides, and go to stderr
        try:
            importlib.import_module("lancedb")
        except ImportError:
            raise UserError("an index needs lancedb; pip install 'sekkei[rag]'") from None
        self.address, self.ann_rows = address, ann_rows
        self._dirty = False
        self.database: Any = None
        self.table: Any = None
        folder = local_folder(address)
        if folder is not None and folder.is_file():
            raise UserError(f"{address}: is a file; name a folder for the index")
        if folder is None or folder.is_dir():  # connecting makes the folder: not for somebody who only looks
            self._connect()
            with self._errors():
                tables = self.database.list_tables().tables
                self.table = self.database.open_table(TABLE) if TABLE in tables else None

    def settings(self) -> dict[str, Any] | None:
        if self.table is None:
            return None
        return json.loads((self.table.schema.metadata or {}).get(b"sekkei", b"{}"))

    def create(self, settings: dict[str, Any], width: int) -> None:
        import pyarrow as pa

        kinds = {"str": pa.string(), "int": pa.int64()}
        columns = [pa.field(field.name, kinds[str(field.type)]) for field in fields(Chunk)]
        columns += [pa.field("id", pa.string()), pa.field("tokens", pa.string())]
        columns += [pa.field("vector", pa.list_(pa.float32(), width))]
        schema = pa.schema(columns, metadata={"sekkei": json.dumps(settings, sort_keys=True)})
        self._connect()
        self._dirty = True
        with self._errors():
            self.table = self.database.create_table(TABLE, schema=schema, mode="overwrite")

    def files(self) -> dict[str, str]:
        found = self._open().search().select(["path", "digest"]).limit(None).to_arrow()
        return dict(zip(found["path"].to_pylist(), found["digest"].to_pylist()))

    def commit(self, remove: Sequence[str], rows: Sequence[Chunk], vectors: np.ndarray) -> None:
        table, self._dirty = self._open(), True
        gone = f"path IN ({', '.join(_quoted(path) for path in remove)})" if remove else None
        with self._errors():
            if not rows:
                if gone:
                    table.delete(gone)
                return
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            if gone:
                merge = merge.when_not_matched_by_source_delete(gone)
            merge.execute(self._arrow(rows, vectors))

    def finish(self) -> None:
        from lancedb.index import FTS, HnswSq

        # The analyser is tokens.py; what is left to Lance is English: stemming, and stop words of its list.
        config = FTS(base_tokenizer="whitespace", stem=True, remove_stop_words=True, ascii_folding=True)
        table = self._open()
        with self._errors():
            if not len(self) or not (self._dirty or self._unindexed()):
                return
            # Made anew rather than appended to: BM25 then counts exactly the rows that are there.
            table.create_index("tokens", config=config, replace=True)
            if len(self) >= self.ann_rows:
                table.create_index("vector", config=HnswSq(distance_type="dot"), replace=True)
            table.optimize()
        self._dirty = False

    def by_text(self, query: str, k: int) -> Found:
        from lancedb.query import MatchQuery

        asked = " ".join(dict.fromkeys(tokens(query)))
        if not asked or not len(self):
            return []
        with self._errors():
            rows = self._open().search(MatchQuery(asked, "tokens")).select([*COLUMNS, "_score"]).limit(k).to_list()
        return [(row["_score"], _chunk(row)) for row in rows]

    def by_vector(self, vector: np.ndarray, k: int) -> Found:
        if not len(self):
            return []
        search = self._open().search(vector.astype(np.float32), vector_column_name="vector").distance_type("dot")
        with self._errors():
            rows = search.select([*COLUMNS, "_distance"]).limit(k).to_list()
        return [(1.0 - row["_distance"], _chunk(row)) for row in rows]

    def __len__(self) -> int:
        return 0 if self.table is None else self.table.count_rows()

    def _connect(self) -> None:
        import lancedb

        with self._errors():
            # an interval of 0: an open index sees what another process commits
            self.database = lancedb.connect(self.address, read_consistency_interval=timedelta(0))

    def _unindexed(self) -> bool:
        """Whether an earlier process committed rows and was stopped before it indexed them."""
        found = self.table.index_stats("tokens_idx")
        return found is None or found.num_unindexed_rows > 0

    def _open(self) -> Any:
        if self.table is None:
            raise UserError(
                f"{self.address}: holds no index; make one with sekkei rag index DIR --index {self.address}"
            )
        return self.table

    def _arrow(self, rows: Sequence[Chunk], vectors: np.ndarray) -> Any:
        import pyarrow as pa

        schema = self._open().schema
        columns: list[Any] = [pa.array(column) for column in zip(*map(astuple, rows))]
        columns += [pa.array([chunk.id for chunk in rows]), pa.array([words(chunk) for chunk in rows])]
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
        columns.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
        return pa.table(columns, schema=schema)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Lance reports an unreachable bucket, missing keys or a broken table as one of these three."""
        try:
            yield
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"{self.address}: {' '.join(str(error).split())[:200]}") from None


def _chunk(row: dict[str, Any]) -> Chunk:
    return Chunk(**{name: row[name] for name in COLUMNS})


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def local_folder(address: str) -> Path | None:
    """The folder that an address names, None for a URL."""
    return None if "://" in address else Path(address)
