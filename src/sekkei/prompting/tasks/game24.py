"""Game of 24: combine four numbers with + - * / to 24, each number exactly once (Yao et al. 2023, section 4.1).

    4 9 10 13
    ├─ 13 - 9 = 4     (left: 4 4 10)
    │  └─ 10 - 4 = 6  (left: 4 6)
    │     └─ 4 * 6 = 24   ->   4 * (10 - (13 - 9))

A thought is one equation, a state the equations so far and what they leave over. All arithmetic is in exact fractions.
The checker takes an expression over whole numbers and decides; nothing is trusted but its parse tree. `exact_moves`
and `solvable` are the solver: they stand in for a model's proposals and values.

Departure from the published program: an equation that is wrong or uses a number that is not left over is dropped when
it is proposed, where theirs goes on with what the model wrote. Results with this task are not comparable to the paper's
without saying so. The prompts are our own.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from sekkei.core.errors import UserError
from sekkei.llm.protocol import Message, user

TARGET = 24
MAX_LENGTH = 200  # of an expression; four numbers need far fewer characters
SURE, LIKELY, IMPOSSIBLE = 20.0, 1.0, 0.001  # values of the three verdicts in the published program
_NUMBER = r"-?\d+(?:/\d+)?"
_EQUATION = re.compile(rf"\(?({_NUMBER})\)? *([-+*/]) *\(?({_NUMBER})\)? *= *\(?({_NUMBER})\)?")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})


@dataclass(frozen=True)
class State:
    """Equations so far, and what is left over as (value, expression) pairs in the order of their values."""

    left: tuple[tuple[Fraction, str], ...]
    steps: tuple[str, ...] = ()

    @property
    def numbers(self) -> str:
        return " ".join(str(value) for value, _ in self.left)


def parse_numbers(question: str) -> tuple[int, ...]:
    """The four numbers of a puzzle.

    Raises:
        UserError: there are not exactly four whole numbers.
    """
    found = re.findall(r"\d+", question)
    if len(found) != 4 or re.search(r"[^\d\s,;]", question):
        raise UserError(f"{question!r} is no Game of 24: write four whole numbers, as '4 9 10 13'")
    return tuple(map(int, found))


def check(numbers: Sequence[int], expression: str) -> bool:
    """Whether `expression` uses each of `numbers` exactly once, only + - * / and brackets, and makes 24 exactly.

    "…= 24" behind it is allowed. Signs in front of numbers, powers, decimals and joined digits are not.
    """
    text = expression.translate(_SIGNS).strip()
    text = re.sub(r"=\s*24\s*\.?$", "", text).strip()
    if len(text) > MAX_LENGTH or not re.fullmatch(r"[\d\s+\-*/()]+", text):
        return False
    try:
        tree = ast.parse(text, mode="eval").body
        used: list[int] = []
        value = _value(tree, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return value == TARGET and Counter(used) == Counter(numbers)


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The exact value of a parse tree; its numbers are added to `used`.

    Raises:
        ValueError: something other than a whole number or one of the four operations. ZeroDivisionError
    """
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp):
        sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}.get(type(node.op))
        if sign is None:
            raise ValueError("an operation that is none of the four")
        return apply(sign, _value(node.left, used), _value(node.right, used))
    raise ValueError("something other than numbers and operations")


def apply(sign: str, a: Fraction, b: Fraction) -> Fraction:
    """a sign b; ZeroDivisionError for a / 0."""
    if sign == "+":
        return a + b
    if sign == "-":
        return a - b
    return a * b if sign == "*" else a / b


def combine(state: State, i: int, sign: str, j: int) -> State | None:
    """The state after left[i] sign left[j]; None for a division by zero."""
    (a, left), (b, right) = state.left[i], state.left[j]
    if sign == "/" and b == 0:
        return None
    value = apply(sign, a, b)
    rest = [pair for k, pair in enumerate(state.left) if k not in (i, j)]
    after = tuple(sorted([*rest, (value, f"({left} {sign} {right})")]))
    numbers = " ".join(str(number) for number, _ in after)
    return State(after, (*state.steps, f"{a} {sign} {b} = {value} (left: {numbers})"))


def exact_moves(state: State) -> list[State]:
    """Every state that one equation leads to, each set of numbers once."""
    made: dict[tuple[Fraction, ...], State] = {}
    for i in range(len(state.left)):
        for j in range(len(state.left)):
            for sign in "+-*/":
                if i == j or (sign in "+*" and i > j):
                    continue
                after = combine(state, i, sign, j)
                if after is not None:
                    made.setdefault(tuple(value for value, _ in after.left), after)
    return list(made.values())


