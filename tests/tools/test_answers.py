"""Final answers: which one a reply commits to, and when two are the same."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.tools.answers import extract_answer, normalise, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He pays 5 * 250.10.\n#### 1,250.50", "1,250.50"),
        (r"which gives \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        (r"first \boxed{1}, but then \boxed{2}", "2"),
        ("<think> 6 times 7 = 42; answer: 41</think> answer: 42", "42"),
        ("The answer is 3.5 km/h. That is slow.", "3.5 km/h"),
        ("**Answer:** 3 apples.", "3 apples"),
        ("The final answer is: **17**", "17"),
        ("The answer is 3. No: the answer is 4.", "4"),
        ("answer = -2", "-2"),
        ("So the answer is $x = 5$.", "$x = 5$"),
        (r"The answer is $\boxed{5}$.", "5"),
        ("42", "42"),
        ("  1,000 ", "1,000"),
        ("it takes 42", None),  # a number that is not marked
        ("<think> answer: 42", None),  # still thinking
        (r"\boxed{3", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_last_marked_answer_is_extracted(text: str, answer: str | None):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1,250.50", "$1250.5"),
        ("0.75", "3/4"),
        ("3/4", r"\dfrac{3}{4}"),
        (r"$\frac{6}{8}$", ".75"),
        ("3 1/2", "3.5"),
        ("-3 1/2", "-7/2"),
        ("12 apples", "12"),
        ("12 square metres.", "12 m^2"),
        (r"12\text{ cm}", "12cm"),
        ("50%", "50"),
        ("x = 5", "5"),
        ("-0", "0"),
        ("007", "7"),
        ("Paris.", " paris"),
        ("The  Moon", "the moon"),
    ],
)
def test_same(a: str, b: str):
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1", "2"),
        ("-1", "1"),
        ("0.333", "1/3"),  # exact
        ("3x", "3"),
        ("2^3", "2"),
        ("3 4", "34"),
        ("3, 4", "3"),
        ("5 million", "5"),
        ("10 am", "10 pm"),
        ("1/0", "1"),
        ("1,23", "123"),
        ("yes", "no"),
        ("", "0"),
    ],
)
def test_different(a: str, b: str):
    assert not same_answer(a, b)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(number=st.integers(-(10**9), 10**9), cents=st.integers(0, 99))
def test_all_spellings_of_a_number_agree(number: int, cents: int):
    plain = f"{number}.{cents:02d}"
    assert same_answer(plain, f"{number:,}.{cents:02d}")
    assert same_answer(plain, f"{plain} dollars")
    assert extract_answer(f"So the answer is {plain}.") == plain
    assert Fraction(normalise(plain)) == Fraction(plain)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(text=st.text(alphabet="0123456789.,/-+$%{}\\boxed#answer: <think>\n x^", max_size=60))
def test_noise_is_survived(text: str):
    found = extract_answer(text)
    assert found is None or same_answer(found, found)


def test_absurdly_long_numbers_are_text():
    assert normalise("9" * 5000) == "9" * 5000
