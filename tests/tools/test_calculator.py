"""The calculator gives exact values, refuses what has none, and cannot be made to work for long."""

from __future__ import annotations

import math
import random
import time
from fractions import Fraction

import pytest

from sekkei.tools.calculator import FUNCTIONS, CalculatorError, answer, calculate, show


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3 * 4", "12"),
        ("0.1 + 0.2", "0.3"),
        ("1/3 + 1/6", "0.5"),
        ("1/3", "1/3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("7.5 % 2", "1.5"),
        ("2**10", "1024"),
        ("2^10", "1024"),
        ("2**-2", "0.25"),
        ("4 ** 0.5", "2"),
        ("8 ** (1/3)", "2"),
        ("(4/9) ** 1.5", "8/27"),
        ("(3 − 1) × 6 ÷ 4 =", "3"),
        ("-3 ** 2", "-9"),
        ("+(-(5))", "-5"),
        ("1_000 * 1.50", "1500"),
        ("2.5e3", "2500"),
        ("1e-3", "0.001"),
        ("0.05", "0.05"),
        (".5 + 5.", "5.5"),
        ("007", None),
        ("sqrt(144) + sqrt(2.25)", "13.5"),
        ("round(2.5) + round(-0.5) + round(1.005, 2)", "3.01"),
        ("round(1250, -2)", "1300"),
        ("floor(-0.5) + ceil(0.5)", "0"),
        ("min(3, 1/2, 2) + max(4) + abs(-1)", "5.5"),
        ("gcd(12, 18) * lcm(4, 6)", "72"),
        ("factorial(10) / comb(10, 3)", "30240"),
        ("(-1) ** 10**9", "1"),
        ("1 ** 10**900", "1"),
        ("0 ** 0", "1"),
    ],
)
def test_values(expression: str, value: str | None) -> None:
    if value is None:
        with pytest.raises(CalculatorError, match="not an expression"):
            answer(expression)
    else:
        assert answer(expression) == value


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("3 +", "not an expression"),
        ("x + 1", "'x' is not arithmetic"),
        ("1 / 0", "'1 / 0' divides by zero"),
        ("5 % (2 - 2)", "divides by zero"),
        ("0 ** -1", "divides by zero"),
        ("9**9**9", "more than 1,000 digits"),
        ("(9**900)**900", "more than 1,000 digits"),
        ("(10**900) * (10**900)", "more than 1,000 digits"),
        ("1.0000001 ** 100000000", "more than 1,000 digits"),
        ("2 ** (1 / 10**900)", "more than 1,000 digits"),
        ("1e999999999", "more than 1,000 digits"),
        ("factorial(100000)", "0 to 449"),
        ("factorial(-1)", "0 to 449"),
        ("sqrt(2)", "only exact values"),
        ("2 ** 0.5", "only exact values"),
        ("sqrt(-4)", "not a real number"),
        ("gcd(1.5, 3)", "whole numbers, got 1.5"),
        ("sin(1)", "no function 'sin'; known: abs"),
        ("sqrt(1, 2)", "does not take 2 numbers"),
        ("min()", "needs a number"),
        ("round(1, ndigits=2)", "not arithmetic"),
        ("__import__('os').system('true')", "not arithmetic"),
        ("(1).__class__", "not arithmetic"),
        ("[1, 2]", "not arithmetic"),
        ("1 if 1 else 2", "not arithmetic"),
        ("lambda: 1", "not arithmetic"),
        ("True + 1", "'True' is not a number"),
        ("'a' * 5", "not a number"),
        ("2j", "not a number"),
        ("0x10", "not a number"),
        ("1 << 3", "known operators"),
        ("1,250", "not arithmetic"),
        ("1\x002", "cannot be read|not an expression"),
        ("1" * 501, "501 characters"),
        ("(" * 220 + "1" + ")" * 220, "not an expression|cannot be read"),
    ],
)
def test_errors(expression: str, words: str) -> None:
    began = time.perf_counter()
    with pytest.raises(CalculatorError, match=words):
        calculate(expression)
    assert time.perf_counter() - began < 1.0


def test_every_expression_of_the_largest_kind_is_quick() -> None:
    """Bounded work: the slowest shapes that the limits let through."""
    for expression in (
        "+".join(["1"] * 250),
        "-" * 240 + "1",
        "sqrt(4 ** 1600)",
        "(3 ** 2000) ** (1 / 1000)",
        "comb(3000, 1500)",
        "*".join(["9999999999"] * 40),
        "(7/3) ** 1000",
    ):
        began = time.perf_counter()
        try:
            assert calculate(expression) != 0
        except CalculatorError as error:
            assert "digits" in str(error)  # noqa: PT017 (either is fine, quickly)
        assert time.perf_counter() - began < 2.0, expression


def test_it_agrees_with_python_on_random_trees() -> None:
    draw = random.Random(0)
    for _ in range(500):
        text = str(draw.randint(0, 20))
        for _ in range(draw.randint(1, 6)):
            sign = draw.choice(["+", "-", "*", "/", "//", "%"])
            text = (
                f"({text}) {sign} {draw.randint(1, 9)}"
                if draw.random() < 0.5
                else f"{draw.randint(1, 9)} {sign} ({text})"
            )
        spelled = "".join(f"Fraction({part})" if part.isdigit() else part for part in _split(text))
        try:
            expected = eval(spelled, {"Fraction": Fraction})
        except ZeroDivisionError:
            with pytest.raises(CalculatorError, match="zero"):
                calculate(text)
            continue
        assert calculate(text) == expected, text


def _split(text: str) -> list[str]:
    parts: list[str] = [""]
    for character in text:
        if character.isdigit() == parts[-1].isdigit():
            parts[-1] += character
        else:
            parts.append(character)
    return parts


def test_shown_values_read_back() -> None:
    draw = random.Random(1)
    for _ in range(300):
        value = Fraction(draw.randint(-(10**6), 10**6), draw.choice([1, 2, 3, 7, 8, 25, 1000, 2**21]))
        assert calculate(show(value)) == value
    assert show(Fraction(-1, 8)) == "-0.125"
    assert show(Fraction(1, 2**21)) == "1/2097152"


def test_the_limit_of_factorials_fits_the_limit_of_digits() -> None:
    for name in ("abs", "sqrt", "comb"):
        assert name in FUNCTIONS
    assert math.factorial(449) < 10**1000 < math.factorial(450)
    assert len(answer("factorial(449)")) == len(str(math.factorial(449)))
