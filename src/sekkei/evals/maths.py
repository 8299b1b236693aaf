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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.evals.ask import Progress, no_progress, sample_all
from sekkei.evals.items import read_items
from sekkei.evals.outcome import Figure, Outcome, mean
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings, counted, user
from sekkei.tools.answers import extract_answer, normalise, same_answer
from sekkei.tools.statistics import majority, pass_at_k

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
    return read_items(path, _problem)


def _problem(data: Mapping[str, Any]) -> Problem:
    answer = extract_answer(data["answer"])
    if answer is None:
        raise ValueError("the answer does not end with #### and a value")
    return Problem(question=str(data["question"]), answer=answer)


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
    ks: Sequence[int] = (1,),
    progress: Progress = no_progress,
) -> Outcome:
    """pass@k, and with several samples a problem (`settings.n`) pass@n and majority@n.

    Raises:
        UserError: no problems, a prompt without {question}, or a k above n.
    """
    if not problems:
        raise UserError("maths: there are no problems")
    if "{question}" not in prompt:
        raise UserError("maths: the prompt template has no {question}")
    n = settings.n
    asked = [[user(prompt.replace("{question}", problem.question))] for problem in problems]
    found = sample_all(llm, asked, settings, progress)
    answers = [[extract_answer(reply.text) for reply in replies] for replies in found]
    right = [
        sum(answer is not None and equivalent(problem.answer, answer) for answer in given)
        for problem, given in zip(problems, answers)
    ]
    scores = pass_scores(right, n, ks)
    if n > 1:
        votes = [majority([None if one is None else normalise(one) for one in given]) for given in answers]
        scores[f"majority@{n}"] = [
            float(vote is not None and equivalent(problem.answer, vote)) for problem, vote in zip(problems, votes)
        ]
    silent = sum(answer is None for given in answers for answer in given) / (n * len(problems))
    cut = sum(reply.finish_reason == "length" for replies in found for reply in replies) / (n * len(problems))
    return Outcome(
        task="maths",
        items=len(problems),
        prompt=prompt,
        scores=scores,
        figures={name: mean(values, settings.seed) for name, values in scores.items()}
        | {"unanswered": Figure(value=silent), "cut_off": Figure(value=cut)},
        settings=sampling(settings),
        usage=counted([reply for replies in found for reply in replies]),
        texts=[(problem.question,) for problem in problems],
        rows=[
            {"question": problem.question, "gold": problem.answer, "answers": list(given), "right": count}
            for problem, given, count in zip(problems, answers, right)
        ],
    )


def pass_scores(right: Sequence[int], n: int, ks: Sequence[int]) -> dict[str, list[float]]:
    """pass@k per item for every k of `ks` and for n, from how many of n samples were right.

    Raises:
        UserError: a k is not between 1 and n.
    """
    return {f"pass@{k}": [pass_at_k(n, count, k) for count in right] for k in sorted({*ks, n})}


def sampling(settings: Settings) -> dict[str, Any]:
    """The settings of sampling that a result file states."""
    names = ("temperature", "top_p", "max_tokens", "seed", "thinking")
    return {"samples": settings.n} | {name: getattr(settings, name) for name in names}
