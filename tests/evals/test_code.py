"""Programs against tests: formats, what is taken from a reply, and that no program passes without its tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sekkei.core.errors import UserError
from sekkei.evals.code import Exercise, evaluate_code, passes, program, read_exercises
from sekkei.llm import LLM, Settings
from sekkei.llm.scripted import Scripted
from sekkei.tools.sandbox import capabilities
from sekkei.tools.watch import Limits

LIMITS = Limits(seconds=60.0, cpu_seconds=5)
DOUBLE = Exercise(
    name="double",
    prompt='import math\n\n\ndef double(x):\n    """Twice x."""\n',
    entry="double",
    before="",
    tests="def check(f):\n    assert f(2) == 4\n    assert f(-1) == -2\n\ncheck(double)",
)
walled = pytest.mark.skipif(not capabilities().safe, reason="no sandbox on this machine")


@walled
@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("    return 2 * x\n", (True, "")),
        ("    return 3 * x\n", (False, "AssertionError")),
        ("    return 2 *\n", (False, "SyntaxError")),
        ("    raise SystemExit(0)\n", (False, "left early")),
        ("    import os\n    os._exit(0)\n", (False, "left early")),
    ],
)
def test_only_a_program_that_runs_its_tests_passes(body: str, verdict: tuple[bool, str]) -> None:
    assert passes(program(DOUBLE, body, base=True), DOUBLE.tests, LIMITS) == verdict


@walled
def test_a_program_that_does_not_end_is_stopped() -> None:
    looping = program(DOUBLE, "    while True: pass\n", base=True)
    good, why = passes(looping, DOUBLE.tests, Limits(seconds=60.0, cpu_seconds=1))
    assert not good
    assert why in ("cpu", "time", "exit code -24")


def test_the_right_part_of_a_reply_is_taken() -> None:
    fenced = (
        "First\n```python\nprint(1)\n```\nthen\n```python\ndef double(x):\n    return math.prod([2, x])\n```\nDone."
    )
    taken = program(DOUBLE, fenced, base=False)
    assert "import math" in taken  # the prompt's own imports stay
    assert "print(1)" not in taken
    assert "Done." not in taken
    assert program(DOUBLE, "```python\n    return 2 * x\n```", base=False).startswith(f"\n{DOUBLE.prompt}    return")
    assert program(DOUBLE, "def double(x): return x", base=False).count("def double") == 1


@walled
def test_pass_at_k_is_counted_over_samples(tmp_path: Path) -> None:
    path = tmp_path / "exercises.jsonl"
    rows = [
        {"task_id": "HumanEval/x", "prompt": DOUBLE.prompt, "entry_point": "double", "test": DOUBLE.tests[:-15]},
        {"task_id": 7, "text": "Write one().", "test_list": ["assert one() == 1"], "test_setup_code": "import math"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    exercises = read_exercises(path)
    replies = ["    return 2 * x", "    return x", "```\ndef one(): return int(math.e ** 0)\n```", "no idea"]
    found = evaluate_code(LLM(Scripted(replies)), exercises, Settings(n=2), ks=(1, 2), limits=LIMITS)
    assert {name: found.figures[name].value for name in ("pass@1", "pass@2")} == {"pass@1": 0.5, "pass@2": 1.0}
    assert [row["right"] for row in found.rows] == [1, 1]
    assert found.settings["walls"] == capabilities().mode


def test_bad_exercises_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "exercises.jsonl"
    path.write_text('{"task_id": 1, "prompt": "x"}\n')
    with pytest.raises(UserError, match="line 1: neither HumanEval's"):
        read_exercises(path)
