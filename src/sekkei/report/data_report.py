"""report.html of a cleaning run: what came in, which rule took what, and texts to look at, in one file.

    summary.json + documents-*.parquet + ledger.parquet + pages.parquet  ->  report.html

A waterfall over blocks and rules, histograms of length, language and quality measures of what was kept, and for every
rule a browsable sample of what it dropped or removed, each with its URL where one is known. No scripts, no outside
assets; the same output gives the same page. Samples are drawn by the digest of the id, so they are spread over the
corpus and do not change between runs.

Memory: one batch of rows, and the samples.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.report.style import BLUE, GREEN, GREY, ORANGE, RED, Chart, styled
from sekkei.text import quality
from sekkei.text.pipeline.origins import urls_of

MEASURED = 2_000  # kept documents whose quality is measured
KEPT_CHARS = 1_200  # of a kept text shown
MAX_BARS = 24
MEASURES = ("mean_word_length", "terminal_lines", "short_lines", "duplicate_line_chars", "stop_words", "top_4gram")


@dataclass(frozen=True)
class Sample:
    """One text to look at."""

    head: str
    text: str


@dataclass(frozen=True)
class Group:
    """Samples of one rule."""

    name: str
    about: str
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Section:
    """A heading with charts or samples."""

    title: str
    about: str
    charts: Sequence[str] = ()
    groups: Sequence[Group] = ()


class Pick:
    """The `size` items of smallest digest seen so far: a sample that does not depend on order."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self._heap: list[tuple[int, int, Any]] = []

    def add(self, name: str, item: Any) -> None:
        self.count += 1
        rank = -int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        entry = (rank, -self.count, item)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[Any]:
        """What was picked, smallest digest first."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def render(folder: Path, page: Path, samples: int = 12) -> Path:
    """Write the report of a cleaned corpus.

    Args:
        page: the file to write. samples: texts shown per rule.
    Raises:
        UserError: the folder holds no finished output of `sekkei data clean`, or a file of it is damaged.
    """
    if samples < 1:
        raise UserError(f"--samples={samples}: must be at least 1")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        kept, lengths, languages = _kept(folder, samples)
        groups = _ledger(folder, samples)
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise UserError(f"{folder}: no finished output of sekkei data clean ({error})") from None
    source = resources.files("sekkei.report").joinpath("data_report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    measured = [document["text"] for document in kept.items()]
    shown = [
        Sample(
            f"{_named(d['id'], json.loads(d['meta']).get('url'))} · {d['lang'] or '?'} · {len(d['text']):,} characters",
            d["text"][:KEPT_CHARS],
        )
        for d in kept.items()[:samples]
    ]
    came = summary["blocks"][0]["in"] if summary["blocks"] else 0
    html = environment.from_string(source).render(
        title=f"What was kept of {Path(summary['input']).name}, and why",
        subtitle=f"{summary['documents']:,} of {came:,} items kept, {summary['chars']:,} characters.",
        sections=[
            Section("From pages to documents", "What each rule dropped, in the order of blocks.", [waterfall(summary)]),
            Section("What was kept", "Lengths, languages, quality measures.", _charts(lengths, languages, measured)),
            Section("Kept texts", "", groups=[Group("kept", f"{kept.count:,} documents", shown)]),
            Section("Dropped and removed", "A row of the ledger each; excerpts are short.", groups=groups),
        ],
    )
    atomic.write_text(page, html)
    return page


@styled
def waterfall(summary: dict[str, Any]) -> str:
    """Items that came in, what each rule dropped, what is left."""
    rows: list[tuple[str, float, float, str]] = []
    came = left = summary["blocks"][0]["in"] if summary["blocks"] else 0
    rows.append(("came in", 0, came, GREY))
    drops = [
        (rule if rule.startswith(block["block"]) or "." in rule else f"{block['block']}: {rule}", count)
        for block in summary["blocks"]
        for rule, count in sorted(block["rules"].items(), key=lambda item: (-item[1], item[0]))
    ]
    shown = {name for name, _ in sorted(drops, key=lambda item: -item[1])[:MAX_BARS]}
    rest = 0
    for name, count in drops:
        left -= count
        if name in shown:
            rows.append((name, left, count, RED))
        else:
            rest += count
    if rest:
        rows.append((f"{len(drops) - len(shown)} rarer rules (spread over the blocks)", left, rest, ORANGE))
    rows.append(("kept", 0, summary["documents"], GREEN))
    chart = Chart("data.waterfall", "Items kept and dropped by rule", height=0.8 + 0.27 * len(rows))
    (axes,) = chart.axes
    for place, (_, start, width, color) in enumerate(rows):
        axes.barh(place, width, left=start, color=color, height=0.66)
        share = f"  ({width / came:.1%})" if came else ""
        axes.annotate(
            f"{width:,.0f}{share}",
            (start + width, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(0, max(came, 1) * 1.16)
    return chart.svg()


@styled
def _charts(lengths: np.ndarray, languages: Counter[str], texts: Sequence[str]) -> list[str]:
    if not len(lengths):
        return []
    chart = Chart("data.kept", "Lengths and languages of kept documents", columns=2)
    first, second = chart.axes
    first.hist(lengths, bins=np.geomspace(max(1, lengths.min()), lengths.max() + 1, 40), color=BLUE)
    first.set_xscale("log")
    first.set_title("characters per document")
    most = languages.most_common(12)
    second.barh([name or "?" for name, _ in most], [count for _, count in most], color=BLUE)
    second.invert_yaxis()
    second.set_title("documents per language")
    measured = [quality.measures(text) for text in texts]
    second_chart = Chart("data.quality", "Quality measures of kept documents", rows=2, columns=3, height=2.0)
    for axes, name in zip(second_chart.axes, MEASURES, strict=True):
        axes.hist([values[name] for values in measured], bins=30, color=GREEN)
        axes.set_title(name.replace("_", " "))
    return [chart.svg(), second_chart.svg()]


def _kept(folder: Path, samples: int) -> tuple[Pick, np.ndarray, Counter[str]]:
    pick, lengths, languages = Pick(max(samples, MEASURED)), [], Counter[str]()
    for path in sorted(folder.glob("documents-*.parquet")):
        for row in _rows(path, ["id", "text", "lang", "meta"]):
            pick.add(row["id"], row)
            lengths.append(len(row["text"]))
            languages[row["lang"]] += 1
    return pick, np.array(lengths, dtype=np.int64), languages


def _ledger(folder: Path, samples: int) -> list[Group]:
    picks: dict[str, Pick] = {}
    for row in _rows(folder / "ledger.parquet", ["doc_id", "rule", "value", "threshold", "start", "end", "excerpt"]):
        picks.setdefault(row["rule"], Pick(samples)).add(f"{row['doc_id']}\0{row['start']}", row)
    urls = urls_of(folder, {row["doc_id"] for pick in picks.values() for row in pick.items()})
    groups = []
    for rule, pick in sorted(picks.items(), key=lambda item: (-item[1].count, item[0])):
        shown = [
            Sample(
                f"{_named(row['doc_id'], urls[row['doc_id']])} · "
                f"value {row['value']:.4g}, limit {row['threshold']:.4g} · characters {row['start']:,}–{row['end']:,}",
                row["excerpt"] or "",
            )
            for row in pick.items()
        ]
        groups.append(Group(rule, f"{pick.count:,} rows", shown))
    return groups


def _named(doc_id: str, url: str | None) -> str:
    """A page's id, which begins with its file, and its URL."""
    return f"{doc_id} · {url}" if url else doc_id


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024, columns=columns):
            yield from batch.to_pylist()
