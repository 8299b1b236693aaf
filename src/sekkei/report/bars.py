"""Charts of final figures: data kept and dropped, long context, reasoning over a life, in-context learning.

Each function returns one SVG, or None where the run has no such figures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sekkei.report.folder import RunFolder
from sekkei.report.style import BLUE, GREEN, GREY, INK, ORANGE, PALETTE, PURPLE, RED, Chart, percent_axis, styled

_BUCKET = re.compile(r"bpb\.positions_([0-9]+)_([0-9]+)")
MAX_RULES = 8  # of the cleaning rules shown one by one
REASONING_BARS = (
    ("pass1_greedy", "greedy", BLUE),
    ("pass1_sampled", "one sample", ORANGE),
    ("maj8", "vote of 8", GREEN),
    ("pass8", "best of 8", PURPLE),
    ("no_thinking.pass1_greedy", "greedy, thinking off", GREY),
)


@styled
def data_waterfall(run: RunFolder) -> str | None:
    """Pages that came in, what each rule dropped, what was kept."""
    pages, kept = run.figures.get("data.pages"), run.figures.get("data.kept")
    if pages is None or kept is None:
        return None
    dropped = sorted(run.under("data.dropped").items(), key=lambda item: (-item[1], item[0]))
    rare = [count for _, count in dropped[MAX_RULES:]]
    if len(rare) > 1:
        dropped = [*dropped[:MAX_RULES], (f"{len(rare)} other rules", sum(rare))]
    chart = Chart("waterfall", "Pages kept and dropped by rule", height=0.9 + 0.3 * (len(dropped) + 2))
    (axes,) = chart.axes
    rows: list[tuple[str, float, float, str]] = [("pages", 0.0, pages, GREY)]
    left = pages
    for rule, count in dropped:
        left -= count
        rows.append((rule, left, count, RED))
    rows.append(("kept", 0.0, kept, GREEN))
    for place, (_, start, width, color) in enumerate(rows):
        axes.barh(place, width, left=start, color=color, height=0.66)
        shown = f"{'−' if color == RED else ''}{width:,.0f}"
        axes.annotate(shown, (start + width, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name, *_ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(0, max(pages, 1) * 1.09)
    axes.set_xlabel("pages")
    return chart.svg()


@styled
def long_context(run: RunFolder) -> str | None:
    """Bits per byte by position: before the long stage, rescaled but not trained, and after it."""
    found = _position_runs(run)
    if not found:
        return None
    buckets = sorted({bucket for _, bits in found for bucket in bits})
    chart = Chart("positions", "Bits per byte by position in the document", height=2.7)
    (axes,) = chart.axes
    width = 0.8 / len(found)
    for number, (label, bits) in enumerate(found):
        color = PALETTE[number % len(PALETTE)]
        for place, bucket in enumerate(buckets):
            if bucket in bits:
                x = place + (number - (len(found) - 1) / 2) * width
                axes.bar(x, bits[bucket], width * 0.92, color=color, label=label if place == 0 else None)
                axes.text(x, bits[bucket], f"{bits[bucket]:.2f}", ha="center", va="bottom", fontsize=8.5)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(buckets)), [f"tokens {low}–{high}" for low, high in buckets])
    axes.set_ylabel("bits per byte")
    axes.set_ylim(0, max(value for _, bits in found for value in bits.values()) * 1.3)
    axes.legend(loc="upper center", ncols=len(found))
    return chart.svg()


def _position_runs(run: RunFolder) -> list[tuple[str, dict[tuple[int, int], float]]]:
    """(label, bits by bucket) of every measured checkpoint, the control before the stage that it controls."""
    found = []
    for key in run.pretrain_keys:
        for prefix, label in ((f"{key}.control", f"{key}: rescaled, not trained"), (key, f"after {key}")):
            bits = {}
            for name, value in run.under(f"pretrain.{prefix}").items():
                if match := _BUCKET.fullmatch(name):
                    bits[int(match[1]), int(match[2])] = value
            if bits:
                found.append((label, bits))
    return found


@styled
def reasoning(run: RunFolder, labels: Sequence[str]) -> str | None:
    """Accuracy of some checkpoints on held-out problems, with 95% intervals where they were measured."""
    labels = [label for label in labels if run.under(f"reasoning.{label}")]
    if not labels:
        return None
    chart = Chart(f"reasoning-{labels[0]}", "Reasoning accuracy from base model to reinforcement learning", height=3.1)
    (axes,) = chart.axes
    width = 0.84 / len(REASONING_BARS)
    for number, (name, shown, color) in enumerate(REASONING_BARS):
        first = True
        for place, label in enumerate(labels):
            figures = run.under(f"reasoning.{label}")
            if name not in figures:
                continue
            x, value = place + (number - (len(REASONING_BARS) - 1) / 2) * width, figures[name]
            axes.bar(x, value, width * 0.92, color=color, label=shown if first else None)
            first = False
            low, high = figures.get(f"{name}.low"), figures.get(f"{name}.high")
            top = value
            if low is not None and high is not None:
                axes.vlines(x, low, high, color=INK, linewidth=1.1)
                top = max(value, high)
            axes.text(x, top + 0.012, f"{value:.0%}", ha="center", va="bottom", fontsize=8)
    modulus = ((run.recipe.get("data") or {}).get("chain") or {}).get("modulus")
    if isinstance(modulus, int) and modulus > 1:
        axes.axhline(1 / modulus, color=GREY, linewidth=1, linestyle=(0, (3, 3)), label=f"a guess ({1 / modulus:.1%})")
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(labels)), labels)
    percent_axis(axes, top=1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6)
    return chart.svg()


@styled
def in_context(run: RunFolder) -> str | None:
    """Accuracy of symbol mapping over the number of examples in the prompt, a line per checkpoint."""
    curves = []
    for label in run.labels:
        points = sorted(
            (int(name.removeprefix("shots")), value)
            for name, value in run.under(f"icl.{label}").items()
            if re.fullmatch(r"shots[0-9]+", name)
        )
        if points:
            curves.append((label, points))
    if not curves:
        return None
    chart = Chart("icl", "In-context learning: accuracy over examples in the prompt", height=2.5)
    (axes,) = chart.axes
    shots = sorted({shot for _, points in curves for shot, _ in points})
    for number, (label, points) in enumerate(curves):
        places = [shots.index(shot) for shot, _ in points]  # evenly spaced: 0, 1, 2, 4, 8 is nearly a log axis
        axes.plot(
            places,
            [value for _, value in points],
            "o-",
            color=PALETTE[number % len(PALETTE)],
            label=label,
            markersize=5,
        )
    axes.set_xticks(range(len(shots)), [str(shot) for shot in shots])
    axes.set_xlabel("examples in the prompt")
    percent_axis(axes)
    axes.legend(loc="best")
    return chart.svg()
