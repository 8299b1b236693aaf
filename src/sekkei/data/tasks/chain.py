"""Modular chain arithmetic: a reasoning task whose answer a program can check.

    question    start at 7, add 3, times 4, minus 5, modulo 23
    every        7 add 3 = 10; 10 times 4 = 17; 17 minus 5 = 12       one written result per operation
    two          7 add 3 times 4 = 17; 17 minus 5 = 12                per two operations
    three        7 add 3 times 4 minus 5 = 12                         per three operations
    none        (nothing)                                             the answer at once
    answer       answer: 12
    table       modulo 23: 7 times 9 = 17; 3 add 4 = 7                single facts, for pretraining

Operations apply from left to right, each result is taken modulo `modulus`. Demonstrations mix the four styles; only
"every" is reliable for a small model, so reinforcement learning on the outcome alone has something to find: it
selects the style that writes its steps. A blind guess is right in 1/modulus of the cases (4.3% at 23).

Every number and word is written with a space before it and punctuation without one, also at the very start of the
reasoning and of the answer, so that a byte-level BPE can hold each piece as one token; `words` lists the pieces.

What it does not handle: it does not place think tags (the chat template does), and does not look at the steps when
it verifies: an answer reached through wrong steps counts as right.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.tasks import Message, Split, held_out

Form = Literal["chat", "document"]
"""How a problem is put: as a user's turn, or as the beginning of a document that a base model goes on with."""
Style = Literal["every", "two", "three", "none"]
STYLES: tuple[Style, ...] = ("every", "two", "three", "none")
_FOLD = {"every": 1, "two": 2, "three": 3}
# A side of the split that 10,000 draws do not meet is empty for all purposes (the chance is 1e-44 at 1%).
_MAX_DRAWS = 10_000
_ANSWER = re.compile(r"(?:\A|\s)answer: (0|[1-9][0-9]{0,8})\s*\Z")
_RESULT = re.compile(r" = [0-9]+")


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Which chains there are.

    Args:
        modulus: results live in 0 … modulus-1. A prime keeps `times` invertible, so no answer is favoured.
        max_add, max_minus: operands are drawn from 1 to this.
        max_times: factors are drawn from 2 to this.
        train_operations: chain lengths of demonstrations and of prompts for reinforcement learning.
        held_out_operations: length at which held-out accuracy is the figure of merit.
        reported_operations: a length beyond training, reported beside it (small models fail there).
        held_out_percent: share of all problems that belongs to the test split, by hash of the question.
    """

    modulus: int = 23
    max_add: int = 9
    max_minus: int = 9
    max_times: int = 9
    train_operations: tuple[int, ...] = (2, 3, 4, 5, 6)
    held_out_operations: int = 6
    reported_operations: int = 8
    held_out_percent: int = 10

    def __post_init__(self) -> None:
        if not 3 <= self.modulus <= 99:
            raise ConfigError("modulus", f"{self.modulus} must be 3 … 99: results are tokens of two digits")
        for key, least in (("max_add", 1), ("max_minus", 1), ("max_times", 2)):
            value = getattr(self, key)
            if not least <= value < self.modulus:
                raise ConfigError(key, f"{value} must be at least {least} and below modulus={self.modulus}")
        if not self.train_operations or min(self.train_operations) < 1:
            raise ConfigError("train_operations", f"{list(self.train_operations)} must list lengths of 1 or more")
        for key in ("held_out_operations", "reported_operations"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"{getattr(self, key)} must be 1 or more")
        if not 1 <= self.held_out_percent <= 99:
            raise ConfigError("held_out_percent", f"{self.held_out_percent} must be between 1 and 99")

    def operands(self, word: str) -> range:
        """The operands that may follow `word` ("add", "minus" or "times")."""
        return {
            "add": range(1, self.max_add + 1),
            "minus": range(1, self.max_minus + 1),
            "times": range(2, self.max_times + 1),
        }[word]


OPERATIONS = ("add", "minus", "times")


@dataclass(frozen=True)
class ChainProblem:
    """One chain: a start in 0 … modulus-1 and (word, operand) pairs, applied from left to right."""

    start: int
    operations: tuple[tuple[str, int], ...]
    modulus: int

    @property
    def question(self) -> str:
        steps = "".join(f" {word} {operand}," for word, operand in self.operations)
        return f"start at {self.start},{steps} modulo {self.modulus}"

    @property
    def values(self) -> tuple[int, ...]:
        """The start and the value after each operation: `len(operations) + 1` numbers."""
        values = [self.start]
        for word, operand in self.operations:
            last = values[-1]
            result = {"add": last + operand, "minus": last - operand, "times": last * operand}[word]
            values.append(result % self.modulus)
        return tuple(values)

    @property
    def answer(self) -> int:
        return self.values[-1]


def split_of(problem: ChainProblem, config: ChainConfig) -> Split:
    """The side of the split that `problem` belongs to, a function of its question alone."""
    return "test" if held_out("chain", problem.question, config.held_out_percent) else "train"


def sample_problem(rng: random.Random, operations: int, split: Split, config: ChainConfig) -> ChainProblem:
    """Draw one problem of `operations` steps from one side of the split.

    Raises:
        UserError: a training problem of a length that `train_operations` does not list, or no problem of that
            length lies on that side.
    """
    if split not in ("train", "test"):
        raise UserError(f"split: got {split!r}, must be train or test")
    if operations < 1 or (split == "train" and operations not in config.train_operations):
        known = ", ".join(map(str, config.train_operations))
        raise UserError(f"operations: {operations} is not a length for {split}; train_operations lists {known}")
    for _ in range(_MAX_DRAWS):
        steps = []
        for _ in range(operations):
            word = rng.choice(OPERATIONS)
            steps.append((word, rng.choice(config.operands(word))))
        problem = ChainProblem(rng.randrange(config.modulus), tuple(steps), config.modulus)
        if split_of(problem, config) == split:
            return problem
    raise UserError(f"held_out_percent={config.held_out_percent} leaves no {split} problem of {operations} operations")


def reasoning(problem: ChainProblem, style: str) -> str:
    """The text inside the think block, "" for style "none".

    Raises:
        UserError: `style` is not one of `STYLES`.
    """
    if style == "none":
        return ""
    if style not in _FOLD:
        raise UserError(f"style: got {style!r}, must be one of {', '.join(STYLES)}")
    fold, values, lines = _FOLD[style], problem.values, []
    for begin in range(0, len(problem.operations), fold):
        group = problem.operations[begin : begin + fold]
        steps = "".join(f" {word} {operand}" for word, operand in group)
        lines.append(f" {values[begin]}{steps} = {values[begin + len(group)]}")
    return ";".join(lines)


def answer_text(problem: ChainProblem) -> str:
    """The visible content of the reply, with its leading space."""
    return f" answer: {problem.answer}"


def opening(problem: ChainProblem) -> str:
    """The beginning of a pretraining document, up to where the reasoning begins."""
    return f"{problem.question}\n<think>"


def prompt(problem: ChainProblem) -> list[Message]:
    """The user's turn alone, for sampling."""
    return [{"role": "user", "content": problem.question}]


