"""Chunks in a Qdrant collection, for indexes that one machine does not hold: `qdrant+http://host:6333/collection`.

    vector "dense"   inner product of unit vectors (Qdrant's own HNSW)
    vector "text"    BM25 as a sparse product: a token's place is its hash, a chunk's weight is
                     tf (k1 + 1) / (tf + k1 (1 - b + b length / MEAN_LENGTH)), and Qdrant multiplies by the token's IDF
    payload          the chunk, and `rows`: how many chunks its file has; one point without vectors holds the settings

Qdrant has no transaction over several requests, so a commit puts new rows before it takes old ones away: a reader may
see both for a moment, and none is ever missing. A file whose rows are not complete, or of two versions (the process was
killed in between), is listed with no digest, so the next update does it again. The key is read from SEKKEI_QDRANT_KEY.

Unlike Lance (store.py): English endings are cut by rule (tokens.stem) and not by Snowball, and BM25 takes a constant
for the mean length, since sparse weights are fixed when they are written.
Not handled: sharding and replication of a collection; make it by hand with these two vectors if the defaults do not do.
"""

from __future__ import annotations

import json
import os
import uuid
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from sekkei.core.errors import UserError
from sekkei.rag.chunk import Chunk
from sekkei.rag.store import COLUMNS, Found, words
from sekkei.rag.tokens import STOP_WORDS, stem, tokens

K1, B = 1.2, 0.75  # Robertson and Zaragoza 2009; as Lance
MEAN_LENGTH = 150  # tokens without stop words of a chunk of 1,600 characters of English
BATCH = 256  # points of one request: some 2 MB
SETTINGS = str(uuid.UUID(int=0))  # id of the point that holds the settings
KEY_VARIABLE = "SEKKEI_QDRANT_KEY"


