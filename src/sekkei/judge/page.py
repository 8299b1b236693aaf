"""One HTML page of a judging: scorecards, win rates, the biases of the judges, the most disputed answers.

A single file without scripts or outside assets; all text is escaped, answers above all: they were written by the
models that are judged. Intervals are drawn as whiskers in inline SVG. The same figures give the same bytes.

What it does not handle: anything that is not already computed; it measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.judge.bias import BiasFit
from sekkei.judge.bradley_terry import Ranking
from sekkei.judge.cheats import Cheats
from sekkei.judge.intervals import Estimate
from sekkei.judge.radar import radar_svg
from sekkei.judge.rubric import Rubric
from sekkei.judge.scorecard import NEEDS_JUDGE, Scorecard
from sekkei.judge.winrate import WinRates

WIDTH, LABEL, ROW = 820, 230, 26  # pixels of a chart, of its labels, of a row
BLUE, ORANGE = "#3b82c4", "#e08a2e"
RAW = ("raw win rate", "without own family", "equally long only")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#1c2026;
background:#fff}table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.2rem .7rem;text-align:left;
vertical-align:top;border-bottom:1px solid #8885}.note{opacity:.75}.warn{color:#b3261e}
.side{display:grid;grid-template-columns:1fr 1fr;gap:1rem}pre{white-space:pre-wrap;background:#8881;padding:.6rem;
max-height:22rem;overflow:auto;font-size:13px}svg text{fill:currentColor;font:13px system-ui,sans-serif}
.wide{overflow-x:auto}td{white-space:nowrap}td small{opacity:.7;font-size:12px}
td.text{white-space:normal}h3{overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{background:#14171b;color:#e4e7eb}.warn{color:#ff8a80}}"""


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Write the sections as one page, atomically."""
    body = "\n".join(sections)
    atomic.write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n",
    )
    return path


def scorecard_section(cards: Sequence[Scorecard], rubric: Rubric) -> str:
    """The picture, totals with intervals, a table of criteria, reward models, and judges of the own family."""
    heads = [*(criterion.name for criterion in rubric.criteria), "total", "grade", "answers", "unparsed"]
    rows = [
        [
            card.name,
            *(_interval(card.criteria[criterion.key], 2) for criterion in rubric.criteria),
            _interval(card.total, 2),
            card.grade,
            card.answers,
            card.unparsed,
        ]
        for card in cards
    ]
    parts = ["<h2>Scorecards</h2>", radar_svg(cards, rubric)]
    if any(math.isfinite(card.total.value) for card in cards):
        parts.append(_whiskers([(card.name, card.total) for card in cards], 0, rubric.points, "total, points"))
    parts.append(_table(["model", *heads], rows))
    missing = [c.name for c in rubric.criteria if all(c.key in card.missing for card in cards)]
    if missing:
        parts.append(f'<p class="note">{escape(", ".join(missing))}: {escape(NEEDS_JUDGE)}.</p>')
    parts.append(_sources(cards, rubric))
    for scorer in sorted({name for card in cards for name in card.rewards}):
        values = [(card.name, card.rewards[scorer]) for card in cards if scorer in card.rewards]
        low, high = _reach([estimate for _, estimate in values])
        parts += [f"<h3>{escape(scorer)}</h3>", _whiskers(values, low, high, "mean reward; only differences count")]
    own = [
        [card.name, ", ".join(card.own), _interval(card.total, 2), _interval(card.without_own, 2)]
        for card in cards
        if card.own and card.without_own
    ]
    if own:
        heading = ["model", "judges of its own family", "total with them", "total without them"]
        parts += ["<h3>With and without judges of the own family</h3>", _table(heading, own)]
    return "\n".join(parts)


def _sources(cards: Sequence[Scorecard], rubric: Rubric) -> str:
    """Who scored what, where it was not judges alone."""
    if not any(card.sources[c.key]["programs"] for card in cards for c in rubric.criteria):
        return ""
    rows = []
    for criterion in rubric.criteria:
        by = {who: sum(card.sources[criterion.key][who] for card in cards) for who in ("programs", "judges")}
        rows.append([criterion.name, by["programs"] or "–", by["judges"] or "–"])
    return "<h3>Answers scored by</h3>\n" + _table(["criterion", "programs", "judges"], rows)


def _reach(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """An axis that all intervals fit on."""
    bounds = [v for one in estimates for v in (one.value, one.low, one.high) if math.isfinite(v)] or [0.0]
    low, high = min(bounds), max(bounds)
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin


def ranking_section(ranking: Ranking) -> str:
    """Strengths with intervals, and ranks."""
    found = ranking.candidates
    table = [
        [one.rank, one.name, f"{one.rank_low}–{one.rank_high}", _interval(one.elo, 0), one.judgements] for one in found
    ]
    limit = max(1e-9, *(abs(bound) for one in found for bound in (one.strength.low, one.strength.high)))
    chart = _whiskers([(one.name, one.strength) for one in found], -limit, limit, "strength, logits (mean 0)")
    return "\n".join(
        [
            "<h2>Ranking</h2>",
            chart,
            _table(["rank", "model", "95% of ranks", "Elo", "judgements"], table),
            _notes(ranking.notes),
        ]
    )


def win_section(pairs: Sequence[tuple[str, str, Estimate]], order: Sequence[str]) -> str:
    """Observed win rates of the row against the column with intervals, best model first."""
    rates = {(a, b): rate.scaled(100) for a, b, rate in pairs}
    rates |= {
        (b, a): Estimate(value=100 - r.value, se=r.se, low=100 - r.high, high=100 - r.low)
        for (a, b), r in rates.items()
    }
    head = "".join(f"<th>{escape(name)}</th>" for name in order)
    body = []
    for row in order:
        cells = "".join(_shaded(rates.get((row, column))) for column in order)
        body.append(f"<tr><td>{escape(row)}</td>{cells}</tr>")
    return (
        "<h2>Win rates</h2>\n"
        '<p class="note">How often the row is preferred to the column, in per cent, with 95% intervals.</p>'
        f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
    )


def _shaded(rate: Estimate | None) -> str:
    if rate is None:
        return "<td>–</td>"
    colour, depth = (BLUE, rate.value - 50) if rate.value >= 50 else (ORANGE, 50 - rate.value)
    interval = f" <small>[{rate.low:.0f}, {rate.high:.0f}]</small>" if math.isfinite(rate.low) else ""
    return f'<td style="background:{colour}{round(2.2 * depth):02x}">{rate.value:.0f}{interval}</td>'


def agreement_section(found: Mapping[str, Estimate], judges: Sequence[str]) -> str:
    """How far judges agree on who is better: all together, then two by two."""
    whole = [[name, _interval(estimate, 2)] for name, estimate in found.items() if not name.startswith("cohen ")]
    pairs = [
        [
            a,
            *(
                "–" if a == b else _interval(found.get(f"cohen {a} {b}", found.get(f"cohen {b} {a}")), 2)
                for b in judges
            ),
        ]
        for a in judges
    ]
    return "\n".join(
        [
            "<h2>Do the judges agree?</h2>",
            '<p class="note">On who is better, beyond chance: 1 = always, 0 = as chance would have it. '
            "A judge whose winner changes with the order counts as a tie.</p>",
            _table(["all judges", "with 95% interval"], whole),
            "<h3>Cohen's kappa, two by two</h3>",
            _table(["", *judges], pairs),
        ]
    )


def bias_section(fit: BiasFit, raw: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Each judge's terms, corrected quality beside raw rates (compare.Comparison.raw), the judge × candidate matrix."""
    judges = [
        [
            judge.name,
            judge.family,
            _interval(judge.position, 2),
            f"{100 * judge.first_share:.1f}%",
            "–" if math.isnan(judge.flip_rate) else f"{100 * judge.flip_rate:.1f}%",
            _interval(judge.length_slope, 2),
            _interval(judge.own_bonus, 2),
            _interval(judge.own_bonus_alone, 2),
        ]
        for judge in fit.judges
    ]
    heads = ["judge", "family", "position", "prefers first", "flips", "length slope", "own-family bonus"]
    heads.append("the same, judge alone")
    order = sorted(range(len(fit.candidates)), key=lambda c: -fit.quality[c].value)
    quality = [
        [fit.candidates[c], fit.candidate_family[c], _interval(fit.quality[c], 2), *_raw(raw[fit.candidates[c]])]
        for c in order
    ]
    matrix = [
        [judge.name, *("–" if math.isnan(v) else f"{100 * v:.0f}%" for v in row)]
        for judge, row in zip(fit.judges, fit.matrix)
    ]
    return "\n".join(
        [
            "<h2>The judges' biases</h2>",
            '<p class="note">Logits with 95% intervals, fitted together; 0 = none.</p>',
            _table(heads, judges),
            "<h3>Quality with these biases removed, beside raw win rates</h3>",
            '<p class="note">Raw: per cent, nothing removed; without judgements of answers of the judge\'s own family; '
            "of answers that differ in length by a tenth at most.</p>",
            _table(["model", "family", "corrected quality", *RAW], quality),
            "<h3>Mean preference of each judge for each model</h3>",
            _table(["judge", *fit.candidates], matrix),
            _notes(fit.notes),
        ]
    )


