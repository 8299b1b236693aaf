"""One judging of several models' answers by several judges: what is asked, and what the replies add up to.

    candidates × judges ──plan──> requests ──runner.ask──> ledger ──> scorecards, annotations

Rubric: every answer to every judge. Pairs: every two answers to one instruction, in both orders, to every judge. Both
are read from the ledger again and again, so a report costs nothing once it is paid. Verdicts come out as rows of
AlpacaEval's format (annotations.py), so every other figure of this folder works on them, and on other people's.

A judge of a candidate's own family is marked in all figures; with `leave_out_own` its judgements of that family are
not even asked for.

What it does not handle: designs that judge only a part of all pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sekkei.judge.bias import family_of
from sekkei.judge.candidates import Candidate, shared_instructions
from sekkei.judge.intervals import Estimate, bootstrap
from sekkei.judge.ledger import Ledger
from sekkei.judge.pairwise import SCHEMA, pair_messages, read_preference
from sekkei.judge.rubric import Rubric, Scored, read_scores
from sekkei.judge.runner import Request, request
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings

JUDGING = Settings(temperature=0.0, max_tokens=800)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request and what it is about: one answer (second is None) or two, candidates by place."""

    request: Request
    instruction: str
    first: int
    second: int | None


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """One model's scores. A criterion's mean is over its answers, each the mean of its judges.

    Attributes:
        criteria: by key. total: weighted sum. grade: of the mean total. answers: how many have a score.
        unparsed: replies that could not be read. by_judge: mean total by judge. own: judges of the model's family.
        without_own: total without those judges, None where there are none or no others.
    """

    name: str
    criteria: dict[str, Estimate]
    total: Estimate
    grade: str
    answers: int
    unparsed: int
    by_judge: dict[str, float]
    own: list[str]
    without_own: Estimate | None

    def as_json(self) -> dict[str, Any]:
        return {
            "criteria": {key: estimate.as_json() for key, estimate in self.criteria.items()},
            "total": self.total.as_json(),
            "grade": self.grade,
            "answers": self.answers,
            "unparsed": self.unparsed,
            "by_judge": {name: round(total, 6) for name, total in self.by_judge.items()},
            "judges_of_own_family": self.own,
            "total_without_own_family": self.without_own.as_json() if self.without_own else None,
        }


