"""Worked maths problems in GSM8K's format, answered freely and checked by value, not by spelling.

    {"question": "…", "answer": "… #### 72"}          Cobbe et al. 2021, arXiv:2110.14168

    pass@k       at least one of k samples is right, unbiased from n samples (Chen et al. 2021)
    majority@n   the most frequent answer of n samples is right, answers of one value counted as one
    unanswered   samples that commit to no answer: they are wrong, and shown apart

Two answers are equal if `tools.answers` finds them equal (exact numbers and fractions), or if `math-verify` does where
it is installed (algebra, sets, intervals; extra `eval`), within a time limit. Replies are read in the forms that
tools/answers.py lists.

What it does not handle: proofs, answers that need units converted, the worked steps (only the outcome counts).
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import threading
import time
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
VERIFY_SECONDS = 5  # of processor time for one comparison; usual ones take hundredths of a second
VERIFY_BYTES = 4 << 30


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


@functools.cache
def verifier() -> str | None:
    """The version of `math-verify` that answers are compared with; None: it is not installed."""
    try:
        return importlib.metadata.version("math-verify")
    except importlib.metadata.PackageNotFoundError:
        return None


def equivalent(gold: str, answer: str) -> bool:
    """Whether two final answers have the same value. `math-verify` is asked where exact comparison says no."""
    if same_answer(gold, answer):
        return True
    if max(len(gold), len(answer)) > VERIFY_CHARACTERS or verifier() is None:
        return False
    return _VERIFIER.same(gold, answer)


class _Verifier:
    """math-verify in a process of its own, with limits of processor time and memory.

    A tower of powers ("9^{9^{9}}") is worked out by one call in C that no Python code interrupts, so the kernel has to
    end it, and the process with it. The process stays for the next comparison, and ends with this one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # a forked rank must not write into its parent's pipe

    def same(self, gold: str, answer: str) -> bool:
        """Whether both have one value; False where finding out takes more than VERIFY_SECONDS or VERIFY_BYTES."""
        with self._lock:
            process = self._process
            if process is None or self._owner != os.getpid() or process.poll() is not None:
                process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([gold, answer]) + "\n")
            process.stdin.flush()
            said = process.stdout.readline().strip()
            if not said:  # ended at a limit
                process.communicate()
                self._process = None
            return said == "true"

    def _started(self) -> subprocess.Popen[str]:
        code = "from sekkei.evals.maths import compare_lines; compare_lines()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise UserError(f"math-verify cannot be started; see {Path(sys.executable).name} -c '{code}'")
        self._process, self._owner = process, os.getpid()
        return process


_VERIFIER = _Verifier()


def compare_lines() -> None:
    """The other side of `_Verifier`: pairs of answers on standard input, a line "true" or "false" for each."""
    import logging
    import resource

    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    resource.setrlimit(resource.RLIMIT_AS, (VERIFY_BYTES, VERIFY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        until = math.ceil(time.process_time()) + VERIFY_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        try:
            first, second = (parse(f"${text}$", parsing_timeout=None) for text in json.loads(line))
            same = bool(first and second and verify(first, second, timeout_seconds=None))
        except (ArithmeticError, MemoryError, RecursionError, ValueError):
            same = False
        print("true" if same else "false", flush=True)


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
