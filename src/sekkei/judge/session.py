"""One judging of several models' answers by several judges: what is asked, and what the replies add up to.

    candidates × judges ──plan──> requests ──runner.ask──> ledger ──> scorecards, annotations
    candidates × reward models ─────────────score─────────────────────────^

Rubric: every answer to every judge. Pairs: every two answers to one instruction, in both orders, to every judge. Both
are read from the ledger again and again, so a report costs nothing once it is paid. Verdicts come out as rows of
AlpacaEval's format (annotations.py), so every other figure of this folder works on them, and on other people's.

A reward model is a judge too: it scores each answer once, and of two answers it prefers the first with the chance
sigmoid(r_1 − r_2) (Bradley & Terry 1952, as it was trained). Its verdicts stand in both orders like everybody's, though
it never sees an order. Its scores are computed anew each time and are not in the ledger.

A judge of a candidate's own family is marked in all figures; with `leave_out_own` its judgements of that family are
not even asked for.

What it does not handle: designs that judge only a part of all pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sekkei.judge.bias import family_of
from sekkei.judge.candidates import Candidate, shared_instructions
from sekkei.judge.ledger import Ledger
from sekkei.judge.pairwise import SCHEMA, pair_messages, read_preference
from sekkei.judge.rubric import Rubric, Scored, read_scores
from sekkei.judge.runner import Request, request
from sekkei.judge.scorecard import Scorecard, scorecard
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Message, Reply, Settings, user

JUDGING = Settings(temperature=0.0, max_tokens=800)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request and what it is about: one answer (second is None) or two, candidates by place."""

    request: Request
    instruction: str
    first: int
    second: int | None


class Scores(Protocol):
    """A judge that gives an answer a number, as `llm.reward.RewardModel` does; only differences mean something."""

    @property
    def name(self) -> str: ...

    def score(self, answers: Sequence[tuple[Sequence[Message], Reply]]) -> list[float]:
        """One number per (messages up to the answer, answer), in order."""
        ...


class Session:
    """Candidates and judges, named.

    Args:
        families: prefix of a name -> family, see `bias.family_of`. leave_out_own: see the header.
        scorers: reward models; `names` and `judge_family` hold them behind the judges.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        judges: Sequence[LLM],
        families: Mapping[str, str] | None = None,
        leave_out_own: bool = False,
        scorers: Sequence[Scores] = (),
    ) -> None:
        self.candidates, self.judges, self.leave_out_own = list(candidates), list(judges), leave_out_own
        self.scorers = list(scorers)
        self.names = [judge.name.rpartition("#")[2] or judge.name for judge in judges]
        self.names += [scorer.name for scorer in scorers]
        self._rewards: list[dict[str, dict[str, float]]] | None = None
        self.judge_family = [family_of(name, families) for name in self.names]
        self.candidate_family = [family_of(candidate.name, families) for candidate in candidates]

    def own(self, judge: int, candidate: int) -> bool:
        """Whether judge and candidate are of one family."""
        return self.judge_family[judge] == self.candidate_family[candidate]

    def own_pairs(self) -> list[tuple[str, str]]:
        """(judge, candidate) of one family, by name."""
        return [
            (self.names[j], self.candidates[c].name)
            for j in range(len(self.names))
            for c in range(len(self.candidates))
            if self.own(j, c)
        ]

    def rewards(self) -> list[dict[str, dict[str, float]]]:
        """Per candidate: by reward model's name, the score of its answer to each instruction.

        Raises:
            UserError: an answer is longer than a reward model's context.
        """
        if self._rewards is None:
            self._rewards = [{} for _ in self.candidates]
            for (j, scorer), (c, one) in itertools.product(
                enumerate(self.scorers, start=len(self.judges)), enumerate(self.candidates)
            ):
                if self.leave_out_own and self.own(j, c):
                    continue
                said = [
                    (
                        [user(asked)],
                        Reply(text=text, finish_reason="length" if one.reasons[asked] == "length" else "stop"),
                    )
                    for asked, text in one.answers.items()
                ]
                self._rewards[c][scorer.name] = dict(zip(one.answers, scorer.score(said), strict=True))
        return self._rewards

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
            if one.second is not None and one.request.key in ledger.replies:
                verdict = read_preference(ledger.replies[one.request.key][0])
                rows.append(self._row(one.instruction, one.first, one.second, one.request.judge, *verdict))
        rewards, instructions = self.rewards(), shared_instructions(self.candidates)
        for (j, scorer), (a, b) in itertools.product(
            enumerate(self.scorers, start=len(self.judges)), itertools.permutations(range(len(self.candidates)), 2)
        ):
            if scorer.name in rewards[a] and scorer.name in rewards[b]:
                for instruction in instructions:
                    first, second = (rewards[c][scorer.name][instruction] for c in (a, b))
                    preference = round(2 - 0.5 * (1 + math.tanh((first - second) / 2)), 6)
                    rows.append(self._row(instruction, a, b, j, preference, f"rewards {first:.3f} and {second:.3f}"))
        return rows

    def _row(
        self, instruction: str, first: int, second: int, judge: int, preference: float | None, note: str
    ) -> dict[str, Any]:
        a, b = self.candidates[first], self.candidates[second]
        return {
            "instruction": instruction,
            "output_1": a.answers[instruction],
            "output_2": b.answers[instruction],
            "generator_1": a.name,
            "generator_2": b.name,
            "annotator": self.names[judge],
            "preference": preference,
            "note": note,
        }

    def scorecards(self, asked: Sequence[Asked], ledger: Ledger, rubric: Rubric, draws: int = 1000) -> list[Scorecard]:
        """One card per candidate that has any score, best total first (best reward where there are no totals)."""
        read: list[list[tuple[int, str, Scored | None]]] = [[] for _ in self.candidates]
        for one in asked:
            if one.second is None and one.request.key in ledger.replies:
                scored = read_scores(ledger.replies[one.request.key][0], rubric)
                read[one.first].append((one.request.judge, one.instruction, scored))
        cards = [
            scorecard(
                candidate,
                read[c],
                rubric,
                self.names,
                [j for j in range(len(self.judges)) if self.own(j, c)],
                rewards,
                draws,
            )
            for c, (candidate, rewards) in enumerate(zip(self.candidates, self.rewards()))
        ]
        cards = [card for card in cards if card.answers or card.rewards]
        return sorted(cards, key=lambda card: (-_rank(card), card.name))


def _rank(card: Scorecard) -> float:
    best = [card.total.value, *(reward.value for reward in card.rewards.values())]
    return next((value for value in best if math.isfinite(value)), -math.inf)


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
