"""What is spent at inference time, and on what: strategies (prompting/study.py) and thinking (evals/budget.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from sekkei.core.errors import ConfigError
from sekkei.evals.budget import BudgetConfig
from sekkei.prompting.study import StudyConfig


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """What one finished model is asked.

    Args:
        study: every strategy; null: none. budget: accuracy against thinking that is stopped or made to go on.
        scored_by: the stage whose reward model chooses in the study's best-of-n; null: likelihood alone does.
    """

    scored_by: str | None = None
    study: StudyConfig | None = field(default_factory=StudyConfig)
    budget: BudgetConfig | None = None

    def __post_init__(self) -> None:
        if self.study is None and self.budget is None:
            raise ConfigError("study", "is null, and so is budget: nothing is left to ask")
        if self.study is None and self.scored_by is not None:
            raise ConfigError("scored_by", f"got {self.scored_by!r}, but study is null: nothing is chosen")
