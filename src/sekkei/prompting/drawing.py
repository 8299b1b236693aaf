"""A solution as a page: the tree of what was tried, what it cost, and every call behind it.

    question ──┬── 13 - 9 = 4        60 ──┬── 10 - 4 = 6     60 ── 4 * 6 = 24   answer
               │                          └── 4 * 4 = 16      3    pruned: grey, its edge dashed
               └── 4 + 9 = 13      0.003  duplicate: the same state was made before

One HTML file without scripts or outside assets; the tree is an inline SVG. Depth runs to the right, siblings down in
the order in which they were made. A box shows the beginning of a long text, the rest stands in its tooltip. Colours
follow the page's light or dark theme, as in report/. The same solution gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from sekkei.core import atomic
from sekkei.prompting.solution import Node, Solution

COLUMN, ROW, BOX = 290, 30, 22  # px: distance of depths, distance of leaves, height of a box
CHARACTERS = 34  # of a text that fit into a box
MEANING = {
    "kept": "went on from",
    "pruned": "left behind",
    "duplicate": "made before",
    "final": "reached the end",
    "answer": "the answer",
}


def write_page(path: Path, question: str, strategy: str, model: str, solution: Solution) -> None:
    """Draw and write atomically.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    atomic.write_text(path, page(question, strategy, model, solution))


def page(question: str, strategy: str, model: str, solution: Solution) -> str:
    """The whole page."""
    import jinja2

    source = resources.files("sekkei.prompting").joinpath("trace.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    statuses = [node.status for node in solution.nodes]
    cards = [
        (solution.answer if solution.answer is not None else "none", "answer"),
        (strategy, "strategy"),
        (f"{len(solution.nodes) - 1:,}", "thoughts"),
        (f"{statuses.count('pruned'):,}", "left behind"),
        (f"{solution.cost.calls:,}", "calls"),
        (f"{solution.cost.prompt_tokens:,}", "tokens read"),
        (f"{solution.cost.completion_tokens:,}", "tokens written"),
    ]
    return environment.from_string(source).render(
        question=question,
        model=model,
        cards=cards,
        legend=[(status, text) for status, text in MEANING.items() if status in statuses],
        tree=tree_svg(solution.nodes),
        candidates=solution.candidates,
        log=solution.log,
    )


def places(nodes: Sequence[Node]) -> tuple[list[int], list[float]]:
    """(depth, row) of every node: a leaf has a row of its own, a parent stands in the middle of its children.

    `nodes` are in the order in which they were made, so a parent comes before its children.
    """
    children: list[list[int]] = [[] for _ in nodes]
    depth = [0] * len(nodes)
    for node in nodes:
        if node.parent is not None:
            children[node.parent].append(node.id)
            depth[node.id] = depth[node.parent] + 1
    rows = [0.0] * len(nodes)
    next_row = 0
    waiting = [(root.id, False) for root in reversed(nodes) if root.parent is None]
    while waiting:  # by hand: a chain of a thousand thoughts is deeper than Python's stack
        i, seen = waiting.pop()
        if not children[i]:
            rows[i], next_row = float(next_row), next_row + 1
        elif seen:
            rows[i] = (rows[children[i][0]] + rows[children[i][-1]]) / 2
        else:
            waiting += [(i, True), *((child, False) for child in reversed(children[i]))]
    return depth, rows


def tree_svg(nodes: Sequence[Node]) -> str:
    """The tree as one SVG element; its classes are coloured by the page."""
    depth, rows = places(nodes)
    width = (max(depth, default=0) + 1) * COLUMN
    height = (max(rows, default=0.0) + 1) * ROW + 8
    parts = [
        f'<svg class="tree" viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}" role="img">'
        f"<title>The tree of thoughts, {len(nodes)} states</title>"
    ]
    path = _path(nodes)
    for node in nodes:
        if node.parent is not None:
            x, y = depth[node.id] * COLUMN, rows[node.id] * ROW + 4 + BOX / 2
            from_x, from_y = depth[node.parent] * COLUMN + COLUMN - 40, rows[node.parent] * ROW + 4 + BOX / 2
            bend = (from_x + x) / 2
            curve = f"M{from_x} {from_y:g} C{bend:g} {from_y:g} {bend:g} {y:g} {x} {y:g}"
            status = "answer" if node.id in path else node.status
            parts.append(f'<path class="{status}" d="{curve}"/>')
    for node in nodes:
        parts.append(_box(node, depth[node.id] * COLUMN, rows[node.id] * ROW + 4))
    return "".join([*parts, "</svg>"])


def _path(nodes: Sequence[Node]) -> set[int]:
    """Ids from the root to the answer; empty where there is none."""
    found: set[int] = set()
    at = next((node.id for node in nodes if node.status == "answer"), None)
    while at is not None:
        found.add(at)
        at = nodes[at].parent
    return found


def _box(node: Node, x: int, y: float) -> str:
    value = "" if node.value is None else f"{node.value:.3g}"
    room = CHARACTERS - (len(value) + 1 if value else 0)
    text = " ".join(node.text.split())
    short = text if len(text) <= room else text[: room - 1] + "…"
    whole = " · ".join(part for part in (node.text.strip(), node.note, node.status, value and f"value {value}") if part)
    shown = f'<text x="{x + 8}" y="{y + 15:g}">{escape(short)}</text>'
    if value:
        shown += f'<text class="value" x="{x + COLUMN - 47}" y="{y + 15:g}" text-anchor="end">{value}</text>'
    box = f'<rect x="{x}" y="{y:g}" width="{COLUMN - 40}" height="{BOX}" rx="5"/>'
    return f'<g class="{node.status}"><title>{escape(whole)}</title>{box}{shown}</g>'
