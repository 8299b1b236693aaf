"""How charts look, and how a matplotlib figure becomes an inline SVG that is the same bytes every time.

Text and axes are drawn in a marker colour that is then written as `currentColor`, so a chart follows the
page's light or dark theme. Text stays text. Element ids are hashed with a salt that holds the chart's name
(two charts of a page may not share ids), and no date is written.

It does not handle raster images or interaction.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, ParamSpec, TypeVar

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour; no palette colour may equal it
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b82c4", "#e08a2e", "#3f9e6e", "#c9504c", "#8a6fc0", "#8b949e"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)
MAX_POINTS = 600  # of one drawn line; a page with ten of them stays well under a megabyte
P = ParamSpec("P")
R = TypeVar("R")
SMOOTHING = 40  # a running mean over 1/40 of the points

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a stage called "$a$" is a name
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    "figure.constrained_layout.use": True,
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function with our style; a chart's parts take it on when they are made."""

    @functools.wraps(function)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        with rc_context(_STYLE):
            return function(*args, **kwargs)

    return drawing


class Chart:
    """A grid of axes that becomes one SVG, made and finished inside a `styled` function.

    Args:
        name: unique on the page; salts the ids. title: what a screen reader says.
        rows, columns: of the grid. height: of one row, in inches; the width is fixed, the page scales it.
    """

    def __init__(self, name: str, title: str, rows: int = 1, columns: int = 1, height: float = 2.9) -> None:
        self.name, self.title = name, title
        self.figure = Figure(figsize=(10.0, height * rows))
        grid = self.figure.subplots(rows, columns, squeeze=False)
        self.axes: list[Axes] = list(grid.flat)

    def svg(self) -> str:
        """The finished SVG element, without prolog, sized by the page."""
        buffer = io.StringIO()
        with rc_context({"svg.hashsalt": f"sekkei.{self.name}"}):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'<g id="[\w.]+">', "<g>", text)  # matplotlib counts these anew in every chart
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
        text = text.replace(INK, "currentColor")
        end = text.index(">") + 1
        return f"{text[:end]}<title>{escape(self.title)}</title>{text[end:]}"


def line(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, label: str | None = None) -> None:
    """A noisy curve: the values faintly, their running mean strongly."""
    window = max(1, len(y) // SMOOTHING)
    if window > 1:
        axes.plot(*_thin(x, y), color=color, alpha=0.22, linewidth=0.9)
    axes.plot(*_thin(x, running_mean(y, window)), color=color, label=label)


def legend_above(axes: Axes, offset: float = 1.0) -> None:
    """The legend on one line over the axes, where it hides no curve; `offset` in heights of the axes."""
    entries = len(axes.get_legend_handles_labels()[1])
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, offset), ncols=max(entries, 1), borderaxespad=0, columnspacing=1.1,
        handlelength=1.2,
    )  # fmt: skip


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """[N] -> [N]: mean over about `window` neighbours, over fewer at the ends, as many on either side."""
    sums = np.concatenate(([0.0], np.cumsum(np.asarray(values, dtype=np.float64))))
    index = np.arange(len(values))
    half = np.minimum(window // 2, np.minimum(index, len(values) - 1 - index))
    low, high = index - half, index + half + 1
    return (sums[high] - sums[low]) / (high - low)


def _thin(x: Sequence[float], y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every n-th point, and always the last."""
    stride = -(-len(x) // MAX_POINTS)
    keep = np.unique(np.append(np.arange(0, len(x), max(stride, 1)), len(x) - 1))
    return np.asarray(x)[keep], np.asarray(y)[keep]


def percent_axis(axes: Axes, top: float = 1.0) -> None:
    """The y axis as 0 … 100%."""
    axes.set_ylim(0, top * 1.04)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
