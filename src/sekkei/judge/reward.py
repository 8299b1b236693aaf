"""A judge as a reward: it reads answers, by a rubric or against others of their group, and its verdict is a number.

    rubric   question, answer           ─► scores by criterion (rubric.py) ─► total / points           0 … 1
    pairs    question, answer, another  ─► A, B or tie, in both orders (pairwise.py) ─► share of wins   0 … 1
             answer i meets i + 1 … i + `opponents`, round a ring: 2 · opponents · samples calls a group at most

    not ended, or empty        nobody is asked: 0, a lost comparison (between two of them, a tie)
    equal answers of a group   one call (rubric), a tie without a call (pairs)
    a reply that no one can    the answer has no score: UNREAD. Of a pair both orders are left out then, since one alone
      read without guessing    holds the judge's pull to the first place; an answer is unread when no pair is left,
                               and so is one that is alone in its group
    a call fails, retried      the answer has no score, with the reason (objectives/judged.py says what follows)
    a budget is spent, or the  the run stops
      first 20 calls all fail

Calls go out at once, up to `concurrency`, and every reply is kept in a ledger under the hash of judge, question and
settings: what a stage that was cut off has paid for is read again, not asked again, so it goes on to the same bits.
Judges are asked at temperature 0. Counts: asked (different questions), unread and failed of them, tokens (of both
sides; what the ledger holds counts as when it was paid).

What it does not handle: several judges at once (a jury), expected scores over token probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sekkei.core.errors import UserError
from sekkei.judge.ledger import Ledger
from sekkei.judge.pairwise import SCHEMA, pair_messages, read_preference
from sekkei.judge.rubric import Rubric, read_scores
from sekkei.judge.runner import Outcome, Request, ask, request
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings
from sekkei.objectives.judged import UNREAD, Asked, Verdict

LOST = 0.0  # the score of an answer that nobody has to read
How = Literal["rubric", "pairs"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How answers are read.

    Args:
        how: each by itself, or against others. rubric: what an answer alone is scored by.
        opponents: of each answer in pairs. concurrency: calls under way at once. max_tokens: of a reply.
    """

    how: How
    rubric: Rubric
    opponents: int = 2
    concurrency: int = 16
    max_tokens: int = 800


