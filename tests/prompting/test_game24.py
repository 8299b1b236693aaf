"""Game of 24: the checker against an independent evaluator, the solver against brute force, the search against both."""

from __future__ import annotations

import asyncio
import csv
import itertools
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sekkei.core.errors import UserError
from sekkei.llm import LLM
from sekkei.llm.scripted import Scripted
from sekkei.prompting.solution import solve_with
from sekkei.prompting.tasks.game24 import (
    IMPOSSIBLE,
    LIKELY,
    SURE,
    Game24,
    check,
    exact_evaluate,
    exact_generate,
    exact_moves,
    parse_numbers,
    reachable,
)
from sekkei.prompting.tot import SearchConfig, TreeOfThoughts, final_figures

PUZZLES = Path(__file__).parents[3] / "shared" / "data" / "game24_puzzles.csv"
NUMBER = st.integers(1, 13)
NOBODY = LLM(Scripted([]))  # a call to the model would raise: the solver stands in for it


def brute_force(numbers: tuple[int, ...]) -> bool:
    """Every order, every operation, the five ways to bracket: written out, sharing nothing with the solver."""

    def value(sign: str, a: Fraction | None, b: Fraction | None) -> Fraction | None:
        if a is None or b is None or (sign == "/" and b == 0):
            return None
        return {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a / b

    for order in set(itertools.permutations(numbers)):
        a, b, c, d = map(Fraction, order)
        for p, q, r in itertools.product("+-*/", repeat=3):
            ways = (
                value(r, value(q, value(p, a, b), c), d),
                value(r, value(p, a, value(q, b, c)), d),
                value(q, value(p, a, b), value(r, c, d)),
                value(p, a, value(r, value(q, b, c), d)),
                value(p, a, value(q, b, value(r, c, d))),
            )
            if 24 in ways:
                return True
    return False


@st.composite
def expressions(draw: st.DrawFn) -> tuple[list[int], str, Fraction | None]:
    """A random expression over four numbers, and its value computed while it is built (None: divides by zero)."""
    numbers = [draw(NUMBER) for _ in range(4)]
    parts: list[tuple[str, Fraction | None]] = [(str(number), Fraction(number)) for number in numbers]
    while len(parts) > 1:
        right_text, right = parts.pop(draw(st.integers(0, len(parts) - 1)))
        left_text, left = parts.pop(draw(st.integers(0, len(parts) - 1)))
        sign = draw(st.sampled_from("+-*/"))
        value: Fraction | None = None
        if left is not None and right is not None and not (sign == "/" and right == 0):
            value = {"+": left + right, "-": left - right, "*": left * right}.get(sign)
            value = left / right if value is None else value
        parts.append((f"({left_text} {sign} {right_text})", value))
    return numbers, parts[0][0], parts[0][1]


@settings(deadline=None)
@given(expressions())
def test_the_checker_agrees_with_the_value_it_was_built_with(made: tuple[list[int], str, Fraction | None]) -> None:
    numbers, text, value = made
    assert check(numbers, text) == (value == 24)
    assert check(numbers, text[1:-1]) == (value == 24), "the outer brackets do not matter"


@settings(deadline=None)
@given(st.lists(NUMBER, min_size=4, max_size=4), st.randoms(use_true_random=False))
def test_a_solution_is_right_for_its_own_numbers_only(numbers: list[int], rng: random.Random) -> None:
    state = Game24().start(" ".join(map(str, numbers)))
    assume(reachable(tuple(value for value, _ in state.left)))
    while not Game24().final(state):
        state = rng.choice([after for after in exact_moves(state) if reachable(tuple(v for v, _ in after.left))])
    text = Game24().answer(state)
    assert text is not None
    assert check(numbers, text)
    assert check(numbers, f"{text} = 24")
    place = rng.randrange(4)
    assert not check([*numbers[:place], numbers[place] + 1, *numbers[place + 1 :]], text)
    assert not check(numbers[:3], text)
    assert not check([*numbers, 1], text)
    assert not check(numbers, f"{text} + 0")
    assert not check(numbers, f"({text}) * 1")
    assert not check(numbers, f"-(0 - ({text}))")


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-*/() .=x", max_size=30))
def test_the_checker_never_breaks(text: str) -> None:
    assert check([4, 9, 10, 13], text) in (True, False)


@pytest.mark.parametrize(
    ("numbers", "text", "right"),
    [
        ((4, 9, 10, 13), "4 * (10 - (13 - 9))", True),
        ((4, 9, 10, 13), "(13-9)×(10−4)", True),
        ((4, 9, 10, 13), "(13 - 9) * (10 - 4) = 24.", True),
        ((4, 9, 10, 13), "(13 - 9) * (10 - 4) = 25", False),
        ((3, 3, 8, 8), "8 / (3 - 8 / 3)", True),  # only with exact fractions
        ((1, 5, 5, 5), "5 * (5 - 1 / 5)", True),
        ((2, 4, 1, 1), "24 * 1 * 1", False),  # joined digits
        ((4, 6, 1, 1), "4 * 6", False),
        ((4, 6, 1, 1), "4 * 6 * 1 * 1 * 1", False),
        ((2, 3, 4, 1), "2 ** 3 * (4 - 1)", False),
        ((9, 2, 4, 6), "9 // 2 * 6 + 4 - 4", False),
        ((4, 6, 1, 1), "4 * 6 / (1 - 1)", False),
        ((4, 6, 1, 1), "__import__('os')", False),
        ((4, 6, 1, 1), "", False),
        ((4, 6, 1, 1), "(" * 150 + "4" + ")" * 150, False),
    ],
)
def test_checker_cases(numbers: tuple[int, ...], text: str, right: bool) -> None:
    assert check(numbers, text) is right


@settings(max_examples=30, deadline=None)
@given(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER))
def test_the_solver_agrees_with_brute_force(numbers: tuple[int, ...]) -> None:
    assert reachable(tuple(sorted(map(Fraction, numbers)))) == brute_force(numbers)


