"""The study as one picture: accuracy against tokens per problem, one colour per family of strategies.

    100% ┤            ● k=16   ▲ ToT
         │   ● CoT
      0% ┤ ● direct                       tokens on a logarithmic axis; whiskers: 95% intervals

An SVG element without prolog or style sheet: ink is `currentColor`, so it follows the page that it stands in, as the
charts of report/ do; opened alone it is black on nothing. Points of a family with several sizes (examples, samples) are
joined in their order and labelled with the size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape

from sekkei.prompting.study import Row

WIDTH, HEIGHT = 940, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 46, 44  # px around the axes
# The palette of report/style.py, which this floor may not import.
COLOURS = {
    "direct": "#8b949e",
    "cot": "#3b82c4",
    "self-consistency": "#3f9e6e",
    "best-of-n": "#8a6fc0",
    "tot": "#e08a2e",
}
NAMES = {"direct": "direct", "cot": "chain of thought", "tot": "Tree of Thoughts"}


def study_svg(rows: Sequence[Row], title: str = "Accuracy against tokens spent per problem") -> str:
    """The picture; rows without tokens are left out."""
    rows = [row for row in rows if row.tokens > 0]
    if not rows:
        return ""
    low = math.log10(min(row.tokens for row in rows)) - 0.06
    high = math.log10(max(row.tokens for row in rows)) + 0.12

    def at(row: Row, share: float) -> tuple[float, float]:
        x = LEFT + (math.log10(row.tokens) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        return x, TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg" fill="currentColor" '
        f'font-family="sans-serif" font-size="12"><title>{escape(title)}</title>',
        *_axes(low, high),
        *_legend(rows),
    ]
    for family, colour in COLOURS.items():
        own = [row for row in rows if row.family == family]
        sized = [row for row in own if re.fullmatch(r".*\.(shots|k)\d+", row.key)]
        for series in dict.fromkeys(row.key.rpartition(".")[0] for row in sized):
            line = [at(row, row.accuracy) for row in sized if row.key.rpartition(".")[0] == series]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            if len(line) > 1:
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        for row in own:
            (x, y), (_, top), (_, bottom) = at(row, row.accuracy), at(row, row.high), at(row, row.low)
            tip = f"{row.name}: {row.accuracy:.1%} ({row.low:.1%} to {row.high:.1%}), {row.tokens:,.0f} tokens"
            parts.append(
                f"<g><title>{escape(tip)}</title>"
                f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}" stroke-opacity=".45" stroke-width="1.2"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
                f'<text x="{x + 7:.1f}" y="{y + 15:.1f}" font-size="10.5">{escape(_label(row))}</text></g>'
            )
    return "".join([*parts, "</svg>"])


def _label(row: Row) -> str:
    """What tells a point from its family: its size, its scorer, its search."""
    found = re.search(r"\.(?:shots|k)(\d+)(_early)?$", row.key)
    if found:
        place = row.key.split(".")[1] if row.key.count(".") > 1 else ""  # of examples, where it is not the usual one
        sign = "k=" if row.family == "self-consistency" else ""
        return f"{sign}{found[1]}{' early' if found[2] else ''}{f' {place}' if place else ''}"
    return row.key.split(".")[1].replace("_", " ")


def _axes(low: float, high: float) -> list[str]:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = TOP + (1 - percent / 100) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity=".16"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}%</text>')
    for power in range(math.floor(low), math.ceil(high) + 1):
        for factor in (1, 2, 5):
            place = power + math.log10(factor)
            if low <= place <= high:
                x = LEFT + (place - low) / (high - low) * (WIDTH - LEFT - RIGHT)
                parts.append(
                    f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="currentColor" stroke-opacity=".08"/>'
                    f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
                    f"{factor * 10.0**power:,g}</text>"
                )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">tokens per problem, read and written</text>'
    )
    return parts


def _legend(rows: Sequence[Row]) -> list[str]:
    parts, x = [], float(LEFT)
    for family, colour in COLOURS.items():
        if any(row.family == family for row in rows):
            name = NAMES.get(family, family)
            parts.append(
                f'<circle cx="{x + 5:.1f}" cy="18" r="4.5" fill="{colour}"/><text x="{x + 15:.1f}" y="22">{name}</text>'
            )
            x += 15 + 7.2 * len(name) + 22
    return parts
