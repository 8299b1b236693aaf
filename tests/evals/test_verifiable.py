"""Verifiable evaluation: maths by value and multiple choice by log-likelihood, against counts made by hand."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sekkei.core.errors import UserError
from sekkei.evals import maths
from sekkei.evals.choice import Choice, evaluate_choices, read_choices, share_right
from sekkei.evals.maths import Problem, equivalent, evaluate_maths, read_problems
from sekkei.llm import LLM, LLMError, Settings
from sekkei.llm.scripted import Scripted
from sekkei.tools.statistics import wilson

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl"


def test_multiple_choice_counts_and_norms_by_bytes() -> None:
    # "a long right one" is less likely as a whole and more likely per byte
    values = {" no": -3.0, " a long right one": -6.0, " x": -1.0, " y": -2.0}
    llm = LLM(Scripted([], scorer=lambda call, text: values[text]))
    items = [
        Choice(question="q1", options=(" no", " a long right one"), right=1),
        Choice(question="q2", options=(" x", " y"), right=0),
    ]
    found = evaluate_choices(llm, items)
    assert {name: one.value for name, one in found.figures.items()} == {
        "accuracy": 0.5, "accuracy_norm": 1.0, "chance": 0.5,
    }  # fmt: skip
    low, high = wilson(1, 2)
    assert (found.figures["accuracy"].low, found.figures["accuracy"].high) == (low, high)
    assert share_right([1.0, 1.0, 0.0], 0) == 0.5
    with pytest.raises(LLMError, match="score"):
        evaluate_choices(LLM(Scripted([])), items)
    with pytest.raises(UserError, match="two options or more"):
        Choice(question="q", options=("only",), right=0)


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("72", "$72.00", True),
        ("3/4", "0.75", True),
        ("1,250", "1250 apples", True),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        ("x+x", "2x", True),
        ("72", "27", False),
        ("2x", "3x", False),
        ("72", "", False),
    ],
)
def test_answers_are_compared_by_value(gold: str, answer: str, same: bool) -> None:
    pytest.importorskip("math_verify")
    assert equivalent(gold, answer) is same


def test_an_answer_that_cannot_be_worked_out_is_wrong_and_holds_up_nothing() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    assert equivalent("1 + x", "x + 1")
    before = maths._VERIFIER._process
    assert before is not None
    assert not equivalent("72", "9^{9^{9}}")  # 370 million digits
    assert before.poll() == -signal.SIGXCPU, "nothing but the kernel ends this"
    assert equivalent("1 + x", "x + 1"), "the next comparison works"


def test_maths_counts_samples_votes_and_silence() -> None:
    problems = [Problem(question="6 * 7?", answer="42"), Problem(question="2 / 4?", answer="1/2")]
    replies = [
        "answer: 42",
        "answer: 42.0",
        "answer: 41",
        "who knows",
        "answer: 0.5",
        "answer: 3",
        "answer: 3",
        "answer: 2",
    ]
    found = evaluate_maths(LLM(Scripted(replies)), problems, Settings(n=4, temperature=1.0, seed=3), ks=(1, 2))
    figures = {name: one.value for name, one in found.figures.items()}
    assert figures["pass@1"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert figures["pass@2"] == pytest.approx(((1 - 1 / 6) + (1 - 3 / 6)) / 2)
    assert figures["pass@4"] == 1.0
    assert figures["majority@4"] == 0.5
    assert figures["unanswered"] == pytest.approx(1 / 8)
    assert (found.settings["samples"], found.settings["seed"]) == (4, 3)
    with pytest.raises(UserError, match="k=5 must be between 1"):
        evaluate_maths(LLM(Scripted(replies)), problems, Settings(n=4), ks=(5,))
    with pytest.raises(UserError, match=r"no \{question\}"):
        evaluate_maths(LLM(Scripted([])), problems, Settings(), prompt="solve it")


def test_choices_are_read_in_published_formats(tmp_path: Path) -> None:
    path = tmp_path / "choices.jsonl"
    path.write_text(
        '{"question": "q", "choices": ["a", " b"], "answer": "B"}\n\n'
        '{"query": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}\n'
        '{"ctx": "q", "endings": ["a", "b"], "label": "0"}\n'
    )
    found = read_choices(path)
    assert [(one.options, one.right) for one in found] == [((" a", " b"), 1), ((" a", " b"), 1), ((" a", " b"), 0)]
    path.write_text('{"question": "q", "choices": ["a", "b"], "answer": "E"}\n')
    with pytest.raises(UserError, match="line 1: answer 'E' is none of A, B"):
        read_choices(path)
    path.write_text('{"question": "q", "choices": ["a", "b"]}\n')
    with pytest.raises(UserError, match="line 1: 'answer' is missing"):
        read_choices(path)


def test_bad_problem_files_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"question": "q", "answer": "so it is #### 3"}\n{"question": "q", "answer": "no mark"}\n')
    with pytest.raises(UserError, match="line 2: the answer does not end"):
        read_problems(path)
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match="line 1: Expecting value"):
        read_problems(path)


@pytest.mark.skipif(not GSM8K.exists(), reason="../shared/data/gsm8k_train.jsonl is not there")
def test_gsm8k_as_published() -> None:
    problems = read_problems(GSM8K)
    assert len(problems) == 7473
    assert problems[0].answer == "72"
    assert all(equivalent(problem.answer, problem.answer) for problem in problems)