class JudgeReward:
    """A judge that keeps what it said; a context manager that holds the ledger's folder.

    Args:
        llm: who reads. folder: of the ledger.
    """

    def __init__(self, llm: LLM, reading: Reading, folder: Path) -> None:
        self.llm, self.reading, self.ledger = llm, reading, Ledger(folder)
        self._settings = Settings(temperature=0.0, max_tokens=reading.max_tokens)

    def __enter__(self) -> Self:
        self.ledger.folder.mkdir(parents=True, exist_ok=True)
        self.ledger.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ledger.__exit__(kind, error, trace)
        self.llm.close()

    def grade(self, asked: Asked) -> tuple[list[list[Verdict]], dict[str, int]]:
        """A verdict for every answer of every group, and counts; see `objectives.judged.Grade`.

        Raises:
            UserError: the judge cannot be asked at all, or its budget is spent.
        """
        group = self._alone if self.reading.how == "rubric" else self._compared
        questions = [one for question, answers in asked for one in group(question, answers).values()]
        outcome = ask([self.llm], questions, self.ledger, self.reading.concurrency)
        if outcome.stopped:
            raise UserError(f"the judge {self.llm.name} cannot go on: {outcome.stopped}")
        read = self._score if self.reading.how == "rubric" else self._wins
        verdicts = [read(answers, group(question, answers), outcome) for question, answers in asked]
        return verdicts, self._counted(questions)

    def _alone(self, question: str, answers: Sequence[str | None]) -> dict[tuple[int, ...], Request]:
        """By an answer's place: the question about it."""
        rubric = self.reading.rubric
        shape = rubric.schema()
        return {
            (i,): request(0, self.llm, rubric.messages(question, answer), self._settings, shape)
            for i, answer in enumerate(answers)
            if answer is not None
        }

    def _compared(self, question: str, answers: Sequence[str | None]) -> dict[tuple[int, ...], Request]:
        """By the places of the answers shown first and second: the question about them."""
        return {
            (i, j): request(0, self.llm, pair_messages(question, a, b), self._settings, SCHEMA)
            for pair in ring(len(answers), self.reading.opponents)
            for i, j in (pair, pair[::-1])
            if (a := answers[i]) is not None and (b := answers[j]) is not None and a != b
        }

    def _score(
        self, answers: Sequence[str | None], asked: Mapping[tuple[int, ...], Request], outcome: Outcome
    ) -> list[Verdict]:
        found = []
        for i, answer in enumerate(answers):
            if answer is None:
                found.append(Verdict(LOST))
            elif (reply := self._reply(asked[i,])) is None:
                found.append(Verdict(None, _why(outcome)))
            else:
                scored = read_scores(reply, self.reading.rubric)
                found.append(Verdict(None, UNREAD) if scored is None else Verdict(scored.total / self._points))
        return found

    def _wins(
        self, answers: Sequence[str | None], asked: Mapping[tuple[int, ...], Request], outcome: Outcome
    ) -> list[Verdict]:
        wins: list[list[float]] = [[] for _ in answers]
        why = [UNREAD] * len(answers)
        for i, j in ring(len(answers), self.reading.opponents):
            met = self._met(answers, i, j, asked, outcome)
            if met.score is not None:
                wins[i].append(met.score)
                wins[j].append(1 - met.score)
            elif met.why != UNREAD:
                why[i] = why[j] = met.why
        return [Verdict(sum(w) / len(w)) if w else Verdict(None, reason) for w, reason in zip(wins, why, strict=True)]

    def _met(
        self,
        answers: Sequence[str | None],
        i: int,
        j: int,
        asked: Mapping[tuple[int, ...], Request],
        outcome: Outcome,
    ) -> Verdict:
        """How much of a comparison answer i has won: the mean of both orders."""
        if answers[i] == answers[j]:
            return Verdict(0.5)
        if answers[i] is None or answers[j] is None:
            return Verdict(float(answers[j] is None))
        first, second = self._reply(asked[i, j]), self._reply(asked[j, i])
        if first is None or second is None:
            return Verdict(None, _why(outcome))
        for_i, for_j = read_preference(first)[0], read_preference(second)[0]
        if for_i is None or for_j is None:
            return Verdict(None, UNREAD)
        return Verdict(((2 - for_i) + (for_j - 1)) / 2)  # 1 = the one shown first is better, 2 = the other

    @property
    def _points(self) -> float:
        return self.reading.rubric.points

    def _reply(self, one: Request) -> str | None:
        found = self.ledger.replies.get(one.key)
        return None if found is None else found[0]

    def _counted(self, questions: Sequence[Request]) -> dict[str, int]:
        keys = list(dict.fromkeys(one.key for one in questions))
        there = [self.ledger.replies[key] for key in keys if key in self.ledger.replies]
        unread = sum(not self._readable(text) for text, _ in there)
        tokens = sum(usage.total_tokens for _, usage in there)
        return {"asked": len(keys), "unread": unread, "failed": len(keys) - len(there), "tokens": tokens}

    def _readable(self, reply: str) -> bool:
        if self.reading.how == "pairs":
            return read_preference(reply)[0] is not None
        return read_scores(reply, self.reading.rubric) is not None


def ring(count: int, opponents: int) -> list[tuple[int, int]]:
    """Pairs of places, each once: every place with the next `opponents` ones round a ring."""
    found: dict[frozenset[int], tuple[int, int]] = {}
    for step in range(1, opponents + 1):
        for i in range(count):
            j = (i + step) % count
            if i != j:
                found.setdefault(frozenset((i, j)), (i, j))
    return list(found.values())


def _why(outcome: Outcome) -> str:
    """In words, why calls of this round have no reply."""
    return outcome.failures[0] if outcome.failures else "no reply"
