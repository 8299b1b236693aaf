"""One model's scores by a rubric, from whoever could give them: programs first, then judges, else nobody.

    criterion of an answer = what a program has found out ("verified" in its row), times the scale's end
                           = else the mean of the judges that could be read
                           = else nothing: it "needs an external judge"
    total of an answer     = the weighted sum, where every criterion has a value

What a program knows is no matter of opinion, so it stands in place of the judges' scores. A criterion's figure is the
mean over answers that have one, with an interval by resampling them. A reward model has a row of its own: its scale
has neither ends nor a zero, so its scores are not part of any criterion or total.

What it does not handle: weights of judges (jury.py learns those from anchors, for pairs).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sekkei.judge.candidates import Candidate
from sekkei.judge.intervals import Estimate, bootstrap
from sekkei.judge.rubric import Rubric, Scored

NOTHING = Estimate(value=math.nan, se=math.nan, low=math.nan, high=math.nan)
NO_GRADE = "–"
NEEDS_JUDGE = (
    "needs an external judge: --judge https://HOST/v1#MODEL (key in SEKKEI_LLM_KEY), a model stronger than these"
)
Read = Sequence[tuple[int, str, Scored | None]]  # (judge by place, instruction, its scores or None: unparsed)


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """One model's scores.

    Attributes:
        criteria: by key, NaN where nobody could give a score. sources: by key, answers scored by "programs", "judges".
        total: over answers whose criteria are all there, NaN where there are none. grade: of the mean total, or "–".
        answers: how many have any score. unparsed: replies that could not be read. by_judge: mean total by judge.
        own: judges of the model's family. without_own: total without those judges, None where there are none or no
            others. rewards: mean score of each reward model.
    """

    name: str
    criteria: dict[str, Estimate]
    sources: dict[str, dict[str, int]]
    total: Estimate
    grade: str
    answers: int
    unparsed: int
    by_judge: dict[str, float]
    own: list[str]
    without_own: Estimate | None
    rewards: dict[str, Estimate]

    @property
    def missing(self) -> list[str]:
        """Criteria that need an external judge."""
        return [key for key, estimate in self.criteria.items() if not math.isfinite(estimate.value)]

    def as_json(self) -> dict[str, Any]:
        return {
            "criteria": {key: estimate.as_json() for key, estimate in self.criteria.items()},
            "scored_by": self.sources,
            "needs_an_external_judge": self.missing,
            "total": self.total.as_json(),
            "grade": self.grade,
            "answers": self.answers,
            "unparsed": self.unparsed,
            "by_judge": {name: round(total, 6) for name, total in self.by_judge.items()},
            "judges_of_own_family": self.own,
            "total_without_own_family": self.without_own.as_json() if self.without_own else None,
            "rewards": {name: estimate.as_json() for name, estimate in self.rewards.items()},
        }


def scorecard(
    candidate: Candidate,
    read: Read,
    rubric: Rubric,
    judges: Sequence[str],
    own: Sequence[int],
    rewards: Mapping[str, Mapping[str, float]],
    draws: int = 1000,
) -> Scorecard:
    """What all that is known about one model's answers adds up to.

    Args:
        judges: their names. own: places of those of the candidate's family.
        rewards: by reward model's name, score by instruction.
    """
    values, sources = _values(candidate, read, rubric)
    scored = [(j, found) for j, _, found in read if found is not None]
    total = _mean(_totals(values, rubric), draws)
    here = [j for j in own if any(j == k for k, _ in scored)]
    others = [(j, asked, found) for j, asked, found in read if j not in here]
    without = _totals(_values(candidate, others, rubric)[0], rubric) if here else {}
    return Scorecard(
        name=candidate.name,
        criteria={key: _mean(found, draws) for key, found in values.items()},
        sources=sources,
        total=total,
        grade=rubric.grade(total.value) if math.isfinite(total.value) else NO_GRADE,
        answers=len({asked for found in values.values() for asked in found}),
        unparsed=len(read) - len(scored),
        by_judge={
            judges[j]: float(np.mean([found.total for k, found in scored if k == j]))
            for j in sorted({j for j, _ in scored})
        },
        own=[judges[j] for j in here],
        without_own=_mean(without, draws) if without else None,
        rewards={name: _mean(found, draws) for name, found in rewards.items()},
    )


def figures(cards: Sequence[Scorecard], prefix: str = "judge") -> dict[str, float]:
    """Flat figures for results.json: {prefix}.{model}.{criterion | total | reward}, with .low and .high; what nobody
    could score is left out.
    """
    found: dict[str, float] = {}
    for card in cards:
        rows = {**card.criteria, "total": card.total} | {_plain(name): value for name, value in card.rewards.items()}
        for key, estimate in rows.items():
            if math.isfinite(estimate.value):
                for ending, value in (("", estimate.value), (".low", estimate.low), (".high", estimate.high)):
                    if math.isfinite(value):
                        found[f"{prefix}.{card.name}.{key}{ending}"] = float(value)
    return found


def _plain(name: str) -> str:
    """A reward model's name ("laptop:reward") without its run, which may be called anything."""
    return name.rpartition(":")[2]


def _values(
    candidate: Candidate, read: Read, rubric: Rubric
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """(by criterion and instruction the score, by criterion how many came from programs and from judges)."""
    values: dict[str, dict[str, float]] = {}
    sources: dict[str, dict[str, int]] = {}
    for key in (criterion.key for criterion in rubric.criteria):
        opinions: dict[str, list[float]] = {}
        for _, asked, found in read:
            if found is not None:
                opinions.setdefault(asked, []).append(found.scores[key])
        known = {asked: rubric.maximum * found[key] for asked, found in candidate.verified.items() if key in found}
        values[key] = {asked: float(np.mean(scores)) for asked, scores in opinions.items()} | known
        sources[key] = {"programs": len(known), "judges": len(opinions.keys() - known.keys())}
    return values, sources


def _totals(values: Mapping[str, Mapping[str, float]], rubric: Rubric) -> dict[str, float]:
    """By instruction, the weighted sum where all criteria have a value."""
    complete = set.intersection(*(set(found) for found in values.values()))
    first = values[rubric.criteria[0].key]
    return {
        asked: rubric.total({key: found[asked] for key, found in values.items()})
        for asked in first
        if asked in complete
    }


def _mean(values: Mapping[str, float], draws: int) -> Estimate:
    """Mean over answers, answers resampled."""
    if not values:
        return NOTHING
    items = np.array(list(values.values()))
    return bootstrap(lambda weights: float(weights @ items / weights.sum()), len(items), draws)
