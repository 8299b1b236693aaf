"""Files stay under about 400 lines and functions under about 60 (docs/design.md, section 2).

A function's docstring and decorators are not counted: shapes and sources should cost nothing.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_FILE, MAX_FUNCTION = 400, 60
FILES = sorted(path for top in ("src", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py"))


def function_lengths(source: str) -> dict[str, int]:
    """Name of every function (methods and inner ones too) -> its lines without docstring."""
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                assert text.end_lineno is not None
                length -= text.end_lineno - text.lineno + 1
            lengths[f"{node.name}:{node.lineno}"] = length
    return lengths


def test_files_are_short() -> None:
    assert FILES
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE} == {}


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{name}": lines
        for path in FILES
        for name, lines in function_lengths(path.read_text()).items()
        if lines > MAX_FUNCTION
    }
    assert long == {}


def test_lengths_are_counted() -> None:
    body = "    x = 1\n" * 60
    doc = '    """One\n    two.\n    """\n'
    assert function_lengths(f"def f():\n{body}") == {"f:1": 61}
    assert function_lengths(f"class A:\n  @staticmethod\n  def f():\n{doc}{body}") == {"f:3": 61}
