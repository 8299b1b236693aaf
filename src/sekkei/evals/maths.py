"""Worked maths problems in GSM8K's format, answered freely and checked by value, not by spelling.

    {"question": "…", "answer": "… #### 72"}          Cobbe et al. 2021, arXiv:2110.14168

    pass@k       at least one of k samples is right, unbiased from n samples (Chen et al. 2021)
    majority@n   the most frequent answer of n samples is right, answers of one value counted as one
    unanswered   samples that commit to no answer: they are wrong, and shown apart

Two answers are equal if `tools.answers` finds them equal (exact numbers and fractions), or if `math-verify` does where
it is installed (algebra, sets, intervals; extra `eval`). Replies are read in the forms that tools/answers.py lists.

What it does not handle: proofs, answers that need units converted, the worked steps (only the outcome counts).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings, user
from sekkei.tools.answers import extract_answer, normalise, same_answer
from sekkei.tools.statistics import majority, pass_at_k, wilson

PROMPT = "{question}\n\nThink step by step, then end with a line: answer: NUMBER"
VERIFY_CHARACTERS = 200  # longer "answers" are prose, and parsing them is slow


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question and its final answer."""

    question: str
    answer: str


def read_problems(path: Path) -> list[Problem]:
    """Problems of a JSON-lines file in GSM8K's format.

    Raises:
        UserError: the file cannot be read, or a line is no such problem.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    problems = []
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
            answer = extract_answer(data["answer"])
            question = str(data["question"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} line {number}: is no problem with question and answer") from None
        if answer is None:
            raise UserError(f"{path} line {number}: the answer does not end with #### and a value")
        problems.append(Problem(question=question, answer=answer))
    return problems


def equivalent(gold: str, answer: str) -> bool:
    """Whether two final answers have the same value. `math-verify` is asked where exact comparison says no."""
    if same_answer(gold, answer):
        return True
    try:
        from math_verify import parse, verify
    except ImportError:
        return False
    if max(len(gold), len(answer)) > VERIFY_CHARACTERS:
        return False
    # Its own time limits use SIGALRM, which only the main thread has; the length limit above stands in for them.
    parsed = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
    return bool(parsed[0] and parsed[1] and verify(parsed[0], parsed[1], timeout_seconds=None))


def evaluate_maths(
    llm: LLM,
    problems: Sequence[Problem],
    settings: Settings,
    prompt: str = PROMPT,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """pass@1, pass@n, majority@n with `settings.n` samples a problem, and how they were asked.

    Raises:
        UserError: no problems, or a prompt without {question}.
    """
    if not problems:
        raise UserError("maths: there are no problems")
    if "{question}" not in prompt:
        raise UserError("maths: the prompt template has no {question}")
    n, right, votes, silent, tokens = settings.n, [], [], 0, 0
    for number, problem in enumerate(problems, start=1):
        replies = llm.sample([user(prompt.replace("{question}", problem.question))], settings)
        answers = [extract_answer(reply.text) for reply in replies]
        right.append(sum(answer is not None and equivalent(problem.answer, answer) for answer in answers))
        vote = majority([None if answer is None else normalise(answer) for answer in answers])
        votes.append(vote is not None and equivalent(problem.answer, vote))
        silent += sum(answer is None for answer in answers)
        tokens += sum(reply.usage.completion_tokens for reply in replies)
        progress(number)
    low, high = wilson(sum(votes), len(votes))
    return {
        "problems": len(problems),
        "samples": n,
        "seed": settings.seed,
        "temperature": settings.temperature,
        "prompt": prompt,
        "completion_tokens": tokens,
        "unanswered": silent / (n * len(problems)),
        "pass@1": statistics.fmean([count / n for count in right]),
        f"pass@{n}": statistics.fmean([pass_at_k(n, count, n) for count in right]),
        f"majority@{n}": statistics.fmean(votes),
        f"majority@{n}.low": low,
        f"majority@{n}.high": high,
    }
