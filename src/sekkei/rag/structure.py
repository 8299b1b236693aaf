"""Where a text may be cut: the sections that a chunk stays inside, and softer boundaries by rank.

    markdown   sections: headings (with the path of headings above); then blank lines, lines, sentences, words
    python     sections: top-level functions and classes, and what stands between them; then methods, blank lines, …
    text       one section, under its first line if a blank line follows; then blank lines, lines, sentences, words

A fenced code block of Markdown is no place for a heading. Python that does not parse (a notebook's `%magic`, another
version's syntax) is cut as text. Sentences end at . ! ? before white space, and at 。！？ anywhere.
Not handled: headings of plain text and PDF, which only fonts show; setext headings without a blank line above.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE)
_SETEXT = re.compile(r"(?:^|\n[ \t]*\n)([^\n]+)\n(=+|-{3,})[ \t]*(?=\n|$)")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"\s*(\S[^\n]{0,149})\n[ \t]*\n")
_BLANK = re.compile(r"\n[ \t]*\n+")
_NEWLINE = re.compile(r"\n")
_SENTENCE = re.compile(r"[.!?][\"')\]]*\s+|[。！？][」』）]*")
_SPACE = re.compile(r"\s+|[、，]")


@dataclass(frozen=True)
class Part:
    """text[start:end] under `heading`; `strong` are places inside where a new piece of structure begins."""

    start: int
    end: int
    heading: str = ""
    strong: tuple[int, ...] = ()


def parts(text: str, start: int, end: int, syntax: str) -> list[Part]:
    """Cut text[start:end] into its sections, in order, without gaps."""
    if syntax == "markdown":
        return _markdown(text, start, end)
    if syntax == "python":
        return _python(text, start, end) or [Part(start, end)]
    return [Part(start, end, _title(text, end) if start == 0 else "")]


def boundaries(text: str, part: Part) -> list[list[int]]:
    """Places inside `part` where a chunk may begin, the strongest kind first; each list is sorted.

    Every place of one kind is where something begins: a method, a paragraph, a line, a sentence, a word.
    """
    found = [list(part.strong)]
    for pattern in (_BLANK, _NEWLINE, _SENTENCE, _SPACE):
        found.append([match.end() for match in pattern.finditer(text, part.start, part.end) if match.end() < part.end])
    return found


def _title(text: str, end: int) -> str:
    """The first line, where a blank line sets it off and it is short: what later chunks do not say themselves."""
    match = _TITLE.match(text, 0, end)
    return match.group(1).strip() if match else ""


def _markdown(text: str, start: int, end: int) -> list[Part]:
    fences = [match.span() for match in _FENCE.finditer(text, start, end)]
    headings = [(m.start(), len(m.group(1)), m.group(2)) for m in _HEADING.finditer(text, start, end)]
    headings += [(m.start(1), 1 if m.group(2)[0] == "=" else 2, m.group(1)) for m in _SETEXT.finditer(text, start, end)]
    headings = sorted(h for h in headings if not any(a <= h[0] < b for a, b in fences))
    cuts = [h[0] for h in headings]
    found = [Part(start, cuts[0] if cuts else end)] if not cuts or text[start : cuts[0]].strip() else []
    path: list[tuple[int, str]] = []
    for (at, level, title), stop in zip(headings, [*cuts[1:], end]):
        path = [*(step for step in path if step[0] < level), (level, title.strip())]
        found.append(Part(at, stop, " > ".join(title for _, title in path)))
    if found[0].start > start:  # white space above the first heading
        found[0] = Part(start, found[0].end, found[0].heading)
    return found


def _python(text: str, start: int, end: int) -> list[Part]:
    code = text[start:end]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody's code are not our user's concern
            body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    # ast counts lines at \n, \r\n and \r; form feeds end no line there
    lines = [start, *(start + match.end() for match in re.finditer(r"\r\n|\r|\n", code))]
    found: list[Part] = []
    at = start
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first, last = lines[_first_line(node) - 1], lines[node.end_lineno] if node.end_lineno < len(lines) else end  # type: ignore[operator]
        if first < at:  # two definitions on one line
            continue
        if text[at:first].strip():
            found.append(Part(at, first))
            at = first
        strong = tuple(lines[_first_line(inner) - 1] for inner in node.body[1:] if isinstance(inner, _DEFINITIONS))
        kind = "class" if isinstance(node, ast.ClassDef) else "def"
        found.append(Part(at, last, f"{kind} {node.name}", tuple(sorted({s for s in strong if at < s < last}))))
        at = last
    if at < end or not found:
        if found and not text[at:end].strip():
            last_part = found.pop()
            found.append(Part(last_part.start, end, last_part.heading, last_part.strong))
        else:
            found.append(Part(at, end))
    return found


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])
