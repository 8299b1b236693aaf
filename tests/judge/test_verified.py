"""Programs check what our own models answer: counted by hand on scripted answers, and through the whole judging."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sekkei.data.tasks import refusals
from sekkei.data.tasks.chain import ChainConfig, ChainProblem, reasoning
from sekkei.judge.command import Order, judged
from sekkei.judge.scorecard import figures
from sekkei.judge.verified import answered, checked_questions, right_so_far
from sekkei.llm import LLM, Reply
from sekkei.llm.protocol import Call
from sekkei.llm.scripted import Scripted
from sekkei.prompting.tasks.chain import parse_question

FACTS = [("json.dumps", "Serialize obj to a JSON formatted str."), ("os.getpid", "Return the current process id.")]
PROBLEM = ChainProblem(7, (("add", 3), ("times", 4), ("minus", 5)), 23)


@pytest.mark.parametrize(
    ("thinking", "share"),
    [
        (reasoning(PROBLEM, "every"), 1.0),
        (reasoning(PROBLEM, "three"), 1.0),
        (" 7 add 3 = 10; 10 times 4 = 16; 16 minus 5 = 11", 1 / 3),
        (" 7 add 3 = 10; 17 minus 5 = 12", 1 / 3),
        (" 10 times 4 = 17", 0.0),
        ("", 0.0),
        (" 7 add 3 = 10; well; 10 times 4 = 17", 1 / 3),
    ],
)
def test_lines_count_up_to_the_first_wrong_one(thinking: str, share: float) -> None:
    assert right_so_far(PROBLEM, thinking) == pytest.approx(share)


def knowing(right: bool) -> Callable[[Call], Reply]:
    """Solves chains step by step and refuses what is harmful; or answers at once, wrongly, and refuses everything."""

    def say(call: Call) -> Reply:
        asked = call.messages[-1]["content"]
        if asked.startswith("start at"):
            problem = parse_question(asked)
            answer = problem.answer if right else (problem.answer + 1) % 23
            return Reply(text=f" answer: {answer}", thinking=reasoning(problem, "every") if right else "")
        if any(matter in asked for matter in refusals.HARMFUL) or not right:
            return Reply(text="I am sorry, but I cannot help with that.")
        named = next((name for name, _ in FACTS if name in asked), None)
        return Reply(text=f"{named}: {dict(FACTS)[named]}" if named else "Hello!")

    return say


def test_a_judging_without_a_judge(tmp_path: Path) -> None:
    questions = checked_questions(ChainConfig(), FACTS, seed=3, count=20)
    assert [q.text for q in questions] == [q.text for q in checked_questions(ChainConfig(), FACTS, seed=3, count=20)]
    kinds = [question.kind for question in questions]
    assert {kind: kinds.count(kind) >= 10 for kind in ("chain", "docstring", "everyday", "request")} == dict.fromkeys(
        ("chain", "docstring", "everyday", "request"), True
    )
    files = []
    for name, right in (("good", True), ("bad", False)):
        rows = answered(LLM(Scripted(knowing(right))), questions, name)
        assert all(row["output"].startswith("<think>") for row in rows if row["kind"] == "chain")
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = judged(Order(files), None, tmp_path / "out")
    assert found is not None
    assert found.missing == ["conciseness", "originality"]
    flat = figures(found.cards)
    assert (flat["judge.good.reasoning"], flat["judge.good.safety"]) == (5.0, 5.0)
    assert (flat["judge.bad.reasoning"], flat["judge.bad.accuracy"]) == (0.0, 0.0)
    assert 2 < flat["judge.bad.safety"] < 3, "half of the requests are harmless"
    # capitals and colours it does not know, everything else it does
    accuracy = [row.get("verified", {}).get("accuracy") for row in map(json.loads, files[0].open())]
    assert flat["judge.good.accuracy"] == pytest.approx(
        5 * sum(filter(None, accuracy)) / sum(value is not None for value in accuracy), abs=1e-6
    )
    assert 2.5 < flat["judge.good.accuracy"] <= 5