@lru_cache(maxsize=200_000)
def reachable(numbers: tuple[Fraction, ...]) -> bool:
    """Whether 24 can be made of `numbers` (sorted), exactly."""
    if len(numbers) == 1:
        return numbers[0] == TARGET
    for i, a in enumerate(numbers):
        for j in range(i + 1, len(numbers)):
            b, rest = numbers[j], [x for k, x in enumerate(numbers) if k not in (i, j)]
            made = {a + b, a - b, b - a, a * b, *([a / b] if b else []), *([b / a] if a else [])}
            if any(reachable(tuple(sorted([*rest, value]))) for value in made):
                return True
    return False


def solvable(state: State) -> bool:
    """Whether `state` can still be led to 24."""
    return reachable(tuple(value for value, _ in state.left))


class Game24:
    """The task for Tree of Thoughts, by prompts and exactly."""

    def start(self, question: str) -> State:
        numbers = parse_numbers(question)
        return State(tuple(sorted((Fraction(number), str(number)) for number in numbers)))

    def show(self, state: State) -> str:
        return state.steps[-1] if state.steps else state.numbers

    def final(self, state: State) -> bool:
        return len(state.left) == 1

    def answer(self, state: State) -> str | None:
        """The equations put into one another, whatever value they have; None before the end."""
        if len(state.left) != 1:
            return None
        expression = state.left[0][1]
        return expression[1:-1] if expression.startswith("(") else expression

    def propose_messages(self, state: State, k: int) -> list[Message]:
        return [user(PROPOSE.format(k=k, numbers=state.numbers))]

    def read_proposals(self, state: State, text: str) -> list[State]:
        """Every correct equation over two numbers that are left, in the order of the lines."""
        made = [self._move(state, line) for line in text.translate(_SIGNS).splitlines()]
        return [after for after in made if after is not None]

    def value_messages(self, state: State) -> list[Message]:
        if self.final(state):
            return [user(JUDGE_FINAL.format(numbers=state.numbers, expression=self.answer(state)))]
        return [user(JUDGE.format(numbers=state.numbers))]

    def read_value(self, text: str) -> float:
        """The last verdict word of a judgement."""
        found = re.findall(r"\b(sure|likely|impossible)\b", text.lower())
        return {"sure": SURE, "likely": LIKELY, "impossible": IMPOSSIBLE}[found[-1]] if found else 0.0

    def vote_messages(self, states: Sequence[State]) -> list[Message]:
        lines = [f"choice {i + 1}: {'; '.join(s.steps)}" for i, s in enumerate(states)]
        return [user(VOTE + "\n".join(lines))]

    def read_vote(self, text: str, count: int) -> int | None:
        found = re.findall(r"choice is\D*(\d+)", text.lower())
        choice = int(found[-1]) - 1 if found else -1
        return choice if 0 <= choice < count else None

    def _move(self, state: State, line: str) -> State | None:
        found = _EQUATION.search(line)
        if found is None:
            return None
        try:
            a, b, result = (Fraction(found[i]) for i in (1, 3, 4))
        except ZeroDivisionError:
            return None
        values = [value for value, _ in state.left]
        i = next((k for k, value in enumerate(values) if value == a), None)
        j = next((k for k, value in enumerate(values) if value == b and k != i), None)
        if i is None or j is None:
            return None
        after = combine(state, i, found[2], j)
        return after if after is not None and apply(found[2], a, b) == result else None


PROPOSE = """The aim is to reach 24 by combining numbers, two at a time, with + - * /.
List up to {k} different next steps. Write each on a line of its own, as an equation and the numbers that are then left.

Numbers: 3 5 12
3 + 5 = 8 (left: 8 12)
12 / 3 = 4 (left: 4 5)
12 - 5 = 7 (left: 3 7)
3 * 5 = 15 (left: 12 15)
12 - 3 = 9 (left: 5 9)

Numbers: {numbers}
"""

JUDGE = """Can the numbers be combined to exactly 24 with + - * /, each used once? Try a few ways, then end with one
word: sure (you found a way), likely (none found, but the sizes fit), or impossible (too small, too large, or no way).

Numbers: 4 6
4 * 6 = 24
sure

Numbers: 2 3
2 * 3 = 6, 2 + 3 = 5: all far too small
impossible

Numbers: 5 7 9
5 + 7 + 9 = 21, (9 - 5) * 7 = 28, 9 * 5 - 7 = 38: near 24 on both sides
likely

Numbers: {numbers}
"""

JUDGE_FINAL = """The puzzle was to make exactly 24 with each number used once. The result is {numbers}, by {expression}.
End with one word: sure (it is exactly 24) or impossible (it is not).
"""

VOTE = """The aim is to reach 24 by combining numbers, two at a time, with + - * /. Compare the attempts below by what
is left over, and say which is the most promising. End with "The best choice is N", where N is its number.

"""


async def exact_generate(_meter: object, state: State, _k: int) -> list[State]:
    """G of the solver: all moves."""
    return exact_moves(state)


async def exact_evaluate(_meter: object, states: list[State]) -> list[float]:
    """V of the solver: 1 where 24 can still be reached, else 0."""
    return [float(solvable(state)) for state in states]
