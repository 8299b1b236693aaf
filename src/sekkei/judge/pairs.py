"""Pairwise judgements of many judges and candidates as flat arrays, the common ground of rankings and bias figures.

Where annotations.py arranges rows around one baseline, here every pair of candidates counts, and who judged it, and
which answer stood first. Rows come from the same files (annotations.py says how they look); a row whose reply could
not be read is counted and left out.

What it does not handle: judgements of more than two answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sekkei.core.errors import UserError
from sekkei.judge.annotations import Row

UNNAMED = "judge"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """N judgements.

    Attributes:
        judges, candidates, questions: names and texts that the numbers below point to.
        judge, first, second, question: [N] int64. first: the candidate whose answer stood first (output_1).
        length_first, length_second: [N] characters.
        outcome: [N] in [0, 1], preference for the first answer; 0.5 = tie.
        unparsed: rows that were left out.
    """

    judges: list[str]
    candidates: list[str]
    questions: list[str]
    judge: np.ndarray
    first: np.ndarray
    second: np.ndarray
    question: np.ndarray
    length_first: np.ndarray
    length_second: np.ndarray
    outcome: np.ndarray
    unparsed: int = 0

    def __len__(self) -> int:
        return len(self.outcome)

    def only(self, keep: np.ndarray) -> Pairs:
        """The judgements where `keep` [N] holds, with the same names and numbers."""
        columns = ("judge", "first", "second", "question", "length_first", "length_second", "outcome")
        kept = {name: getattr(self, name)[keep] for name in columns}
        return Pairs(
            judges=self.judges, candidates=self.candidates, questions=self.questions, unparsed=self.unparsed, **kept
        )

    def lean(self) -> np.ndarray:
        """[N] tanh of the length difference (first − second) over its root mean square, as in length_control.py.

        The root mean square and not the deviation: which answer stands first is chance, so the mean is 0.
        """
        gap = self.length_first - self.length_second
        scale = np.sqrt((gap**2).mean()) if len(gap) else 0.0
        return np.tanh(gap / scale) if scale > 0 else np.zeros_like(gap)


def to_pairs(rows: Sequence[Row], baseline: str | None = None) -> Pairs:
    """Rows as pairs; `baseline` names output_1 where generator_1 is missing.

    Raises:
        UserError: a row does not name both candidates, compares a candidate with itself, or nothing could be read.
    """
    read = [row for row in rows if row.preference == row.preference]
    if not read:
        raise UserError(f"none of {len(rows)} rows has a preference that could be read")
    names: list[tuple[str, str]] = []
    for row in read:
        first, second = row.names[0] or baseline, row.names[1]
        if first is None or second is None:
            missing = "generator_1" if first is None else "generator_2"
            raise UserError(f"{row.where}: {missing} is missing; name both models in every row, or give --baseline")
        if first == second:
            raise UserError(f"{row.where}: {first} is compared with itself; leave such rows out")
        names.append((first, second))
    judges = sorted({row.judge or UNNAMED for row in read})
    candidates = sorted({name for pair in names for name in pair})
    questions = list(dict.fromkeys(row.instruction for row in read))
    judge_of, candidate_of, question_of = (
        {name: number for number, name in enumerate(known)} for known in (judges, candidates, questions)
    )
    return Pairs(
        judges=judges,
        candidates=candidates,
        questions=questions,
        judge=np.array([judge_of[row.judge or UNNAMED] for row in read]),
        first=np.array([candidate_of[first] for first, _ in names]),
        second=np.array([candidate_of[second] for _, second in names]),
        question=np.array([question_of[row.instruction] for row in read]),
        length_first=np.array([row.lengths[0] for row in read], dtype=np.float64),
        length_second=np.array([row.lengths[1] for row in read], dtype=np.float64),
        outcome=np.array([2 - row.preference for row in read]),
        unparsed=len(rows) - len(read),
    )
