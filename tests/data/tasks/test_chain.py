"""Chain arithmetic: the written steps are true, the split is disjoint, only the last answer counts."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.core.config import from_mapping
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.data.tasks.chain import (
    STYLES,
    ChainConfig,
    ChainProblem,
    count_steps,
    demonstration,
    parse_answer,
    prompt,
    reasoning,
    sample_problem,
    solved,
    split_of,
    verify,
    words,
)

CONFIG = ChainConfig()
# 7 + 3 = 10; 10 * 4 = 40 = 17 (mod 23); 17 - 5 = 12
BY_HAND = ChainProblem(7, (("add", 3), ("times", 4), ("minus", 5)), 23)


def _problem(seed: int, operations: int = 6, split: str = "train") -> ChainProblem:
    return sample_problem(random.Random(derive_seed("test", seed)), operations, split, CONFIG)  # type: ignore[arg-type]


def test_a_chain_by_hand():
    assert BY_HAND.question == "start at 7, add 3, times 4, minus 5, modulo 23"
    assert BY_HAND.values == (7, 10, 17, 12)
    assert BY_HAND.answer == 12
    assert ChainProblem(2, (("minus", 5),), 23).answer == 20
    assert reasoning(BY_HAND, "every") == " 7 add 3 = 10; 10 times 4 = 17; 17 minus 5 = 12"
    assert reasoning(BY_HAND, "two") == " 7 add 3 times 4 = 17; 17 minus 5 = 12"
    assert reasoning(BY_HAND, "three") == " 7 add 3 times 4 minus 5 = 12"
    assert reasoning(BY_HAND, "none") == ""
    assert [count_steps(reasoning(BY_HAND, style)) for style in STYLES] == [3, 2, 1, 0]
    assert demonstration(BY_HAND, "none") == [
        {"role": "user", "content": BY_HAND.question},
        {"role": "assistant", "content": " answer: 12", "reasoning_content": ""},
    ]
    assert solved(BY_HAND, "three") == (BY_HAND.question, " 7 add 3 times 4 minus 5 = 12", " answer: 12")
    assert prompt(BY_HAND) == demonstration(BY_HAND, "every")[:1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), operations=st.sampled_from(CONFIG.train_operations), style=st.sampled_from(STYLES))
def test_every_written_step_is_true_and_the_last_is_the_answer(seed: int, operations: int, style: str):
    problem = _problem(seed, operations)
    question, thought, content = solved(problem, style)
    # An independent reading of the question, from left to right.
    value = int(re.search(r"start at (\d+),", question)[1])
    for word, operand in re.findall(r" (add|minus|times) (\d+),", question):
        value = eval(f"({value} {({'add': '+', 'minus': '-', 'times': '*'})[word]} {operand}) % 23")
    assert problem.answer == value
    assert content == f" answer: {value}"
    for line in filter(None, thought.split(";")):
        left, _, right = line.partition(" =")
        first, *steps = left.split()
        value = int(first)
        for word, operand in zip(steps[::2], steps[1::2]):
            value = {"add": value + int(operand), "minus": value - int(operand), "times": value * int(operand)}[word]
        assert value % 23 == int(right)
    if thought:
        assert int(right) == problem.answer


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), style=st.sampled_from(STYLES))
def test_every_text_is_made_of_the_listed_pieces(seed: int, style: str):
    pieces = set(words(CONFIG))
    for text in solved(_problem(seed), style):
        # What a byte-level BPE sees before it merges: a word or number with its space, or one mark.
        for piece in re.findall(r" ?[a-z]+| ?[0-9]+| ?=|[^ a-z0-9]", text):
            assert piece in pieces
        assert "".join(re.findall(r" ?[a-z]+| ?[0-9]+| ?=|[^ a-z0-9]", text)) == text


def test_the_split_is_a_function_of_the_question():
    train = {_problem(seed, 2).question for seed in range(400)}
    test = {_problem(seed, 2, "test").question for seed in range(400)}
    assert not train & test
    rng = random.Random(0)
    drawn = [sample_problem(rng, 6, "test", ChainConfig(held_out_percent=99)) for _ in range(1000)]
    share = ChainConfig(held_out_percent=25)
    assert 200 < sum(split_of(problem, share) == "test" for problem in drawn) < 300


def test_a_seed_always_gives_the_same_problem():
    assert _problem(5) == _problem(5) != _problem(6)
    assert _problem(0).question == "start at 17, times 4, add 3, times 9, times 3, add 6, minus 4, modulo 23"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 7 add 3 = 10</think> answer: 10", 10),
        ("<think> 7 add 3 = 10</think> answer: 10\n", 10),
        ("<think></think> answer: 0", 0),
        (" answer: 9", 9),
        ("answer: 9", 9),
        ("<think> answer: 9", None),  # never closed
        ("<think> answer: 9</think> 9", None),  # said inside only
        ("</think> answer: 9 or 10", None),
        ("</think> answer: 9.", None),
        ("</think> answer: 09", None),
        ("</think> answer: -9", None),
        ("</think> answer: nine", None),
        ("</think> myanswer: 9", None),
        ("</think> answer: 3</think> answer: 9", None),  # a second block
        ("</think><think> answer: 9", None),
        ("", None),
    ],
)
def test_answers_are_read_strictly(text: str, answer: int | None):
    assert parse_answer(text) == answer


def test_only_the_outcome_is_verified():
    for style in STYLES:
        _, thought, content = solved(BY_HAND, style)
        assert verify(BY_HAND, f"<think>{thought}</think>{content}")
    assert verify(BY_HAND, "<think> 7 add 3 = 11</think> answer: 12")
    assert not verify(BY_HAND, "<think> 7 add 3 = 10; 10 times 4 = 17; 17 minus 5 = 12</think> answer: 13")
    assert not verify(BY_HAND, "<think> 7 add 3 = 10")


def test_a_config_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="max_times: 30 must be at least 2 and below modulus=23"):
        from_mapping(ChainConfig, {"max_times": 30})
    with pytest.raises(ConfigError, match="held_out_percent: 0 must be"):
        ChainConfig(held_out_percent=0)
    with pytest.raises(ConfigError, match="train_operations"):
        ChainConfig(train_operations=())
    with pytest.raises(ConfigError, match="reported_operations"):
        ChainConfig(reported_operations=0)
    with pytest.raises(UserError, match="8 is not a length for train"):
        _problem(0, 8)
    assert len(_problem(0, 8, "test").operations) == 8
    with pytest.raises(UserError, match="split"):
        _problem(0, 6, "valid")
    with pytest.raises(UserError, match="style: got 'four'"):
        reasoning(BY_HAND, "four")
    tiny = ChainConfig(modulus=3, max_add=1, max_minus=1, max_times=2, train_operations=(1,), held_out_percent=1)
    with pytest.raises(UserError, match="held_out_percent=1 leaves no test problem"):
        sample_problem(random.Random(0), 1, "test", tiny)


def test_maxima_are_kept():
    config = ChainConfig(max_add=1, max_minus=2, max_times=3)
    rng = random.Random(0)
    seen = {step for _ in range(200) for step in sample_problem(rng, 6, "train", config).operations}
    assert seen == {("add", 1), ("minus", 1), ("minus", 2), ("times", 2), ("times", 3)}
