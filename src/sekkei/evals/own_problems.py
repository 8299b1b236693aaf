"""Problems of one's own, as a file gives them: read, and the answers to them checked.

    {"question": …, "answer": "… #### 42"}           maths as GSM8K writes it; equal values count as equal
    {"question": …, "tests": "assert f(2) == 4"}     code; its last fenced block runs in the sandbox

One JSON object a line (items.py). They are asked as chains are (reasoning.py): as a chat's turn or as the beginning of
a document, with the think block that the model writes, and only the outcome counts.

It does not handle problems that need a conversation of several turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.evals.items import read_items
from sekkei.evals.maths import equivalent
from sekkei.objectives.rewards import passes
from sekkei.text.chat import parse_reply
from sekkei.tools.answers import extract_answer, normalise


@dataclass(frozen=True, kw_only=True)
class OwnProblem:
    """A question of the user's own; an answer to compare with, or tests to pass."""

    question: str
    answer: str | None = None
    tests: str | None = None

    def right(self, text: str) -> bool:
        """Whether an answer that ended is right. text: from its think block on, without the stop token.

        Raises:
            SandboxError: there are tests, and this machine cannot hold code.
        """
        if self.tests is not None:
            return passes(text, self.tests)
        found = extract_answer(parse_reply(text).content)
        return found is not None and equivalent(str(self.answer), found)

    def final(self, text: str) -> str | None:
        """What the answer commits to, one spelling per value, for votes; None: nothing. Of code: what it says."""
        said = parse_reply(text).content
        if self.tests is not None:
            return said.strip() or None
        found = extract_answer(said)
        return None if found is None else normalise(found)


def read_own(path: Path) -> list[OwnProblem]:
    """All problems of a file.

    Raises:
        UserError: it cannot be read, or a line is no such problem.
    """
    return read_items(path, _problem)


def _problem(data: Mapping[str, Any]) -> OwnProblem:
    question = str(data["question"])
    if "tests" in data:
        return OwnProblem(question=question, tests=str(data["tests"]))
    answer = extract_answer(str(data["answer"]))
    if answer is None:
        raise ValueError("the answer does not end with #### and a value (problems of code have tests instead)")
    return OwnProblem(question=question, answer=answer)
