"""A judge as a reward: what is asked, what each reply is worth, what has no score, and that nothing is paid twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sekkei.core.errors import UserError
from sekkei.judge.reward import How, JudgeReward, Reading, ring
from sekkei.judge.rubric import Anchor, Criterion, Grade, Rubric
from sekkei.llm.budget import Budget, BudgetConfig, Budgeted
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Call, LLMError
from sekkei.llm.scripted import Line, Scripted
from sekkei.objectives.judged import UNREAD, Verdict

RUBRIC = Rubric(
    name="tiny",
    criteria=[
        Criterion(key="kind", name="Kindness", description="Is it kind?", anchors=[Anchor(score=0, text="rude")]),
        Criterion(key="true", name="Truth", description="Is it true?", weight=3, anchors=[Anchor(score=5, text="all")]),
    ],
    grades=[Grade(name="ANY", at_least=0)],
)
Script = Callable[[Call], Line]


def judge(script: Script, folder: Path, how: How = "rubric", opponents: int = 2) -> tuple[JudgeReward, Scripted]:
    backend = Scripted(script)
    return JudgeReward(LLM(backend), Reading(how=how, rubric=RUBRIC, opponents=opponents), folder), backend


def points(kind: float, true: float) -> str:
    return json.dumps({"kind": {"note": "n", "score": kind}, "true": {"note": "n", "score": true}})


def shown(call: Call) -> str:
    return str(call.messages[-1]["content"])


def by_text(replies: dict[str, Line]) -> Script:
    """The reply whose key stands in what the judge is shown."""
    return lambda call: next(line for text, line in replies.items() if text in shown(call))


def test_a_rubric_by_hand(tmp_path: Path) -> None:
    script = by_text({"good": points(5, 5), "half": points(5, 1), "bad": points(0, 0), "odd": "I would say 4.",
                      "off": points(9, 1)})  # fmt: skip
    reward, backend = judge(script, tmp_path)
    with reward:
        verdicts, counts = reward.grade([("why?", ["good", "half", None, "bad"]), ("how?", ["odd", "half", "off"])])
    assert verdicts == [
        [Verdict(1.0), Verdict((5 + 3) / 20), Verdict(0.0), Verdict(0.0)],
        [Verdict(None, UNREAD), Verdict(8 / 20), Verdict(None, UNREAD)],
    ]
    assert counts["asked"] == 6
    assert counts["unread"] == 2
    assert counts["failed"] == 0
    assert counts["tokens"] > 0
    assert all(call.settings.temperature == 0 for call in backend.calls)
    assert all(call.settings.response_format == RUBRIC.schema() for call in backend.calls)
    assert "why?" in shown(backend.calls[0])


def test_equal_answers_are_asked_once_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    script = by_text({"good": points(5, 5), "odd": "?"})
    reward, backend = judge(script, tmp_path)
    asked = [("why?", ["good", "good", "odd"])]
    with reward:
        first = reward.grade(asked)
    assert len(backend.calls) == 2
    again, later = judge(script, tmp_path)
    with again:
        assert again.grade(asked) == first
    assert later.calls == []


def better(call: Call) -> str:
    """A judge that prefers the larger number."""
    a, b = (int(shown(call).partition(f"<answer-{name}-")[2].split("\n")[1]) for name in ("A", "B"))
    return json.dumps({"note": "", "better": "A" if a > b else "B"})


def test_pairs_by_hand(tmp_path: Path) -> None:
    reward, backend = judge(better, tmp_path, "pairs", opponents=1)
    with reward:
        ((*verdicts,),), counts = reward.grade([("which?", ["3", "9", "4", None])])
    # 3 loses to 9 and beats the fourth; 9 beats both; 4 loses to 9 and beats the fourth; the fourth loses twice
    assert verdicts == [Verdict(0.5), Verdict(1.0), Verdict(0.5), Verdict(0.0)]
    assert counts["asked"] == len(backend.calls) == 4, "two comparisons, both orders; nobody reads the fourth"


def test_a_pull_to_the_first_place_cancels(tmp_path: Path) -> None:
    reward, _ = judge(lambda call: '{"better": "A"}', tmp_path, "pairs")
    with reward:
        verdicts, counts = reward.grade([("which?", ["3", "9", "4", "4"])])
    assert verdicts == [[Verdict(0.5)] * 4]
    assert counts["unread"] == 0


def test_half_a_comparison_counts_for_nothing(tmp_path: Path) -> None:
    def script(call: Call) -> str:
        """Cannot say when 9 comes first; says nothing at all of 4."""
        text = shown(call)
        return "hm" if "\n4\n" in text or text.index("\n9\n") < text.index("\n3\n") else '{"better": "A"}'

    reward, _ = judge(script, tmp_path, "pairs")
    with reward:
        verdicts, counts = reward.grade([("which?", ["3", "9", "4"]), ("which?", ["5"])])
    assert verdicts == [[Verdict(None, UNREAD)] * 3, [Verdict(None, UNREAD)]]
    assert counts["asked"] == 6
    assert counts["unread"] == 5


def test_the_ring() -> None:
    assert ring(4, 1) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert len(ring(8, 2)) == 16
    assert len(ring(4, 9)) == 6, "everybody meets everybody, once"
    assert ring(2, 3) == [(0, 1)]
    assert ring(1, 2) == ring(0, 2) == []


def test_a_failed_call_has_its_reason(tmp_path: Path) -> None:
    script = by_text({"good": points(5, 5), "long": LLMError("the prompt is too long")})
    reward, _ = judge(script, tmp_path)
    with reward:
        verdicts, counts = reward.grade([("why?", ["good", "long"])])
    assert verdicts == [[Verdict(1.0), Verdict(None, "the prompt is too long")]]
    assert counts["failed"] == 1
    again, backend = judge(by_text({"long": points(5, 1)}), tmp_path)
    with again:
        assert again.grade([("why?", ["good", "long"])])[0] == [[Verdict(1.0), Verdict(0.4)]]
    assert len(backend.calls) == 1, "what failed is asked again, and only that"


def test_a_judge_out_of_reach_and_a_spent_budget_stop_it(tmp_path: Path) -> None:
    answers: list[str | None] = [f"answer {i}" for i in range(60)]
    reward, backend = judge(lambda call: LLMError("wrong key"), tmp_path / "a")
    with reward, pytest.raises(UserError, match="the judge scripted cannot go on: wrong key"):
        reward.grade([("why?", answers)])
    assert len(backend.calls) < 40, "it does not go on to ask in vain"
    llm = LLM(Budgeted(Scripted(lambda call: points(1, 1)), Budget(BudgetConfig(calls=3))))
    spent = JudgeReward(llm, Reading(how="rubric", rubric=RUBRIC), tmp_path / "b")
    with spent, pytest.raises(UserError, match=r"cannot go on: .*calls"):
        spent.grade([("why?", answers)])
