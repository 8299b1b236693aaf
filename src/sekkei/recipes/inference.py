"""What is spent at inference time, and on what: a study of strategies on one finished model (prompting/study.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from sekkei.prompting.study import StudyConfig


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """A study. scored_by: the stage whose reward model chooses in best-of-n; null: likelihood alone does."""

    scored_by: str | None = None
    study: StudyConfig = field(default_factory=StudyConfig)