def test_the_famous_ones() -> None:
    for numbers, right in [
        ((3, 3, 8, 8), True),
        ((1, 1, 1, 1), False),
        ((13, 13, 13, 13), False),
        ((1, 3, 4, 6), True),
    ]:
        assert reachable(tuple(map(Fraction, numbers))) is right


def puzzles(first: int, last: int) -> list[str]:
    if not PUZZLES.exists():
        pytest.skip(f"{PUZZLES} is absent (shared data)")
    with PUZZLES.open() as file:
        return [row["Puzzles"] for row in csv.DictReader(file) if first <= int(row["Rank"]) <= last]


@pytest.mark.parametrize(
    "search",
    [
        SearchConfig(algorithm="bfs", depth=3, beam=5),
        SearchConfig(algorithm="bfs", depth=3, beam=1),
        SearchConfig(algorithm="dfs", depth=3, threshold=0.5),
    ],
    ids=["bfs 5", "bfs 1", "dfs"],
)
def test_search_with_the_solver_solves_ranks_901_to_920(search: SearchConfig) -> None:
    ranks = puzzles(901, 920)
    assert len(ranks) == 20
    solvable = [text for text in ranks if reachable(tuple(sorted(map(Fraction, parse_numbers(text)))))]
    assert len(solvable) == 20
    tot = TreeOfThoughts(problem=Game24(), generate=exact_generate, evaluate=exact_evaluate, search=search)
    solutions = [solve_with(tot, NOBODY, text) for text in solvable]
    for text, solution in zip(solvable, solutions):
        assert solution.answer is not None
        assert check(parse_numbers(text), solution.answer), (text, solution.answer)
        assert solution.cost.calls == 0
    checks = [lambda answer, text=text: check(parse_numbers(text), answer) for text in solvable]
    assert final_figures(solutions, checks).top1 == 1.0


@pytest.mark.slow
def test_search_with_the_solver_solves_all_the_papers_puzzles() -> None:
    tot = TreeOfThoughts(problem=Game24(), generate=exact_generate, evaluate=exact_evaluate)
    for text in puzzles(901, 1000):
        answer = solve_with(tot, NOBODY, text).answer
        assert answer is not None
        assert check(parse_numbers(text), answer)


