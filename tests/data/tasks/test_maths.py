"""Maths problems: every answer is recomputed from the question, every written equation is checked."""

from __future__ import annotations

import math
import random
import re
from fractions import Fraction

import pytest

from sekkei.core.errors import UserError
from sekkei.data.tasks.maths import FAMILIES, MathsProblem, maths_document, maths_problem
from sekkei.tools.answers import extract_answer, same_answer

_EQUATION = re.compile(r"(?<![\d+*/] )(-?\d+(?: [-+*/] \d+)+) = (-?\d+)")
PER_FAMILY = 60


def _recompute(p: MathsProblem) -> int | Fraction:
    g = p.given
    match p.family, p.form:
        case "addition", _:
            return sum(g)
        case "subtraction", _:
            return g[0] - g[1]
        case "multiplication", _:
            return g[0] * g[1]
        case "division", "boxes":
            return g[0] // g[1]
        case "division", "left":
            return g[0] % g[1]
        case "equation", form:
            a, b, c = g
            return {"plus": Fraction(c - b, a), "minus": Fraction(c + b, a), "bracket": Fraction(c, a) - b}[form]
        case "percent", form:
            part = Fraction(g[0] * g[1], 100)
            return {"of": part, "discount": g[1] - part, "rise": g[1] + part}[form]
        case "ratio", form:
            total, a, b = g
            return Fraction(total * (a if form == "first" else b), a + b)
        case "sequence", "doubling":
            return Fraction(g[3] * g[1], g[0])
        case "sequence", "next":
            return 2 * g[3] - g[2]
        case "sequence", "nth":
            return g[0] + (g[1] - g[0]) * (g[4] - 1)
        case "shape", form:
            return {"area": g[0] * g[1], "perimeter": 2 * g[0] + 2 * g[1], "triangle": Fraction(g[0] * g[1], 2)}[form]
        case "conversion", form:
            return g[0] * g[1] if form == "down" else Fraction(g[0], g[1])
        case "gcd", _:
            return math.gcd(*g)
        case "mean", _:
            return Fraction(sum(g), len(g))
        case "money", "change":
            return g[4] - g[0] * g[1] - g[2] * g[3]
        case "money", "saving":
            return g[0] + g[1] * g[2] - g[3]
    raise AssertionError(f"{p.family}/{p.form} has no check")


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_steps_are_right(family: str):
    rng = random.Random(7)
    forms, questions = set(), set()
    for _ in range(PER_FAMILY):
        p = maths_problem(rng, family)
        assert Fraction(p.answer) == _recompute(p), p
        in_question = [int(number) for number in re.findall(r"\d+", p.question)]
        asked = p.given[:1] if family == "conversion" else p.given  # the factor is common knowledge
        assert all(number in in_question for number in asked), p
        equations = _EQUATION.findall(p.solution)
        assert equations, p
        for left, right in equations:
            assert eval(left) == int(right), (left, right, p)
        assert same_answer(extract_answer(p.solution) or "", p.answer), p
        assert p.question.isascii()
        assert int(p.answer) >= 0
        forms.add(p.form)
        questions.add(re.sub(r"\d+", "0", p.question))
    assert len(questions) >= 3  # several wordings
    assert forms == {p.form for p in (maths_problem(rng, family) for _ in range(200))}


def test_carries_and_borrows_are_written_out():
    rng = random.Random(0)
    added = " ".join(maths_problem(rng, "addition").solution for _ in range(30))
    taken = " ".join(maths_problem(rng, "subtraction").solution for _ in range(30))
    assert "carry 1" in added
    assert "Write the last carry" in added
    assert "borrow 10" in taken
    assert "after lending" in taken


def test_a_document_holds_one_to_four_problems():
    rng = random.Random(3)
    texts = [maths_document(rng) for _ in range(80)]
    assert {text.count("\n\n") + 1 for text in texts} == {1, 2, 3, 4}
    assert all(text.isascii() and text.endswith(".\n") and "{" not in text for text in texts)
    assert len(set(texts)) == 80
    assert maths_document(random.Random(5)) == maths_document(random.Random(5))


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match="family: got 'logic', must be one of addition"):
        maths_problem(random.Random(0), "logic")