class QdrantStore:
    """One collection.

    Args:
        address: http(s)://host:port/collection.
        client: a client that is open already (Qdrant's local mode, in tests), instead of one of the address.
    """

    def __init__(self, address: str, client: Any = None) -> None:
        url, _, self.collection = address.rpartition("/")
        if not self.collection or (client is None and not url.startswith(("http://", "https://"))):
            raise UserError(f"qdrant+{address}: write qdrant+http://HOST:PORT/COLLECTION")
        try:
            import qdrant_client
        except ImportError:
            raise UserError("an index in Qdrant needs: pip install qdrant-client") from None
        self.address, self.models = f"qdrant+{address}", qdrant_client.models
        self.client = client or qdrant_client.QdrantClient(
            url=url, api_key=os.environ.get(KEY_VARIABLE), check_compatibility=False, timeout=60
        )

    def settings(self) -> dict[str, Any] | None:
        with self._errors():
            if not self.client.collection_exists(self.collection):
                return None
            found = self.client.retrieve(self.collection, [SETTINGS])
        if not found:
            raise UserError(f"{self.address}: the collection is not sekkei's; name another")
        return json.loads(found[0].payload["settings"])

    def create(self, settings: dict[str, Any], width: int) -> None:
        models = self.models
        self.settings()  # a collection of somebody else is refused, not replaced
        with self._errors():
            if self.client.collection_exists(self.collection):
                self.client.delete_collection(self.collection)
            self.client.create_collection(
                self.collection,
                vectors_config={"dense": models.VectorParams(size=width, distance=models.Distance.DOT)},
                sparse_vectors_config={"text": models.SparseVectorParams(modifier=models.Modifier.IDF)},
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the local mode says that it needs no such index
                self.client.create_payload_index(self.collection, "path", models.PayloadSchemaType.KEYWORD)
            written = json.dumps(settings, sort_keys=True)
            self.client.upsert(
                self.collection, [models.PointStruct(id=SETTINGS, vector={}, payload={"settings": written})]
            )

    def files(self) -> dict[str, str]:
        rows: Counter[tuple[str, str]] = Counter()
        wanted: dict[tuple[str, str], int] = {}
        for payload in self._scroll(["path", "digest", "rows"]):
            key = payload["path"], payload["digest"]
            rows[key] += 1
            wanted[key] = payload["rows"]
        versions = Counter(path for path, _ in rows)
        return {
            path: value if versions[path] == 1 and rows[path, value] == wanted[path, value] else ""
            for path, value in rows
        }

    def commit(self, remove: Sequence[str], rows: Sequence[Chunk], vectors: np.ndarray) -> None:
        models = self.models
        of_file = Counter(chunk.path for chunk in rows)
        points = [
            models.PointStruct(
                id=_id(chunk),
                vector={"dense": vector.tolist(), "text": self._sparse(_weights(words(chunk)))},
                payload=asdict(chunk) | {"rows": of_file[chunk.path]},
            )
            for chunk, vector in zip(rows, vectors.astype(np.float32))
        ]
        with self._errors():
            for at in range(0, len(points), BATCH):
                self.client.upsert(self.collection, points[at : at + BATCH], wait=True)
            for at in range(0, len(remove), BATCH):
                paths = list(remove[at : at + BATCH])
                kept = [_id(chunk) for chunk in rows if chunk.path in set(paths)]
                gone = models.Filter(
                    must=[models.FieldCondition(key="path", match=models.MatchAny(any=paths))],
                    must_not=[models.HasIdCondition(has_id=kept)] if kept else None,
                )
                self.client.delete(self.collection, models.FilterSelector(filter=gone), wait=True)

    def finish(self) -> None:
        """Nothing: Qdrant indexes what it is given."""

    def by_text(self, query: str, k: int) -> Found:
        asked = dict.fromkeys((_place(token) for token in _counted(" ".join(tokens(query)))), 1.0)
        return self._query(self._sparse(asked), "text", k) if asked else []

    def by_vector(self, vector: np.ndarray, k: int) -> Found:
        return self._query(vector.astype(np.float32).tolist(), "dense", k)

    def __len__(self) -> int:
        with self._errors():
            return self.client.count(self.collection, exact=True).count - 1  # the settings

    def _query(self, query: Any, vector: str, k: int) -> Found:
        with self._errors():
            points = self.client.query_points(self.collection, query=query, using=vector, limit=k).points
        return [(point.score, Chunk(**{name: point.payload[name] for name in COLUMNS})) for point in points]

    def _scroll(self, fields: list[str]) -> Iterator[dict[str, Any]]:
        """The named fields of every chunk."""
        offset: Any = None
        while True:
            with self._errors():
                points, offset = self.client.scroll(
                    self.collection, limit=1000, offset=offset, with_payload=fields, with_vectors=False
                )
            yield from (point.payload for point in points if point.id != SETTINGS)
            if offset is None:
                return

    def _sparse(self, weights: dict[int, float]) -> Any:
        return self.models.SparseVector(indices=list(weights), values=list(weights.values()))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What a server that is away, or says no, raises."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, OSError, ValueError) as error:
            raise UserError(f"{self.address}: {' '.join(str(error).split())[:200]}") from None


def _id(chunk: Chunk) -> str:
    return str(uuid.UUID(hex=chunk.id))


def _counted(spaced: str) -> list[str]:
    return [stem(token) for token in spaced.split() if token not in STOP_WORDS]


def _place(token: str) -> int:
    return zlib.crc32(token.encode())


def _weights(spaced: str) -> dict[int, float]:
    """BM25 weights without IDF, by the place of each token; two tokens of one hash (rare) add up."""
    found = _counted(spaced)
    norm = K1 * (1 - B + B * len(found) / MEAN_LENGTH)
    weights: Counter[int] = Counter()
    for token, times in Counter(found).items():
        weights[_place(token)] += times * (K1 + 1) / (times + norm)  # type: ignore[assignment]
    return dict(weights)
