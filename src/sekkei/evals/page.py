"""The results of `sekkei eval` as one HTML page: figures with whiskers, the needle's grid, overlap, how it was asked.

A single file without scripts or outside assets; everything that a model or a file said is escaped. It draws what a
result file holds (suite.py, `results`) and measures nothing.

    length ->   64   128   256
    depth 0    [##] [##] [· ]       a cell is the share of keys found, printed in it; dark = found
          1    [##] [· ] [  ]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.evals.needle import grid
from sekkei.evals.outcome import Figure, Outcome

WIDTH, LABEL, ROW = 820, 300, 24  # pixels of a chart, of its labels, of a row
CELL, CELL_HEIGHT, MARGIN = 92, 44, 70
BLUE, ORANGE = "#3b82c4", "#e08a2e"
UNIT_TASKS = ("maths", "choice", "ifeval", "code", "needle", "chain")  # whose figures are shares from 0 to 1
SHOWN_ROWS = 12
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2026;
background:#fff}table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.2rem .7rem;text-align:left;
border-bottom:1px solid #8885;vertical-align:top}.note{opacity:.75}pre{white-space:pre-wrap;background:#8881;
padding:.6rem;max-height:22rem;overflow:auto;font-size:13px}svg text{fill:currentColor;font:13px system-ui,sans-serif}
@media(prefers-color-scheme:dark){body{background:#14171b;color:#e4e7eb}}"""


def write_page(path: Path, model: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Path:
    """Write the page, atomically."""
    title = f"Evaluation of {model['name']}"
    facts = _table([[key, _plain(value)] for key, value in model.items()])
    sections = "\n".join(_section(outcome) for outcome in outcomes)
    atomic.write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>\n{facts}\n{sections}\n</body></html>\n",
    )
    return path


def _section(outcome: Outcome) -> str:
    main = {name: one for name, one in outcome.ordered() if not name.startswith(("length.", "kind."))}
    parts = [f"<h2>{escape(outcome.task)}</h2>", _whiskers(outcome.task, main)]
    if outcome.task == "needle":
        parts.append(_heat(outcome))
    kinds = {name: one for name, one in outcome.ordered() if name.startswith("kind.")}
    if kinds:
        parts.append(f"<details><summary>by kind of instruction</summary>{_whiskers(outcome.task, kinds)}</details>")
    parts += [f'<p class="note">{escape(note)}</p>' for note in outcome.notes]
    data = outcome.as_json()
    asked = [["items", str(outcome.items)], ["tokens", _plain(data["tokens"])]]
    asked += [[key, _plain(value)] for key, value in outcome.settings.items()]
    asked.append(["training data", _overlap_words(outcome.overlap)])
    parts.append(f"<details open><summary>how it was asked</summary>{_table(asked)}")
    parts.append(f"<pre>{escape(outcome.prompt)}</pre></details>" if outcome.prompt else "</details>")
    if outcome.rows:
        shown = "".join(f"<pre>{escape(_plain(row))}</pre>" for row in outcome.rows[:SHOWN_ROWS])
        parts.append(
            f"<details><summary>the first {min(SHOWN_ROWS, len(outcome.rows))} items</summary>{shown}</details>"
        )
    return "\n".join(parts)


def _overlap_words(found: Mapping[str, Any]) -> str:
    if "overlapping" not in found:
        return f"overlap {found.get('overlap', 'unknown')}: {found.get('why', '')}"
    short = f", {found['too_short']} too short to tell" if found["too_short"] else ""
    share = f"{100 * found['share']:.1f}% [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return f"{found['overlapping']} of {found['items']} items share {found['ngram']} words in a row ({share}){short}"


def _whiskers(task: str, figures: Mapping[str, Figure]) -> str:
    """Dots with 95% intervals, one row per figure."""
    low, high = 0.0, 1.0
    if task not in UNIT_TASKS:
        bounds = [bound for one in figures.values() for bound in (one.value, one.low, one.high) if bound is not None]
        high = max([1e-9, *bounds])
    span, height = WIDTH - LABEL - 150, ROW * len(figures) + 22

    def x(value: float) -> float:
        return LABEL + span * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for place, (name, one) in enumerate(figures.items()):
        y = ROW * place + ROW / 2
        parts.append(f'<text x="{LABEL - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name[:44])}</text>')
        told = f"{one.value:.3f}"
        if one.low is not None and one.high is not None:
            parts.append(
                f'<line x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{BLUE}" '
                f'stroke-width="3" stroke-opacity=".5"/>'
            )
            told += f" [{one.low:.3f}, {one.high:.3f}]"
        if math.isfinite(one.value) and one.value <= high:
            parts.append(f'<circle cx="{x(one.value):.1f}" cy="{y:.1f}" r="4" fill="{ORANGE}"/>')
        parts.append(f'<text x="{WIDTH - 145}" y="{y + 4:.1f}">{told}</text>')
    bottom = ROW * len(figures) + 2
    parts.append(f'<line x1="{LABEL}" x2="{LABEL + span}" y1="{bottom}" y2="{bottom}" stroke="currentColor"/>')
    parts.append(f'<text x="{LABEL}" y="{bottom + 16}">{low:g}</text>')
    parts.append(f'<text x="{LABEL + span}" y="{bottom + 16}" text-anchor="end">{high:.3g}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(task)}</title>{"".join(parts)}</svg>'


def _heat(outcome: Outcome) -> str:
    """The needle's grid: lengths across, depths down."""
    lengths, depths, cells = grid(outcome)
    parts = [f'<text x="{MARGIN}" y="14">tokens of the prompt</text>']
    for column, length in enumerate(lengths):
        parts.append(f'<text x="{MARGIN + CELL * (column + 0.5):.0f}" y="34" text-anchor="middle">{length}</text>')
    for row, (depth, figures) in enumerate(zip(depths, cells)):
        top = 42 + CELL_HEIGHT * row
        parts.append(f'<text x="{MARGIN - 8}" y="{top + 27}" text-anchor="end">{depth:g}</text>')
        for column, one in enumerate(figures):
            left = MARGIN + CELL * column
            light = "#fff" if one.value > 0.55 else "#14171b"
            interval = f"{one.low or 0:.2f} to {one.high or 0:.2f}"
            parts.append(
                f"<g><title>length {lengths[column]}, depth {depth:g}: {one.value:.2f}, 95% {interval}</title>"
                f'<rect x="{left}" y="{top}" width="{CELL - 3}" height="{CELL_HEIGHT - 3}" fill="{_shade(one.value)}"/>'
                f'<text x="{left + (CELL - 3) / 2:.1f}" y="{top + 26}" text-anchor="middle" style="fill:{light}">'
                f"{one.value:.2f}</text></g>"
            )
    width, height = MARGIN + CELL * len(lengths), 42 + CELL_HEIGHT * len(depths) + 4
    head = "<h3>Found, by length and depth (0 = the needle comes first)</h3>"
    return f'{head}<svg class="heat" viewBox="0 0 {max(width, WIDTH)} {height}" role="img">{"".join(parts)}</svg>'


def _shade(value: float) -> str:
    """From pale to dark blue, as a hexadecimal colour."""
    pale, dark = (0xE3, 0xEC, 0xF5), (0x1D, 0x4E, 0x89)
    mixed = (round(a + (b - a) * min(max(value, 0.0), 1.0)) for a, b in zip(pale, dark))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _table(rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{body}</table>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
