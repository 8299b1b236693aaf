"""Modular chain arithmetic (data/tasks/chain.py) as a task for the strategies: one written result is one thought.

    start at 7, add 3, times 4, minus 5, modulo 23
    ├─ 7 add 3 = 10
    │  └─ 10 times 4 = 17
    │     └─ 17 minus 5 = 12   ->   12
    └─ 7 add 3 = 11               a wrong thought: it reads well, so only its value can weed it out

Two ways of asking. `ChainTask(native=True)` is for a model that was trained on the task (our own): a thought is
sampled by continuing its think block up to the next ";", and the model's own probability is its value (`Likely`).
Otherwise prompts in words ask any model for the next step (sample), and for a verdict on the last one (value).

A thought must take up the problem where the state stands (its value, the next operations); its *result* is not
checked here, since that is what the model is to get right. Only `check` knows the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sekkei.core.errors import UserError
from sekkei.data.tasks import chain
from sekkei.data.tasks.chain import OPERATIONS, ChainProblem
from sekkei.llm.protocol import Message, Reply, user

_WORDS = "|".join(OPERATIONS)
_QUESTION = re.compile(rf"\s*start at (\d+),((?: (?:{_WORDS}) \d+,)+) modulo (\d+)\s*")
_THOUGHT = re.compile(rf"\s*(\d+)((?: (?:{_WORDS}) \d+)+) = (\d+)\s*\.?\s*")
SURE, UNSURE = 1.0, 0.0


@dataclass(frozen=True)
class State:
    """A problem and the results written so far: (line, operations used up, value after it)."""

    problem: ChainProblem
    lines: tuple[str, ...] = ()
    done: int = 0
    value: int = 0


def parse_question(question: str) -> ChainProblem:
    """The problem that a question states.

    Raises:
        UserError: it is none.
    """
    found = _QUESTION.fullmatch(question)
    if found is None:
        raise UserError(
            f"{question!r} is no chain; write it as 'start at 7, add 3, times 4, minus 5, modulo 23' "
            f"(operations: {', '.join(OPERATIONS)})"
        )
    steps = re.findall(rf"({_WORDS}) (\d+)", found[2])
    problem = ChainProblem(int(found[1]), tuple((word, int(number)) for word, number in steps), int(found[3]))
    if problem.modulus < 1:
        raise UserError(f"{question!r}: the modulus must be 1 or more")
    return problem


def check(question: str, answer: str) -> bool:
    """Whether `answer` is the number that `question` asks for."""
    return answer.strip() == str(parse_question(question).answer)


def read_answer(reply: Reply) -> str | None:
    """The number behind "answer:" of a finished reply."""
    found = None if reply.finish_reason == "length" else chain.parse_answer(reply.text)
    return None if found is None else str(found)


@dataclass(frozen=True, kw_only=True)
class ChainTask:
    """The task for Tree of Thoughts.

    Args:
        native: see the header.
    """

    native: bool = False

    @property
    def stop(self) -> tuple[str, ...]:
        return (";",) if self.native else ("\n",)

    def start(self, question: str) -> State:
        problem = parse_question(question)
        return State(problem, value=problem.start)

    def show(self, state: State) -> str:
        return state.lines[-1] if state.lines else state.problem.question

    def final(self, state: State) -> bool:
        return state.done == len(state.problem.operations)

    def answer(self, state: State) -> str | None:
        return str(state.value) if self.final(state) else None

    def sample_messages(self, state: State) -> list[Message]:
        if not self.native:
            rest = ", ".join(f"{word} {number}" for word, number in state.problem.operations[state.done :])
            asked = STEP.format(value=state.value, rest=rest, modulus=state.problem.modulus)
            return [user(asked)]
        written = "".join(f" {line};" for line in state.lines)
        return [
            user(state.problem.question),
            {"role": "assistant", "content": "", "reasoning_content": written},
        ]

    def read_thought(self, state: State, reply: Reply) -> State | None:
        return self.after(state, (reply.thinking or "") if self.native else reply.text)

    def after(self, state: State, line: str) -> State | None:
        """The state after one written result, None if it does not take up the problem where the state stands."""
        found = _THOUGHT.fullmatch(line)
        if found is None or int(found[1]) != state.value:
            return None
        steps = tuple((word, int(number)) for word, number in re.findall(rf"({_WORDS}) (\d+)", found[2]))
        if state.problem.operations[state.done : state.done + len(steps)] != steps:
            return None
        value = int(found[3])
        if value >= state.problem.modulus:
            return None
        text = f"{found[1]}{found[2]} = {value}"
        return State(state.problem, (*state.lines, text), state.done + len(steps), value)

    def last_thought(self, state: State) -> tuple[list[Message], str]:
        """What stood before the last line, and the line as a trained model writes it (its end mark included)."""
        written = "".join(f" {line};" for line in state.lines[:-1])
        end = "" if self.final(state) else ";"
        messages: list[Message] = [
            user(state.problem.question),
            {"role": "assistant", "content": "", "reasoning_content": written},
        ]
        return messages, f" {state.lines[-1]}{end}"

    def path(self, state: State) -> tuple[list[Message], str]:
        """The question with an open think block, and all lines as a trained model writes them."""
        end = "" if self.final(state) else ";"
        messages: list[Message] = [
            user(state.problem.question),
            {"role": "assistant", "content": "", "reasoning_content": ""},
        ]
        return messages, " " + "; ".join(state.lines) + end

    def value_messages(self, state: State) -> list[Message]:
        return [user(JUDGE.format(line=state.lines[-1], modulus=state.problem.modulus))]

    def read_value(self, text: str) -> float:
        """1 for "right", 0 for "wrong" or anything else."""
        found = re.findall(r"\b(right|wrong)\b", text.lower())
        return SURE if found and found[-1] == "right" else UNSURE


STEP = """Work out a calculation one step at a time. Every result is taken modulo {modulus}: the remainder after
division by it, never negative. Write only the next step, on one line, as in "10 times 4 = 17" (modulo 23).

The value is {value}. Still to do: {rest}.
The next step:"""

JUDGE = """Check one step of a calculation in which every result is taken modulo {modulus} (the remainder after
division by it, never negative). Work it out yourself, then end with one word: right or wrong.

The step: {line}
"""
