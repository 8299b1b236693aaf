"""Who is scored by the rubric at the end of a run, and by whom (judge/command.py); judges whose verdict is a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sekkei.core.errors import ConfigError
from sekkei.objectives.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The scorecard.

    Args:
        stages: whose models answer. questions: about how many of each kind.
        judges: who judges what no program can, as `sekkei judge run --judge` names them; none: those rows stay empty.
        scored_by: the stage whose reward model scores the answers too.
    """

    stages: tuple[str, ...]
    questions: int = 24
    judges: tuple[str, ...] = ()
    scored_by: str | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("stages", "names no stage whose model is to be judged")
        if self.questions < 1:
            raise ConfigError("questions", f"got {self.questions}, must be >= 1")


@dataclass(frozen=True, kw_only=True)
class JudgeRewardConfig:
    """A judge's part of the reward in a tuning stage (judge/reward.py).

    Args:
        by: who reads, as `llm.open` knows it (https://HOST/v1#MODEL, env, cassette:PATH, runs/other#sft), or
            #STAGE: the model of an earlier stage of this run.
        weight: of its score, which is 0 to 1, in the reward.
        how: each answer by itself, or against others of its group. rubric: a file as judge/rubric.yaml; None: that one.
        opponents: of each answer in pairs, each met in both orders.
        concurrency: calls under way at once. max_tokens: of a reply.
    """

    by: str
    weight: float = 1.0
    how: Literal["rubric", "pairs"] = "rubric"
    rubric: str | None = None
    opponents: int = 2
    concurrency: int = 16
    max_tokens: int = 800

    def __post_init__(self) -> None:
        if not self.by or self.by == "#":
            raise ConfigError("by", f"got {self.by!r}: who judges? https://HOST/v1#MODEL, runs/other, or #STAGE")
        if self.weight <= 0:
            raise ConfigError("weight", f"got {self.weight}, must be > 0; leave the judge out instead")
        check_ranges(self, counts=("opponents", "concurrency", "max_tokens"))
        if self.rubric is not None and self.how == "pairs":
            raise ConfigError("rubric", "scores an answer by itself, and how is pairs; leave one of the two out")

    @property
    def stage(self) -> str | None:
        """The stage of this run that judges, if it is one."""
        return self.by.removeprefix("#") if self.by.startswith("#") else None