def test_depth_first_prunes_what_cannot_be_solved_and_comes_back() -> None:
    """With values that are sometimes wrong upwards, DFS must leave dead ends."""
    task = Game24()

    async def hopeful(_: object, states: list[object]) -> list[float]:
        exact = await exact_evaluate(None, states)  # type: ignore[arg-type]
        return [1.0 if len(state.left) == 2 else value for state, value in zip(states, exact)]  # type: ignore[attr-defined]

    search = SearchConfig(algorithm="dfs", depth=3, threshold=0.5, visits=1000)
    tot = TreeOfThoughts(problem=task, generate=exact_generate, evaluate=hopeful, search=search)  # type: ignore[arg-type]
    solution = solve_with(tot, NOBODY, "1 5 5 5")
    assert solution.answer is not None
    assert check((1, 5, 5, 5), solution.answer)
    parents = {node.parent for node in solution.nodes}
    dead_ends = [node for node in solution.nodes if node.status == "kept" and node.value == 1.0 and node.id in parents]
    assert len(dead_ends) > 3, "it must have gone into states that led nowhere"
    assert any(node.status == "pruned" for node in solution.nodes)


def test_an_unsolvable_puzzle_gives_no_right_answer() -> None:
    for algorithm in ("bfs", "dfs"):
        search = SearchConfig(algorithm=algorithm, threshold=0.5)  # type: ignore[arg-type]
        tot = TreeOfThoughts(problem=Game24(), generate=exact_generate, evaluate=exact_evaluate, search=search)
        answer = solve_with(tot, NOBODY, "1 1 1 1").answer
        assert answer is None or not check((1, 1, 1, 1), answer)


def test_a_question_that_is_no_puzzle() -> None:
    for text in ("4 9 10", "1 2 3 4 5", "a b c d", "4 -9 10 13", ""):
        with pytest.raises(UserError, match="four whole numbers"):
            parse_numbers(text)
    assert parse_numbers("4, 9,10 13") == (4, 9, 10, 13)


def test_proposals_are_read_with_care() -> None:
    task = Game24()
    state = task.start("4 9 10 13")
    text = """Here are steps:
13 - 9 = 4 (left: 4 4 10)
1. 10 ÷ 4 = 5/2 (left: 5/2 9 13)
10 - 4 = 7 (wrong)
5 + 9 = 14 (there is no 5)
9 + 9 = 18 (there is one 9)
4 / 0 = 3
13 − 10 = 3"""
    made = task.read_proposals(state, text)
    assert [after.steps[-1] for after in made] == [
        "13 - 9 = 4 (left: 4 4 10)",
        "10 / 4 = 5/2 (left: 5/2 9 13)",
        "13 - 10 = 3 (left: 3 4 9)",
    ]
    (third,) = task.read_proposals(made[1], "(5/2) - 9 = -13/2")
    (fourth,) = task.read_proposals(third, "-13/2 * 13 = -169/2")
    assert task.final(fourth)
    assert task.answer(fourth) == "((10 / 4) - 9) * 13"
    assert not check((4, 9, 10, 13), task.answer(fourth) or "")


def test_verdicts_and_votes_are_read_from_their_end() -> None:
    task = Game24()
    assert task.read_value("not sure yet ... 4 * 6 = 24\nsure") == SURE
    assert task.read_value("Impossible? No: likely.") == LIKELY
    assert task.read_value("it is impossible") == IMPOSSIBLE
    assert task.read_value("hm") == 0.0
    assert task.read_vote("choice 2 looks good. The best choice is 3", 3) == 2
    assert task.read_vote("The best choice is **2**.", 3) == 1
    assert task.read_vote("The best choice is 4", 3) is None
    assert task.read_vote("none", 3) is None


def test_the_exact_stand_ins_are_coroutines() -> None:
    state = Game24().start("1 1 1 1")
    moves = asyncio.run(exact_generate(None, state, 1))
    assert asyncio.run(exact_evaluate(None, moves)) == [0.0] * len(moves)
    assert sorted(" ".join(str(v) for v, _ in after.left) for after in moves) == ["0 1 1", "1 1 1", "1 1 2"]
