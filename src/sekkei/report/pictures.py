"""Three pictures of parallel training, from measured figures: `sekkei picture`.

    schedules   a row of boxes per rank, time to the right: measured above ideal; the bubble; peak activations beside it
    timeline    bytes alive through one step; what was gathered from other ranks in another colour
    stages      bytes per parameter by ZeRO stage and ranks, a line where the formula says

Inline SVG without scripts, as in layouts.py; colours follow the page's light or dark theme. Nothing is measured here:
figures come in as plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from sekkei.report.layouts import WIDTH, box, document, svg
from sekkei.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

KINDS = {"F": BLUE, "B": GREEN, "I": ORANGE, "W": PURPLE}
KIND_WORDS = {"F": "forward", "B": "backward", "I": "gradient of the input", "W": "gradient of the weights"}
ROW, LEFT, RIGHT = 17, 70, 150
MIB = 2**20
POINTS = 700  # of a drawn curve

Box = tuple[float, float, str, int]
"""start, end, kind, micro-batch"""


@dataclass(frozen=True)
class Gantt:
    """A schedule: boxes of each rank measured and ideal, idle shares, peak bytes of activations by rank."""

    name: str
    measured: Sequence[Sequence[Box]]
    ideal: Sequence[Sequence[Box]]
    bubble: float
    ideal_bubble: float
    peaks: Sequence[int]


@dataclass(frozen=True)
class Curve:
    """Bytes by operation of a step; where its backward pass and its optimizer begin."""

    name: str
    live: Sequence[int]
    gathered: Sequence[int]
    backward: int
    optimizer: int


@dataclass(frozen=True)
class Bar:
    """Bytes per parameter of one rank: weights, gradients, optimizer; and the formula's."""

    ranks: int
    zero: int
    parts: tuple[float, float, float]
    formula: float


def page(title: str, words: Sequence[str], *drawn: str) -> str:
    """An HTML page of some pictures, with lines above them."""
    lines = "".join(f"<p>{escape(line)}</p>\n" for line in words)
    return document(f"sekkei: {title}", f"<h1>{escape(title)}</h1>\n{lines}" + "\n".join(drawn))


def schedules(charts: Sequence[Gantt]) -> str:
    """All schedules under each other, measured ones to one scale of time, and the trade-off."""
    longest = max(end for chart in charts for rank in chart.measured for _, end, _, _ in rank)
    units = max(end for chart in charts for rank in chart.ideal for _, end, _, _ in rank)
    legend = "".join(
        box(LEFT + 190 * i, 4, 11, 11, color) + _text(LEFT + 16 + 190 * i, 14, KIND_WORDS[kind])
        for i, (kind, color) in enumerate(KINDS.items())
    )
    drawn, y = [legend], 36.0
    for chart in charts:
        drawn.append(_text(0, y, chart.name, ' font-weight="bold"'))
        for label, ranks, length, idle in (
            ("measured", chart.measured, longest, chart.bubble),
            ("ideal", chart.ideal, units, chart.ideal_bubble),
        ):
            drawn.append(_text(LEFT, y, f"{label}: idle {idle:.1%}"))
            y += 6
            for rank, boxes in enumerate(ranks):
                drawn.append(_text(LEFT - 6, y + 12, f"rank {rank}", ' text-anchor="end" opacity=".7"'))
                drawn += [_action(each, y, (WIDTH - LEFT - RIGHT) / length) for each in boxes]
                if label == "measured":
                    drawn.append(_text(WIDTH - RIGHT + 8, y + 12, f"{chart.peaks[rank] / MIB:.1f} MiB"))
                y += ROW
            y += 18
        y += 10
    return svg("Pipeline schedules, measured beside ideal", y, drawn) + "\n" + trade_off(charts)


def trade_off(charts: Sequence[Gantt]) -> str:
    """Idle share against the fullest rank's activations: each schedule a point."""
    height, low, most = 260, 210, 1.15 * max(max(chart.peaks) for chart in charts)
    top = 1.2 * max(max(chart.bubble, chart.ideal_bubble) for chart in charts)
    drawn = [
        f'<path d="M{LEFT} 20V{low}H{WIDTH - RIGHT}" fill="none" stroke="currentColor"/>',
        _text(LEFT, 12, "idle share (filled: measured, ring: ideal)"),
        _text(WIDTH - RIGHT, low + 34, "peak activations of the fullest rank, MiB", ' text-anchor="end"'),
    ]
    for tick in range(5):
        x, y = LEFT + (WIDTH - LEFT - RIGHT) * tick / 4, low - (low - 20) * tick / 4
        drawn.append(_text(x, low + 16, f"{most * tick / 4 / MIB:.1f}", ' text-anchor="middle"'))
        drawn.append(_text(LEFT - 6, y + 4, f"{top * tick / 4:.0%}", ' text-anchor="end"'))
    for chart, color in zip(charts, (GREY, BLUE, GREEN, PURPLE, ORANGE, RED), strict=False):
        x = LEFT + (WIDTH - LEFT - RIGHT) * max(chart.peaks) / most
        ys = [low - (low - 20) * share / top for share in (chart.bubble, chart.ideal_bubble)]
        drawn.append(f'<circle cx="{x:.1f}" cy="{ys[0]:.1f}" r="6" fill="{color}"/>')
        drawn.append(f'<circle cx="{x:.1f}" cy="{ys[1]:.1f}" r="5" fill="none" stroke="{color}" stroke-width="2"/>')
        drawn.append(_text(x + 10, ys[0] + 4, chart.name))
    return svg("Idle share against peak activations", height, drawn)