def demonstration(problem: ChainProblem, style: str) -> list[Message]:
    """The user's turn and the assistant's, with `reasoning_content` (empty for style "none")."""
    question, thought, content = solved(problem, style)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": content, "reasoning_content": thought},
    ]


def solved(problem: ChainProblem, style: str) -> tuple[str, str, str]:
    """(question, reasoning, answer text): the pieces of a pretraining document in the think format without roles."""
    return problem.question, reasoning(problem, style), answer_text(problem)


def table(rng: random.Random, config: ChainConfig, facts: int) -> str:
    """A drill for pretraining: single operations with their results, written as in a reasoning.

    "modulo 23: 7 times 9 = 17; 3 add 4 = 7; ..." Half of them are products, which are the hardest to learn.
    """
    lines = []
    for _ in range(facts):
        word = rng.choice((*OPERATIONS, "times"))
        problem = ChainProblem(
            rng.randrange(config.modulus), ((word, rng.choice(config.operands(word))),), config.modulus
        )
        lines.append(reasoning(problem, "every"))
    return f"modulo {config.modulus}:{';'.join(lines)}"


def parse_answer(text: str) -> int | None:
    """The number of a completion that ends in "answer: N", else None.

    `text` may begin inside the think block (a prompt that ends in the opening tag) or before it. A block that was
    opened and never closed, a second block, and anything but white space after the number give None. That a
    completion was cut off by its length is the caller's to see: its finish reason says so, the text does not.
    """
    head, closed, visible = text.partition("</think>")
    if not closed:
        head, visible = "", text
    if "<think>" in visible or "</think>" in visible or head.count("<think>") > 1:
        return None
    found = _ANSWER.search(visible)
    return int(found[1]) if found else None


def verify(problem: ChainProblem, completion_text: str) -> bool:
    """Whether the completion ends in the right answer. Only the outcome counts."""
    return parse_answer(completion_text) == problem.answer


def count_steps(reasoning: str) -> int:
    """How many results (" = N") the reasoning writes down."""
    return len(_RESULT.findall(reasoning))


def words(config: ChainConfig) -> tuple[str, ...]:
    """Every piece of question, reasoning and answer; a tokenizer must hold each as a single token."""
    numbers = [f" {number}" for number in range(config.modulus + 1)]
    return ("start", " at", *(f" {word}" for word in OPERATIONS), " modulo", " answer", " =", ",", ";", ":", *numbers)
