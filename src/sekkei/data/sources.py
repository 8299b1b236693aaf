"""A user's own cleaned corpus as a source of a recipe: what `sekkei data clean` wrote, read document by document.

    data:
      sources:
        web:  {path: cleaned}                 all documents of cleaned/documents-*.parquet: a new domain for mixtures
        law:  {path: cleaned, source: law}    only those that `clean` gave this source (a folder of its input)
        told: {path: solved, specials: true}  in whose text <think> is the token: text of your own hand, not of the web

A source is a folder and the digest of what is in it. The digest is of the checksums in summary.json where `clean` left
one (no file is read for it), else of the files. Reading checks every file against it, so a corpus that changed under a
run is told, and never half old and half new. One row group is in memory at a time.

Not handled: documents that stand in two sources (clean them together, and name them by `source`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError
from sekkei.text.document import DOCUMENT_SCHEMA, Document

FILES = "documents-*.parquet"
SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the documents of a domain come from.

    Args:
        path: folder that `sekkei data clean` wrote. source: only documents of this source; "": all.
        tokenizer_share: of `tokenizer.train_bytes`, the part that merges are learned from in this source.
        specials: whether special tokens that its text spells are those tokens. Only for text that you trust: a page
            could open a turn of its own, or end the document.
    """

    path: str
    source: str = ""
    tokenizer_share: float = 0.25
    specials: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path", "must name a folder that `sekkei data clean` wrote")
        if not 0 <= self.tokenizer_share <= 1:
            raise ConfigError("tokenizer_share", f"{self.tokenizer_share} must lie in 0 … 1")

    def files(self) -> dict[str, str]:
        """Name of every file -> its SHA-256, in order.

        Raises:
            UserError: the folder holds no documents, or a run of `clean` has not finished there.
        """
        folder = Path(self.path)
        names = sorted(path.name for path in folder.glob(FILES))
        if not names:
            raise UserError(f"{folder}: holds no {FILES}; `sekkei data clean PAGES --out {folder}` writes them")
        try:
            told = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["files"]
            return {name: told[name]["sha256"] for name in names}
        except FileNotFoundError:  # documents from elsewhere, in our format
            return {name: atomic.sha256(folder / name) for name in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / SUMMARY}: does not fit the files beside it ({error}); clean once more"
            ) from None

    def digest(self) -> str:
        """What names its content."""
        return atomic.sha256_json([self.source, list(self.files().items())])

    def documents(self) -> Iterator[Document]:
        """All documents, in the order of files and rows.

        Raises:
            UserError: a file differs from its checksum, is no Parquet file or lacks a column; nothing is of `source`.
        """
        from pyarrow import ArrowInvalid, parquet

        found, others = 0, set()
        for name, digest in self.files().items():
            path = Path(self.path) / name
            if atomic.sha256(path) != digest:
                raise UserError(f"{path}: differs from its checksum in {SUMMARY}; clean once more")
            try:
                with parquet.ParquetFile(path) as file:
                    missing = [column for column in DOCUMENT_SCHEMA.names if column not in file.schema_arrow.names]
                    if missing:
                        raise UserError(f"{path}: lacks the columns {', '.join(missing)}")
                    for batch in file.iter_batches(1024, columns=DOCUMENT_SCHEMA.names):
                        for row in batch.to_pylist():
                            if self.source and row["source"] != self.source:
                                others.add(row["source"])
                                continue
                            found += 1
                            yield Document(**{**row, "meta": json.loads(row["meta"])})
            except ArrowInvalid as error:
                raise UserError(f"{path}: is no Parquet file ({error})") from None
        if not found:
            known = f"none of them is of source {self.source!r}; here are {', '.join(sorted(others))}"
            raise UserError(f"{self.path}: {known if others else 'holds no document'}")
