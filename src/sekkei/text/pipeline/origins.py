"""Where a page came from and what became of it: the ledger names pages by id, people by URL.

    pages.parquet {doc_id, file, url}      one row per page that the ledger names, in the ledger's order

`file` is the input file below the input folder, `url` what the archive or the row says, "" where nothing does. Pages
that were kept have their URL in `meta` of their document. `fates` looks through all three files of an output.

Memory: one batch of rows, and what is found. Not handled: an index; a look-up reads ids and URLs of the whole output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sekkei.core.errors import UserError
from sekkei.text.document import LEDGER_SCHEMA, Dropped
from sekkei.text.pipeline.part import State
from sekkei.text.pipeline.store import Store

PAGES = "pages.parquet"
PAGES_SCHEMA = pa.schema([(name, pa.string()) for name in ("doc_id", "file", "url")])
MOST = 20  # pages that one look-up tells of
_RECORD = re.compile(r"#\d+$")


@dataclass
class Fate:
    """What became of one page.

    Args:
        kept: file that its document is in; "" if it was dropped.
        rows: of the ledger, in the order of blocks; the last one of a dropped page says why it went.
    """

    doc_id: str
    url: str
    kept: str = ""
    rows: list[Dropped] = field(default_factory=list)


def file_of(doc_id: str) -> str:
    """The file of a page's id, which is `FILE` or `FILE#RECORD`."""
    return _RECORD.sub("", doc_id)


def pages_of(store: Store, state: State, ledger: Sequence[pa.Table]) -> pa.Table:
    """Rows of pages.parquet for one part.

    Args:
        state: the part's last. ledger: its tables.
    """
    if not ledger:
        return PAGES_SCHEMA.empty_table()
    names = pc.unique(pa.chunked_array([chunk for table in ledger for chunk in table["doc_id"].chunks], pa.string()))
    first = store.get(state.chain[0]).tables
    urls: dict[str, str] = {}
    if "changed" in first:  # of those that became documents
        came = first["changed"].select(["id", "meta"])
        came = came.filter(pc.is_in(came["id"], value_set=names))
        urls.update((row["id"], json.loads(row["meta"]).get("url", "")) for row in came.to_pylist())
    if "urls" in first:  # of those that did not
        urls.update(zip(*(first["urls"][name].to_pylist() for name in ("doc_id", "url")), strict=True))
    ids = names.to_pylist()
    return pa.table([ids, [file_of(i) for i in ids], [urls.get(i, "") for i in ids]], schema=PAGES_SCHEMA)


def urls_of(folder: Path, ids: Iterable[str]) -> dict[str, str]:
    """URLs of pages that the ledger names; "" where none is known."""
    wanted = set(ids)
    found = (b.filter(_among(b["doc_id"], wanted)) for b in _batches(folder / PAGES, ["doc_id", "url"]))
    return {row["doc_id"]: row["url"] for batch in found for row in batch.to_pylist()}


def fates(folder: Path, query: str) -> tuple[list[Fate], int]:
    """What became of the pages that a person asks for.

    Args:
        query: an id or a URL; where no page has it, a part of URLs.
    Returns:
        the first MOST pages by id, and how many there are.
    Raises:
        UserError: the folder holds no finished output, or no page of it matches.
    """
    try:
        found = _find(folder, query, True) or _find(folder, query, False)
        shown = {name: found[name] for name in sorted(found)[:MOST]}
        for batch in _batches(folder / "ledger.parquet", LEDGER_SCHEMA.names):
            for row in batch.filter(_among(batch["doc_id"], shown)).to_pylist():
                shown[row["doc_id"]].rows.append(Dropped(**row))
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise UserError(f"{folder}: no finished output of sekkei data clean ({error})") from None
    if not found:
        raise UserError(
            f"{query}: no page of {folder} has this id, nor this in its URL; ids are FILE or FILE#RECORD, as in {PAGES}"
        )
    return list(shown.values()), len(found)


def _find(folder: Path, query: str, whole: bool) -> dict[str, Fate]:
    """Pages by id whose id or URL is `query`, or (not `whole`) whose URL holds it."""
    hit = pc.equal if whole else pc.match_substring
    found: dict[str, Fate] = {}
    for batch in _batches(folder / PAGES, PAGES_SCHEMA.names):
        asked = pc.or_(pc.equal(batch["doc_id"], query), hit(batch["url"], query))
        found.update((row["doc_id"], Fate(row["doc_id"], row["url"])) for row in batch.filter(asked).to_pylist())
    spelled = json.dumps(query, ensure_ascii=False)[1:-1]  # as `meta` has it
    for path in sorted(folder.glob("documents-*.parquet")):
        for batch in _batches(path, ["id", "meta"]):
            asked = pc.or_(_among(batch["id"], {*found, query}), pc.match_substring(batch["meta"], spelled))
            for row in batch.filter(asked).to_pylist():
                url = json.loads(row["meta"]).get("url", "")
                if row["id"] in found or row["id"] == query or (url == query if whole else query in url):
                    found.setdefault(row["id"], Fate(row["id"], url)).kept = path.name
    return found


def _among(column: pa.Array, names: Iterable[str]) -> pa.Array:
    return pc.is_in(column, value_set=pa.array(list(names), pa.string()))


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(4096, columns=columns)
