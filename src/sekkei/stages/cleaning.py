"""The data stage's pages, cleaned by the recipe's blocks: what `sekkei data clean` does, into the run folder.

    data/pages/ or the user's folder ──data.clean.blocks──> data/cleaned/  documents-*.parquet  ledger.parquet
                                                                           pages.parquet        summary.json

`sekkei data report RUN` and `sekkei data why RUN PAGE` open the result. Half-done work lies in `.cleaning` until
the end: a run that was killed goes on there, and the outcome depends on neither the number of workers nor the order.

Not handled: clusters (clean there with `sekkei data clean`, and name the result under `data.sources`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sekkei.core import atomic, hardware
from sekkei.core.errors import UserError
from sekkei.core.progress import Console
from sekkei.data.corpus import CleanConfig
from sekkei.data.sources import SourceConfig
from sekkei.stages.run import Figures
from sekkei.text.document import Document
from sekkei.text.pipeline import declare, local
from sekkei.text.pipeline.output import SUMMARY
from sekkei.text.pipeline.plan import Plan
from sekkei.text.read.files import files_in

CLEANED = "cleaned"
WORK = ".cleaning"
TASKS_PER_WORKER = 8  # a worker takes a second to start: fewer tasks are done sooner without it


def clean_pages(config: CleanConfig, pages: Path, out: Path, console: Console) -> Figures:
    """Clean a folder of pages into `out`/cleaned.

    Returns:
        data.pages, data.kept, and data.dropped.RULE for every rule.
    Raises:
        UserError: there are no pages, or none is kept; names the rule that dropped most.
    """
    plan = Plan(path=str(pages), work=str(out / WORK), read=config.read, items=config.blocks)
    tasks = len(plan.tasks())
    workers = max(1, min(hardware.cores(), tasks // TASKS_PER_WORKER))
    summary, _ = local.run(plan, out / CLEANED, workers, console)
    blocks = summary["blocks"]
    dropped = Counter[str]()
    for block in blocks:
        dropped.update(block["rules"])
    if not summary["documents"]:
        shutil.rmtree(out / CLEANED)
        shutil.rmtree(out / WORK)
        raise UserError(_all_dropped(blocks))
    for block in blocks:
        block.pop("seconds", None)  # the same pages leave the same bytes; gone already if a kill came after this
    atomic.write_json(out / CLEANED / SUMMARY, {**summary, "input": pages.name})
    (out / CLEANED / ".lock").unlink(missing_ok=True)
    shutil.rmtree(out / WORK)
    figures: Figures = {"data.pages": blocks[0]["in"], "data.kept": summary["documents"]}
    return figures | {f"data.dropped.{rule}": count for rule, count in sorted(dropped.items())}


def cleaned_documents(data: Path) -> Iterator[Document]:
    """The documents that `clean_pages` kept, of the data stage's folder."""
    return SourceConfig(path=str(data / CLEANED)).documents()


def pages_digest(pages: Path) -> str:
    """Digest of a user's page folder: a changed page makes the stage run again.

    Raises:
        UserError: there is nothing.
    """
    try:
        found = files_in(pages)
    except UserError as error:
        raise UserError(f"data.pages.path={error}") from None
    return atomic.sha256_json([[name, atomic.sha256(file)] for name, file in found])


def block_keys(config: CleanConfig) -> list[str]:
    """What the outcome depends on besides the pages: code, parameters, files and libraries of every block."""
    return [declare.key_of(config.read), *(declare.key_of(block) for block in declare.parse(config.blocks))]


def _all_dropped(blocks: list[dict[str, Any]]) -> str:
    """The rule that dropped most of the pages, and what to do about it."""
    rule, count, block = max(((r, n, b["block"]) for b in blocks for r, n in b["rules"].items()), key=lambda f: f[1])
    what = f"all {blocks[0]['in']} pages were dropped, {count} of them by the rule {rule!r}"
    if block == "extract":  # with what could not be read
        return f"{what}; data.pages.path must name pages: HTML, text, WARC, Parquet or JSON lines"
    return f"{what} of the block {block}; change it in data.clean.blocks, or give other pages"