def timelines(curves: Sequence[Curve]) -> str:
    """One picture per curve, all to one scale of bytes."""
    most, height = max(max(curve.live) for curve in curves), 200
    drawn = []
    for place, curve in enumerate(curves):
        base, count = 30 + height + place * (height + 60), len(curve.live)
        wide = WIDTH - LEFT - 20

        def across(operation: int, wide: float = wide, count: int = count) -> float:
            return LEFT + wide * operation / count

        for values, color in ((curve.live, GREY), (curve.gathered, ORANGE)):
            points = _steps(values, across, base, height / most)
            drawn.append(f'<path d="{points}" fill="{color}" fill-opacity=".75"/>')
        for at, word in ((0, "forward"), (curve.backward, "backward"), (curve.optimizer, "optimizer")):
            x = across(at)
            drawn.append(f'<path d="M{x:.1f} {base - height}V{base}" stroke="currentColor" stroke-dasharray="3 3"/>')
            drawn.append(_text(x + 4, base + 14, word))
        peak = (
            f"{curve.name}: peak {max(curve.live) / MIB:.1f} MiB, gathered at most {max(curve.gathered) / MIB:.2f} MiB"
        )
        drawn.append(_text(LEFT, base - height - 8, peak, ' font-weight="bold"'))
        for share in (0.0, 0.5, 1.0):
            label = f"{most * share / MIB:.0f} MiB"
            drawn.append(_text(LEFT - 6, base - height * share + 4, label, ' text-anchor="end"'))
    return svg("Bytes alive through one training step", 40 + len(curves) * (height + 60), drawn)


def stages(bars: Sequence[Bar]) -> str:
    """Stacked bars by ranks, then stage."""
    height, base, wide, x = 220, 250, 46.0, float(LEFT)
    drawn = [
        box(LEFT + 130 * i, 2, 11, 11, color) + _text(LEFT + 16 + 130 * i, 12, word)
        for i, (word, color) in enumerate((("weights", BLUE), ("gradients", GREEN), ("optimizer", ORANGE)))
    ]
    drawn.append(_text(LEFT + 400, 12, "dashed: the formula"))
    most = max(max(sum(bar.parts), bar.formula) for bar in bars)
    last = bars[0].ranks
    for bar in bars:
        x += 24 if bar.ranks != last else 0
        last, y = bar.ranks, float(base)
        for size, color in zip(bar.parts, (BLUE, GREEN, ORANGE), strict=True):
            tall = size / most * (height - 20)
            y -= tall
            drawn.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide}" height="{tall:.1f}" fill="{color}"/>')
        line = base - bar.formula / most * (height - 20)
        drawn.append(f'<path d="M{x - 4:.1f} {line:.1f}h{wide + 8}" stroke="{RED}" stroke-dasharray="4 2"/>')
        drawn.append(_text(x + wide / 2, y - 6, f"{sum(bar.parts):.2f}", ' text-anchor="middle"'))
        drawn.append(_text(x + wide / 2, base + 15, f"zero {bar.zero}", ' text-anchor="middle"'))
        drawn.append(_text(x + wide / 2, base + 30, f"N = {bar.ranks}", ' text-anchor="middle" opacity=".7"'))
        x += wide + 10
    drawn.append(_text(0, base + 4, "bytes per"))
    drawn.append(_text(0, base + 18, "parameter"))
    return svg("Bytes per parameter by ZeRO stage", base + 40, drawn)


def _action(each: Box, y: float, scale: float) -> str:
    start, end, kind, number = each
    x, wide = LEFT + start * scale, max((end - start) * scale - 0.4, 0.3)
    drawn = f'<rect x="{x:.1f}" y="{y:.0f}" width="{wide:.1f}" height="{ROW - 2}" fill="{KINDS[kind]}"/>'
    if wide >= 10:
        drawn += _text(x + wide / 2, y + 11, str(number), ' text-anchor="middle" font-size="9" fill="#fff"')
    return drawn


def _steps(values: Sequence[int], across: object, base: float, scale: float) -> str:
    """A filled curve; of every group of operations the largest value, so that no peak is lost."""
    assert callable(across)
    group = -(-len(values) // POINTS)
    path = [f"M{across(0):.1f} {base}"]
    for start in range(0, len(values), group):
        tall = max(values[start : start + group]) * scale
        path.append(f"L{across(start):.1f} {base - tall:.1f}H{across(min(start + group, len(values))):.1f}")
    return " ".join([*path, f"V{base}Z"])


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(words)}</text>'