def cheats_section(found: Sequence[tuple[str, Cheats]]) -> str:
    """What was found in the answers themselves."""
    rows = [
        [name, one.answers, len(one.constant), len(one.addresses), len(one.empty), len(one.truncated)]
        for name, one in found
    ]
    warnings = [f"{name}: {what}" for name, one in found for what in one.suspicious]
    heads = ["model", "answers", "one text for all", "addresses the judge", "empty", "truncated"]
    alarm = "".join(f'<p class="warn">{escape(line)}: its scores mean nothing</p>' for line in warnings)
    return f"<h2>Answers that need a look</h2>\n{_table(heads, rows)}{alarm}"


def disputed_section(items: Sequence[dict[str, Any]]) -> str:
    """The most disputed pairs with both answers side by side."""
    if not items:
        return "<h2>Most disputed</h2>\n<p>All verdicts agree in all pairs.</p>"
    parts = ["<h2>Most disputed</h2>"]
    for item in items:
        low, high = item["names"]
        sides = "".join(
            f"<div><b>{escape(name)}</b><pre>{escape(text)}</pre></div>"
            for name, text in zip(item["names"], item["outputs"])
        )
        verdicts = [
            [judge, first, low if share > 0.5 else high if share < 0.5 else "tie", note]
            for judge, first, share, note in item["verdicts"]
        ]
        parts.append(f'<h3>{escape(item["instruction"][:400])}</h3><div class="side">{sides}</div>')
        parts.append(_table(["judge", "stood first", "preferred", "note"], verdicts))
    return "\n".join(parts)


