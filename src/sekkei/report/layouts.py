"""Two pictures of `sekkei plan`: what fills a GPU under each layout, and which rank holds what.

    bars    one per layout, stacked by component, beside the GPU's memory
    ranks   one box per GPU, by node: its place on the axes; colour: which part of the weights it keeps (pp and tp);
            under stage 3 the data ranks share that part, and their shade tells them apart

Inline SVG in one HTML file, without scripts or anything from elsewhere; colours follow the page's light or dark theme.
It does not draw more than `MOST_RANKS` boxes: what is left out is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sekkei.core.hardware import GIB
from sekkei.parallel.search import RESERVE, Plan
from sekkei.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

COMPONENTS = {
    "params": BLUE,
    "grads": GREEN,
    "optimizer": ORANGE,
    "activations": PURPLE,
    "logits": RED,
    "gathered": "#5fb3b3",
    "buckets": "#b58863",
    "reserve": GREY,
}
MOST_RANKS = 128
WIDTH, LABELS, FIGURES, BAR, CELL = 1000, 250, 150, 26, 56
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #d9dee4; --paper: #14181d; } }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1.25rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
svg { display: block; width: 100%; height: auto; margin: 1rem 0; font: 12px system-ui, sans-serif; fill: currentColor; }
</style>
</head>
<body>
"""


def page(words: Sequence[str], plans: Sequence[Plan]) -> str:
    """The HTML of some plans.

    Args:
        words: lines above the pictures. plans: in the order of the bars; the first one's ranks are drawn.
    """
    lines = "".join(f"<p>{escape(line)}</p>\n" for line in words if line)
    best = plans[0]
    return document(
        "sekkei plan",
        f"<h1>Where the memory goes</h1>\n{lines}{bars(plans)}\n"
        f"<h2>Who holds what: {escape(best.name)}</h2>\n{ranks(best)}",
    )


def document(title: str, body: str) -> str:
    """A page around some pictures."""
    return f"{HEAD.replace('TITLE', escape(title))}{body}\n</body>\n</html>\n"


def grouped(plan: Plan) -> dict[str, int]:
    """A plan's bytes by the names of `COMPONENTS`."""
    parts = {**plan.memory, "reserve": RESERVE}
    parts["optimizer"] = parts.pop("master") + parts.pop("moments")
    parts["activations"] += parts.pop("casts")
    return {name: parts[name] for name in COMPONENTS}


def bars(plans: Sequence[Plan]) -> str:
    """One SVG: stacked bars and the line at which a GPU is full. A bar beyond twice its memory is broken off."""
    memory = plans[0].cluster.gpu.memory
    widest = min(2 * memory, max(memory, *(plan.peak for plan in plans)))
    scale = (WIDTH - LABELS - FIGURES) / widest
    drawn = [_legend()]
    for place, plan in enumerate(plans):
        y, x = 40 + place * BAR, float(LABELS)
        drawn.append(f'<text x="{LABELS - 8}" y="{y + 15}" text-anchor="end">{escape(plan.name)}</text>')
        for name, size in grouped(plan).items():
            width = min(size * scale, LABELS + widest * scale - x)
            if width > 0:
                tip = f"<title>{name} {size / GIB:.1f} GiB</title>"
                drawn.append(box(x, y, width, BAR - 6, COMPONENTS[name], tip))
                x += width
        more = " …" if plan.peak > widest else ""
        step = f"{plan.step:.3g} s"
        drawn.append(f'<text x="{WIDTH - FIGURES + 8}" y="{y + 15}">{plan.peak / GIB:.0f} GiB{more}, {step}</text>')
    x, height = LABELS + memory * scale, 40 + len(plans) * BAR
    drawn.append(f'<path d="M{x:.1f} 30V{height}" stroke="currentColor" stroke-dasharray="4 3"/>')
    drawn.append(f'<text x="{x:.1f}" y="{height + 14}" text-anchor="middle">{memory / GIB:.0f} GiB</text>')
    return svg("Bytes of the fullest rank by layout and component", height + 22, drawn)


def ranks(plan: Plan) -> str:
    """One SVG: a box per GPU, a row per node."""
    layout, cluster = plan.layout, plan.cluster
    shown = min(layout.world, MOST_RANKS)
    per_row = min(cluster.gpus_per_node, (WIDTH - 90) // CELL)
    shards = layout.dp * layout.cp // layout.replicate
    drawn = []
    for rank in range(shown):
        row, column = divmod(rank, per_row)
        x, y = 80 + column * CELL, 8 + row * 44
        if column == 0:
            drawn.append(f'<text x="0" y="{y + 22}">node {rank // cluster.gpus_per_node}</text>')
        stage, inside = divmod(rank, layout.world // layout.pp)
        data, tp = divmod(inside, layout.tp)
        share = 0.35 + 0.65 * (data % shards + 1) / shards if layout.zero == 3 else 0.9
        place = {"pp": stage, "dp": data // layout.cp, "cp": data % layout.cp, "tp": tp}
        axes = [f"{axis}{index}" for axis, index in place.items() if getattr(layout, axis) > 1]
        turn, shade = (stage / layout.pp, tp / layout.tp) if layout.pp > 1 else (tp / layout.tp, 0.3)
        color = f"hsl({210 + 360 * turn:.0f}, 50%, {45 + 35 * shade:.0f}%)"
        tip = f"<title>rank {rank}: {' '.join(axes)}</title>"
        drawn.append(box(x, y, CELL - 4, 38, color, tip, f' fill-opacity="{share:.2f}"'))
        for line, text in enumerate((" ".join(axes[:2]), " ".join(axes[2:]))):
            drawn.append(f'<text x="{x + 4}" y="{y + 16 + 14 * line}" font-size="10">{text}</text>')
    height = 8 + -(-shown // per_row) * 44
    parts = layout.pp * layout.tp
    kept = f"{shards} data ranks share each of them" if layout.zero == 3 else "every data rank keeps its part whole"
    words = f"{parts} parts of the weights, by colour; {kept}"
    if shown < layout.world:
        words += f"; {layout.world - shown} more ranks are not drawn"
    drawn.append(f'<text x="0" y="{height + 16}">{words}</text>')
    return svg(f"Ranks of {plan.name} by node", height + 24, drawn)


def _legend() -> str:
    step = (WIDTH - 20) // len(COMPONENTS)
    return "".join(
        box(10 + i * step, 6, 12, 12, color) + f'<text x="{28 + i * step}" y="16">{name}</text>'
        for i, (name, color) in enumerate(COMPONENTS.items())
    )


def box(x: float, y: float, width: float, height: float, color: str, inside: str = "", more: str = "") -> str:
    """A rectangle; `inside` it a tip."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" height="{height}"'
    return f'<rect {place} rx="2" fill="{color}"{more}>{inside}</rect>'


def svg(title: str, height: float, drawn: Sequence[str]) -> str:
    """A picture as wide as the page, with a title for screen readers."""
    body = "\n".join(drawn)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">\n<title>{escape(title)}</title>\n{body}\n</svg>'
