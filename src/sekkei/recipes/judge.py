"""Who is scored by the rubric at the end of a run, and by whom (judge/command.py)."""

from __future__ import annotations

from dataclasses import dataclass

from sekkei.core.errors import ConfigError


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