class Session:
    """Candidates and judges, named.

    Args:
        families: prefix of a name -> family, see `bias.family_of`. leave_out_own: see the header.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        judges: Sequence[LLM],
        families: Mapping[str, str] | None = None,
        leave_out_own: bool = False,
    ) -> None:
        self.candidates, self.judges, self.leave_out_own = list(candidates), list(judges), leave_out_own
        self.names = [judge.name.rpartition("#")[2] or judge.name for judge in judges]
        self.judge_family = [family_of(name, families) for name in self.names]
        self.candidate_family = [family_of(candidate.name, families) for candidate in candidates]

    def own(self, judge: int, candidate: int) -> bool:
        """Whether judge and candidate are of one family."""
        return self.judge_family[judge] == self.candidate_family[candidate]

    def own_pairs(self) -> list[tuple[str, str]]:
        """(judge, candidate) of one family, by name."""
        return [
            (self.names[j], self.candidates[c].name)
            for j in range(len(self.judges))
            for c in range(len(self.candidates))
            if self.own(j, c)
        ]

    def rubric_requests(self, rubric: Rubric, settings: Settings = JUDGING) -> list[Asked]:
        """Every answer to every judge."""
        shape = rubric.schema()
        return [
            Asked(
                request=request(j, llm, rubric.messages(asked, answer), settings, shape),
                instruction=asked,
                first=c,
                second=None,
            )
            for j, llm in enumerate(self.judges)
            for c, candidate in enumerate(self.candidates)
            if not (self.leave_out_own and self.own(j, c))
            for asked, answer in candidate.answers.items()
        ]

    def pair_requests(self, settings: Settings = JUDGING) -> list[Asked]:
        """Every two answers to one instruction, in both orders, to every judge."""
        found = []
        instructions = shared_instructions(self.candidates)
        for (j, llm), (a, b) in itertools.product(
            enumerate(self.judges), itertools.permutations(range(len(self.candidates)), 2)
        ):
            if self.leave_out_own and (self.own(j, a) or self.own(j, b)):
                continue
            first, second = self.candidates[a].answers, self.candidates[b].answers
            for asked in instructions:
                messages = pair_messages(asked, first[asked], second[asked])
                found.append(
                    Asked(request=request(j, llm, messages, settings, SCHEMA), instruction=asked, first=a, second=b)
                )
        return found

    def annotations(self, asked: Sequence[Asked], ledger: Ledger) -> list[dict[str, Any]]:
        """Verdicts as rows of AlpacaEval's format; an unparsable reply has the preference null."""
        rows = []
        for one in asked:
            if one.second is None or one.request.key not in ledger.replies:
                continue
            preference, note = read_preference(ledger.replies[one.request.key][0])
            first, second = self.candidates[one.first], self.candidates[one.second]
            rows.append(
                {
                    "instruction": one.instruction,
                    "output_1": first.answers[one.instruction],
                    "output_2": second.answers[one.instruction],
                    "generator_1": first.name,
                    "generator_2": second.name,
                    "annotator": self.names[one.request.judge],
                    "preference": preference,
                    "note": note,
                }
            )
        return rows

    def scorecards(self, asked: Sequence[Asked], ledger: Ledger, rubric: Rubric, draws: int = 1000) -> list[Scorecard]:
        """One card per candidate that has a score, best total first."""
        read: list[list[tuple[int, str, Scored | None]]] = [[] for _ in self.candidates]
        for one in asked:
            if one.second is None and one.request.key in ledger.replies:
                scored = read_scores(ledger.replies[one.request.key][0], rubric)
                read[one.first].append((one.request.judge, one.instruction, scored))
        cards = [self._card(c, found, rubric, draws) for c, found in enumerate(read) if any(s for _, _, s in found)]
        return sorted(cards, key=lambda card: (-card.total.value, card.name))

    def _card(
        self, candidate: int, read: list[tuple[int, str, Scored | None]], rubric: Rubric, draws: int
    ) -> Scorecard:
        scored = [(j, asked, found) for j, asked, found in read if found is not None]
        own = [j for j in range(len(self.judges)) if self.own(j, candidate) and any(j == k for k, _, _ in scored)]
        others = [(asked, found) for j, asked, found in scored if j not in own]
        everything = [(asked, found) for _, asked, found in scored]
        total = _mean_by_item([(asked, found.total) for asked, found in everything], draws)
        by_judge = {
            self.names[j]: float(np.mean([found.total for k, _, found in scored if k == j]))
            for j in sorted({j for j, _, _ in scored})
        }
        return Scorecard(
            name=self.candidates[candidate].name,
            criteria={
                criterion.key: _mean_by_item([(a, found.scores[criterion.key]) for a, found in everything], draws)
                for criterion in rubric.criteria
            },
            total=total,
            grade=rubric.grade(total.value),
            answers=len({asked for asked, _ in everything}),
            unparsed=len(read) - len(scored),
            by_judge=by_judge,
            own=[self.names[j] for j in own],
            without_own=_mean_by_item([(a, found.total) for a, found in others], draws) if own and others else None,
        )


def disputed(rows: Sequence[Mapping[str, Any]], count: int = 10) -> list[dict[str, Any]]:
    """The pairs of answers on which verdicts (judges and orders) differ most, with all of these verdicts."""
    pairs: dict[tuple[str, str, str], list[tuple[float, Mapping[str, Any]]]] = {}
    for row in rows:
        if row["preference"] is None:
            continue
        low, high = sorted((row["generator_1"], row["generator_2"]))
        for_low = 2 - row["preference"] if row["generator_1"] == low else row["preference"] - 1
        pairs.setdefault((row["instruction"], low, high), []).append((for_low, row))
    spread = {key: float(np.std([share for share, _ in found])) for key, found in pairs.items() if len(found) > 1}
    most = sorted((key for key, value in spread.items() if value > 0), key=lambda key: (-spread[key], key))[:count]
    return [
        {
            "instruction": key[0],
            "names": key[1:],
            "outputs": _outputs(pairs[key][0][1], key[1]),
            "verdicts": [
                (row["annotator"], row["generator_1"], share, row.get("note", "")) for share, row in pairs[key]
            ],
        }
        for key in most
    ]


def _outputs(row: Mapping[str, Any], low: str) -> tuple[str, str]:
    outputs = (row["output_1"], row["output_2"])
    return outputs if row["generator_1"] == low else outputs[::-1]


def _mean_by_item(values: Sequence[tuple[str, float]], draws: int) -> Estimate:
    """Mean over items of the mean over judges, items resampled."""
    by_item: dict[str, list[float]] = {}
    for asked, value in values:
        by_item.setdefault(asked, []).append(value)
    means = np.array([np.mean(found) for found in by_item.values()])
    if not len(means):
        return Estimate(value=math.nan, se=math.nan, low=math.nan, high=math.nan)
    return bootstrap(lambda weights: float(weights @ means / weights.sum()), len(means), draws)