def winrate_section(found: WinRates) -> str:
    """Raw and length-controlled win rates against the baseline."""
    models = [model for model in found.models if math.isfinite(model.win_rate.value)]
    rows = [
        [
            model.name,
            _percent(model.win_rate),
            _percent(model.length_controlled),
            _percent(model.length_matched),
            f"{model.mean_length:.0f}",
        ]
        for model in models
    ]
    chart = _whiskers(
        [(model.name, model.length_controlled.scaled(100)) for model in models], 0, 100, "length-controlled win rate, %"
    )
    heads = ["model", "win rate", "length-controlled", "equally long only", "mean length"]
    title = f"<h2>Win rates against {escape(found.table.baseline)}</h2>"
    return "\n".join([title, chart, _table(heads, rows), _notes(found.notes)])


def _whiskers(values: Sequence[tuple[str, Estimate]], low: float, high: float, axis: str) -> str:
    """Dots with 95% intervals, one row per label."""
    span = WIDTH - LABEL - 70
    height = ROW * len(values) + 24

    def x(value: float) -> float:
        return LABEL + span * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for place, (label, estimate) in enumerate(values):
        y = ROW * place + ROW / 2
        parts.append(f'<text x="{LABEL - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label[:34])}</text>')
        if math.isfinite(estimate.low):
            parts.append(
                f'<line x1="{x(estimate.low):.1f}" x2="{x(estimate.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{BLUE}" stroke-width="3" stroke-opacity=".5"/>'
            )
        if math.isfinite(estimate.value):
            parts.append(f'<circle cx="{x(estimate.value):.1f}" cy="{y:.1f}" r="4.5" fill="{ORANGE}"/>')
            parts.append(f'<text x="{WIDTH - 62}" y="{y + 4:.1f}">{estimate.value:.2f}</text>')
    bottom = ROW * len(values) + 4
    parts.append(f'<line x1="{LABEL}" x2="{LABEL + span}" y1="{bottom}" y2="{bottom}" stroke="currentColor"/>')
    parts.append(f'<text x="{LABEL}" y="{bottom + 16}">{low:.3g}</text>')
    parts.append(f'<text x="{LABEL + span}" y="{bottom + 16}" text-anchor="end">{high:.3g}</text>')
    parts.append(f'<text x="{LABEL + span / 2:.0f}" y="{bottom + 16}" text-anchor="middle">{escape(axis)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(axis)}</title>{"".join(parts)}</svg>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    """A value, or one with its interval below it; long texts may wrap."""
    text = str(value)
    head, opened, rest = text.partition(" [")
    if isinstance(value, Interval) and opened:
        return f"<td>{escape(head)}<br><small>[{escape(rest)}</small></td>"
    return f"<td{' class=text' if ' ' in text else ''}>{escape(text)}</td>"


class Interval(str):
    """A figure written "value [low, high]"."""


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _interval(estimate: Estimate | None, digits: int) -> Interval:
    if estimate is None or not math.isfinite(estimate.value):
        return Interval("–")
    # adding 0.0 turns a rounded -0.0 into 0.0
    value, low, high = (
        f"{round(part, digits) + 0.0:.{digits}f}" for part in (estimate.value, estimate.low, estimate.high)
    )
    return Interval(value if not math.isfinite(estimate.low) else f"{value} [{low}, {high}]")


def _percent(estimate: Estimate) -> Interval:
    return _interval(estimate.scaled(100), 1)


def plain_section(notes: Sequence[str], raw: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Where biases could not be fitted: why, and the raw win rates."""
    rows = [[name, *_raw(rates)] for name, rates in raw.items()]
    return "\n".join(["<h2>The judges' biases</h2>", _notes(notes), _table(["model", *RAW], rows)])


def _raw(rates: Mapping[str, Estimate]) -> list[Interval]:
    return [_percent(rates[kind]) for kind in ("all", "without_own_family", "equally_long")]
