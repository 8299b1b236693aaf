"""Scorecards as one picture: a criterion per spoke, a model per outline, its 95% intervals as bars along the spokes.

            Reasoning
               │  ╱╲ ┃
    Original ──┼─╱──╲── Accuracy        0 in the middle, the rubric's maximum at the rim
               ╱     ╲

A criterion that a model has no score for breaks its outline there: no line is drawn over what nobody has judged. Points
and bars of several models stand side by side, a few pixels from their spoke. SVG in the page's ink, without scripts.

What it does not handle: more than `MODELS` models (the best ones are drawn), fewer than three criteria.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from sekkei.judge.rubric import Rubric
from sekkei.judge.scorecard import Scorecard

MODELS = 6
COLOURS = ("#3b82c4", "#e08a2e", "#3f9e6e", "#8a6fc0", "#c4524a", "#7a8a99")
WIDTH, HEIGHT, RADIUS = 820, 340, 140  # px
CENTRE = (300.0, 185.0)
BESIDE = 5.0  # px between the points of two models


def radar_svg(cards: Sequence[Scorecard], rubric: Rubric) -> str:
    """The picture; "" where fewer than three criteria have a score."""
    keys = [criterion.key for criterion in rubric.criteria]
    shown = list(cards)[:MODELS]
    scored = [key for key in keys if any(key not in card.missing for card in shown)]
    if len(scored) < 3:
        return ""
    parts = _web(rubric, scored)
    for place, card in enumerate(shown):
        parts += _outline(card, keys, rubric.maximum, place, len(shown))
        parts.append(
            f'<rect x="{WIDTH - 210}" y="{20 + 24 * place}" width="14" height="14" rx="3" fill="{COLOURS[place]}"/>'
            f'<text x="{WIDTH - 188}" y="{32 + 24 * place}">{escape(card.name[:24])}</text>'
        )
    title = f"scores by criterion, 0 to {rubric.maximum:g}, with 95% intervals"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{title}</title>{"".join(parts)}</svg>'


def _at(spoke: int, spokes: int, share: float, beside: float = 0.0) -> tuple[float, float]:
    """The point at `share` of the radius on a spoke, `beside` it by so many pixels; the first spoke points up."""
    angle = 2 * math.pi * spoke / spokes - math.pi / 2
    x, y = math.cos(angle), math.sin(angle)
    return CENTRE[0] + RADIUS * share * x - beside * y, CENTRE[1] + RADIUS * share * y + beside * x


def _web(rubric: Rubric, scored: Sequence[str]) -> list[str]:
    spokes, parts = len(rubric.criteria), []
    for ring in range(1, 6):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_at(i, spokes, ring / 5) for i in range(spokes)))
        parts.append(f'<polygon points="{points}" fill="none" stroke="currentColor" stroke-opacity=".2"/>')
        x, y = _at(0, spokes, ring / 5)
        label = f"{rubric.maximum * ring / 5:g}"
        parts.append(f'<text x="{x + 5:.1f}" y="{y - 3:.1f}" style="font-size:10px" fill-opacity=".7">{label}</text>')
    for i, criterion in enumerate(rubric.criteria):
        (x, y), (tx, ty) = _at(i, spokes, 1), _at(i, spokes, 1.12)
        parts.append(
            f'<line x1="{CENTRE[0]}" y1="{CENTRE[1]}" x2="{x:.1f}" y2="{y:.1f}" stroke="currentColor" '
            'stroke-opacity=".25"/>'
        )
        side = "middle" if abs(tx - CENTRE[0]) < 20 else "start" if tx > CENTRE[0] else "end"
        lift = -6 if ty < CENTRE[1] - RADIUS else 4
        parts.append(f'<text x="{tx:.1f}" y="{ty + lift:.1f}" text-anchor="{side}">{escape(criterion.name)}</text>')
        if criterion.key not in scored:
            parts.append(
                f'<text x="{tx:.1f}" y="{ty + lift + 15:.1f}" text-anchor="{side}" style="font-size:11px" '
                'fill-opacity=".65">needs an external judge</text>'
            )
    return parts


def _outline(card: Scorecard, keys: Sequence[str], maximum: float, place: int, models: int) -> list[str]:
    colour, spokes, parts = COLOURS[place], len(keys), []
    beside = BESIDE * (place - (models - 1) / 2)
    points = [
        None if key in card.missing else _at(i, spokes, card.criteria[key].value / maximum, beside)
        for i, key in enumerate(keys)
    ]
    whole = [point for point in points if point is not None]
    if len(whole) == spokes:
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in whole)
        parts.append(f'<polygon points="{corners}" fill="{colour}" fill-opacity=".06"/>')
    for i, (key, point) in enumerate(zip(keys, points)):
        following = points[(i + 1) % spokes]
        if point is None:
            continue
        (x, y), estimate = point, card.criteria[key]
        if following is not None:
            line = f"M{x:.1f} {y:.1f}L{following[0]:.1f} {following[1]:.1f}"
            parts.append(f'<path d="{line}" stroke="{colour}" stroke-width="1.6" fill="none"/>')
        text = f"{card.name}, {key}: {estimate.value:.2f}"
        if math.isfinite(estimate.low):
            (x1, y1), (x2, y2) = (_at(i, spokes, bound / maximum, beside) for bound in (estimate.low, estimate.high))
            text += f" [{estimate.low:.2f}, {estimate.high:.2f}]"
            parts.append(
                f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="4" '
                'stroke-opacity=".45" stroke-linecap="round"/>'
            )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{escape(text)}</title></circle>')
    return parts
