"""Programs that a model writes, run against tests in the sandbox.

    HumanEval   {"task_id", "prompt", "entry_point", "test"}                      Chen et al. 2021, arXiv:2107.03374
    MBPP        {"task_id", "text" or "prompt", "test_list", "test_setup_code"?}  Austin et al. 2021, arXiv:2108.07732

    pass@k  at least one of k samples passes all tests, unbiased from n samples (Chen et al. 2021, eq. 1)

A chat model is asked in words and its last fenced block that defines something is taken (the whole reply where there
is none); a model that only continues text goes on from the prompt up to the next top-level statement. A program passes
if it ends by itself behind the last test: it must print a mark drawn anew for each run, so one that leaves early with
exit code 0 fails.

Code runs behind the walls of tools/sandbox.py; where they cannot be built the task is refused, not run without.
It does not handle tests that need packages beside the standard library, or the network.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.evals.ask import Progress, no_progress, sample_all
from sekkei.evals.items import read_items
from sekkei.evals.maths import pass_scores, sampling
from sekkei.evals.outcome import Figure, Outcome, mean
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings, counted, user
from sekkei.tools.sandbox import capabilities, run_python
from sekkei.tools.watch import Limits, SandboxError

ASK = "Complete this Python program. Reply with the whole function in one code block.\n\n```python\n{prompt}\n```"
ASK_MBPP = "{prompt}\nYour code should pass these tests:\n\n{tests}\n\nReply with one Python code block."
# What begins something new behind a completed function (Chen et al. 2021, section 2.2, and a call of the tests).
STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n```")
FENCED = re.compile(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What to program, and the tests.

    Args:
        prompt: the beginning of a program (HumanEval), or words (MBPP). entry: the function's name, "" for MBPP.
        before: code that stands before the program. tests: code behind it.
    """

    name: str
    prompt: str
    entry: str
    before: str
    tests: str

    @property
    def asked(self) -> str:
        """As a chat model is asked."""
        if self.entry:
            return ASK.replace("{prompt}", self.prompt.rstrip())
        return ASK_MBPP.replace("{prompt}", self.prompt).replace("{tests}", self.tests)

    @property
    def begun(self) -> str:
        """As a model that continues text is asked."""
        return self.prompt if self.entry else f'"""\n{self.prompt}\n{self.tests}\n"""\n'


def read_exercises(path: Path) -> list[Exercise]:
    """Exercises of a JSON-lines file in HumanEval's or MBPP's format.

    Raises:
        UserError: the file cannot be read, or a line is neither.
    """
    return read_items(path, _exercise)


def _exercise(data: Mapping[str, Any]) -> Exercise:
    name = str(data["task_id"])
    if "entry_point" in data:
        entry = str(data["entry_point"])
        tests = f"{data['test']}\n\ncheck({entry})"
        return Exercise(name=name, prompt=str(data["prompt"]), entry=entry, before="", tests=tests)
    if "test_list" not in data:
        raise ValueError("neither HumanEval's (entry_point, test) nor MBPP's format (test_list)")
    before = "\n".join([*data.get("test_imports", ()), data.get("test_setup_code") or ""])
    prompt = data["text"] if "text" in data else data["prompt"]
    return Exercise(name=name, prompt=str(prompt), entry="", before=before, tests="\n".join(data["test_list"]))


def program(exercise: Exercise, reply: str, base: bool) -> str:
    """The program that a reply stands for, without the tests."""
    if base:
        written = exercise.prompt + reply if exercise.entry else reply
    else:
        blocks = FENCED.findall(reply)
        defining = [block for block in blocks if re.search(r"^(?:async )?(?:def|class) ", block, re.MULTILINE)]
        written = (defining or blocks or [reply])[-1]
        if exercise.entry and not re.search(rf"^(?:async )?def {re.escape(exercise.entry)}\b", written, re.MULTILINE):
            written = exercise.prompt + written  # only the body was written
        elif exercise.entry:
            written = f"{exercise.prompt.partition('def ')[0]}\n{written}"  # the imports and aids of the prompt
    return f"{exercise.before}\n{written}\n"


def passes(written: str, tests: str, limits: Limits) -> tuple[bool, str]:
    """Whether a program passes the tests, and else why not ("time", "memory", an error's name, "left early").

    Raises:
        SandboxError: the walls cannot be built on this machine.
    """
    mark = secrets.token_hex(8)
    result = run_python(f"{written}\n{tests}\nprint('\\n{mark}')\n", limits=limits)
    if result.ok and result.stdout.rstrip().endswith(mark):
        return True, ""
    if result.ok:
        return False, "left early"
    if result.stopped:
        return False, result.stopped
    last = result.stderr.strip().rpartition("\n")[2]
    return False, last.partition(":")[0][:60] or f"exit code {result.exit}"


def evaluate_code(
    llm: LLM,
    exercises: Sequence[Exercise],
    settings: Settings,
    *,
    base: bool = False,
    ks: Sequence[int] = (1,),
    limits: Limits | None = None,
    progress: Progress = no_progress,
) -> Outcome:
    """pass@k of `settings.n` programs per exercise.

    Args:
        base: the model only continues text. progress: told of replies, then of tested exercises: twice as many steps.
    Raises:
        SandboxError: code cannot be run safely here. UserError: no exercises, a k above n.
    """
    if not exercises:
        raise UserError("code: there are no exercises")
    walls = capabilities()
    if not walls.safe:
        why = "; ".join(f"{way}: {reason}" for way, reason in walls.missing.items())
        raise SandboxError(f"code: programs cannot be run safely on this machine ({why})")
    limits = limits or Limits(seconds=20.0, cpu_seconds=10)
    if base:
        settings = Settings(**{**vars(settings), "stop": STOPS})
    asked = [[user(one.begun if base else one.asked)] for one in exercises]
    found = sample_all(llm, asked, settings, progress)
    jobs = [program(one, reply.text, base) for one, replies in zip(exercises, found) for reply in replies]
    tests = [one.tests for one in exercises for _ in range(settings.n)]
    verdicts = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for done, verdict in enumerate(pool.map(lambda one: passes(one[0], one[1], limits), zip(jobs, tests)), start=1):
            verdicts.append(verdict)
            progress(len(exercises) + done // settings.n)
    grouped = [verdicts[start : start + settings.n] for start in range(0, len(verdicts), settings.n)]
    right = [sum(good for good, _ in group) for group in grouped]
    scores = pass_scores(right, settings.n, ks)
    failures = Counter(why for good, why in verdicts if not good)
    return Outcome(
        task="code",
        items=len(exercises),
        prompt="{prompt}" if base else ASK if exercises[0].entry else ASK_MBPP,
        scores=scores,
        figures={name: mean(values, settings.seed) for name, values in scores.items()}
        | {f"failed.{why}": Figure(value=count / len(verdicts)) for why, count in sorted(failures.items())},
        settings=sampling(settings) | {"walls": walls.mode, "seconds": limits.seconds},
        usage=counted([reply for replies in found for reply in replies]),
        texts=[(one.prompt,) for one in exercises],
        rows=[
            {"name": one.name, "right": count, "why": [why for _, why in group], "program": jobs[place * settings.n]}
            for place, (one, count, group) in enumerate(zip(exercises, right, grouped))
        ],
    )
