"""Sums that are too large to do in the head: a model learns to call the calculator instead.

    user        Multiply 347 by 28, then add 56 to the result.
    assistant   <tool> calculator : 347 * 28 </tool>
    tool        <result> 9716 </result>
    assistant   <tool> calculator : 9716 + 56 </tool>
    tool        <result> 9772 </result>
    assistant   answer: 9772

    written   the expression stands in the question, and has to be copied
    worded    it is told in words, sometimes in another order ("Take 28 away from 347.")
    told      a short story
    then      the second call needs the first one's result
    both      two questions at once: two calls in one turn, two results in one message

Calls and results are written as the agent's "trained" protocol writes them (agent/dialect.py; a test keeps the two
equal), results are the calculator's own. The model is taught what the assistant writes: calls and answers, never
results, since messages of role "tool" are not learned. Every number stands behind a space, in questions, calls and
results alike, so that it is made of the same tokens wherever it is copied from.

It does not handle calls that fail and are mended, thinking before a call, or deciding between several tools.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.tasks import Message, Split, held_out
from sekkei.tools.calculator import CalculatorError, answer

KINDS = ("written", "worded", "told", "then", "both")
_MAX_DRAWS = 10_000
_ANSWER = re.compile(r"(?:\A|\s)answer: (\S+(?: and \S+)*)\s*\Z")
_CALL = re.compile(r"<tool>(.*?)</tool>", re.DOTALL)
_INSIDE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_-]*)[ \t]*:(.*)", re.DOTALL)
_MARK = re.compile(r"<(/?(?:tool|result)>)")
ERROR = "error: "

# {a}, {b}, {c} are numbers; a >= b where something is taken away, so that no result is negative
_WORDED = (
    ("Multiply {a} by {b}.", "{a} * {b}"),
    ("What do you get for {a} times {b}?", "{a} * {b}"),
    ("Add {a} and {b}.", "{a} + {b}"),
    ("What is the sum of {a}, {b} and {c}?", "{a} + {b} + {c}"),
    ("Subtract {b} from {a}.", "{a} - {b}"),
    ("Take {b} away from {a}.", "{a} - {b}"),
    ("How much is {a} minus {b}?", "{a} - {b}"),
    ("What is the product of {a} and {b}?", "{a} * {b}"),
)
_TOLD = (
    ("A box holds {a} pencils. How many pencils are in {b} boxes?", "{a} * {b}"),
    ("Anna has {a} stamps and gives {b} away. How many are left?", "{a} - {b}"),
    ("A train carries {a} people, and {b} more get on. How many is that?", "{a} + {b}"),
    ("Ben reads {a} pages a day for {b} days. How many pages is that?", "{a} * {b}"),
    ("A shop had {a} cups, sold {b} and bought {c}. How many has it now?", "{a} - {b} + {c}"),
)
_FIRST = (
    ("Multiply {a} by {b}", "{a} * {b}"),
    ("Add {a} and {b}", "{a} + {b}"),
    ("Subtract {b} from {a}", "{a} - {b}"),
)
_SECOND = (("add {c} to the result", "{r} + {c}"), ("multiply the result by {c}", "{r} * {c}"))
_WRITTEN = ("What is {}?", "Compute {}.", "Work out {}.", "How much is {}?")
_OPERATORS = ("+", "-", "*", "/")


@dataclass(frozen=True, kw_only=True)
class CalculatorConfig:
    """Which sums there are.

    Args:
        max_number: numbers of questions are 2 to this (a dividend may be larger).
        held_out_percent: share of all questions that is kept for tests.
    """

    max_number: int = 999
    held_out_percent: int = 10

    def __post_init__(self) -> None:
        if not 20 <= self.max_number <= 99_999:
            raise ConfigError("max_number", f"got {self.max_number}, must be 20 … 99999")
        if not 1 <= self.held_out_percent <= 99:
            raise ConfigError("held_out_percent", f"{self.held_out_percent} must be between 1 and 99")


@dataclass(frozen=True)
class CalculatorTask:
    """A question, the expressions to call the calculator with (turn by turn), and the answer's text."""

    kind: str
    question: str
    turns: tuple[tuple[str, ...], ...]
    answer: str


