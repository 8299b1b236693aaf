"""Writes the captions of README.md: the first sentence of every source file, between the `files` markers.

python docs/captions.py            rewrite README.md
python docs/captions.py --check    exit 1 if it is out of date (a test does this)
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- files -->", "<!-- /files -->"
FLOORS = ("core", "text", "model", "tools", "parallel", "data", "data/tasks", "engine", "train", "objectives", "evals")
UPPER = ("report", "recipes", "stages", "cli")


def caption(path: Path) -> str:
    """The first paragraph of the module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".:")


def captions() -> str:
    lines = []
    for folder in (*FLOORS, *UPPER):
        lines += ["", f"**{folder}/**", "", "| file | what it is |", "|---|---|"]
        for path in sorted((ROOT / "src" / "sekkei" / folder).glob("*.py")):
            text = caption(path)
            if text:
                lines.append(f"| `{path.name}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines).strip() + "\n"


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(START)
    _, tail = rest.split(END)
    new = f"{head}{START}\n{captions()}{END}{tail}"
    if "--check" in sys.argv:
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