def sample_task(rng: random.Random, split: Split, config: CalculatorConfig, kind: str | None = None) -> CalculatorTask:
    """Draw one task from one side of the split, of `kind` or of any.

    Raises:
        UserError: no such kind or side.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"kind: got {kind!r}, must be one of {', '.join(KINDS)}")
    if split not in ("train", "test"):
        raise UserError(f"split: got {split!r}, must be train or test")
    for _ in range(_MAX_DRAWS):
        task = _draw(rng, kind or rng.choice(KINDS), config.max_number)
        if held_out("calculator", task.question, config.held_out_percent) == (split == "test"):
            return task
    raise UserError(f"held_out_percent={config.held_out_percent} leaves no {split} question of the calculator")


def demonstration(task: CalculatorTask) -> list[Message]:
    """The whole conversation, for instruction tuning."""
    messages = prompt(task)
    for calls in task.turns:
        written = " ".join(f"<tool> calculator : {expression} </tool>" for expression in calls)
        results = results_text([answer(expression) for expression in calls])
        messages += [{"role": "assistant", "content": written}, {"role": "tool", "content": results}]
    return [*messages, {"role": "assistant", "content": f"answer: {task.answer}"}]


def respond(said: str) -> list[str]:
    """The result of every call in what an assistant wrote, in order: a number, or an error that says what is wrong.

    No call, no results: it is the answer. What stands behind a result that the assistant made up itself is not read.
    """
    said = said.partition("<result>")[0]
    results = []
    for body in _CALL.findall(said):
        found = _INSIDE.fullmatch(body)
        if not found:
            results.append(ERROR + "a call is written <tool> NAME : ARGUMENT </tool>")
        elif found[1] != "calculator":
            results.append(ERROR + f"no tool is called {found[1]!r}; there are: calculator")
        else:
            try:
                results.append(answer(found[2].strip()))
            except CalculatorError as error:
                results.append(ERROR + str(error))
    if "<tool>" in _CALL.sub("", said):
        results.append(ERROR + "a call ends with </tool>, and this one does not")
    return results


def results_text(results: Sequence[str]) -> str:
    """The tool's message: one `<result> … </result>` per call; none can imitate the marks."""
    return " ".join("<result> " + _MARK.sub(r"< \1", result) + " </result>" for result in results)


def prompt(task: CalculatorTask) -> list[Message]:
    """The user's turn alone."""
    return [{"role": "user", "content": task.question}]


def verify(task: CalculatorTask, text: str) -> bool:
    """Whether a reply ends in the right answer."""
    found = _ANSWER.search(text)
    return found is not None and found[1] == task.answer


def _draw(rng: random.Random, kind: str, most: int) -> CalculatorTask:
    if kind == "written":
        expression = _expression(rng, most)
        return _task(kind, rng.choice(_WRITTEN).format(expression), ((expression,),))
    numbers = _numbers(rng, most)
    if kind == "both":
        first, second = _expression(rng, most), _expression(rng, most)
        return _task(kind, f"Compute {first} and {second}.", ((first, second),))
    if kind == "then":
        (words, first), (then, second) = rng.choice(_FIRST), rng.choice(_SECOND)
        first = first.format(**numbers)
        last = second.format(r=answer(first), **numbers)
        return _task(kind, f"{words.format(**numbers)}, then {then.format(**numbers)}.", ((first,), (last,)))
    words, expression = rng.choice(_WORDED if kind == "worded" else _TOLD)
    return _task(kind, words.format(**numbers), ((expression.format(**numbers),),))


def _task(kind: str, question: str, turns: tuple[tuple[str, ...], ...]) -> CalculatorTask:
    return CalculatorTask(kind, question, turns, " and ".join(map(answer, turns[-1])))


def _numbers(rng: random.Random, most: int) -> dict[str, int]:
    """Small and large numbers alike: the size is drawn first, then the number."""
    small, large = sorted(rng.randint(2, rng.choice((19, 99, most))) for _ in range(2))
    return {"a": large, "b": small, "c": rng.randint(2, 99)}


def _expression(rng: random.Random, most: int) -> str:
    found = _numbers(rng, most)
    a, b, c = found["a"], found["b"], found["c"]
    form = rng.choice(("two", "two", "three", "brackets"))
    if form == "two":
        operator = rng.choice(_OPERATORS)
        return f"{b * c} / {b}" if operator == "/" else f"{a} {operator} {b}"
    if form == "three":
        return f"{a} {rng.choice(('+', '-', '*'))} {b} + {c}"
    return f"( {a} {rng.choice(('+', '-'))} {b} ) * {c}"
