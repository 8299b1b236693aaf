"""Which stages a run's recipe.yaml has after pretraining, for everyone who only reads a run's folder.

    sft, dpo, grpo        the main line, as far as it is there
    tune: {NAME: {…}}     further tuning stages (recipes/tune.py), in order

It takes the recipe as plain values: whoever shows or serves a run needs none of the classes that made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAIN_LINE = ("sft", "dpo", "grpo")
PAIRED = frozenset({"reward", "dpo", "kto"})  # learn from the stage preferences
KINDS = ("sft", "reward", "dpo", "kto", "online_dpo", "ppo", "grpo")


def tuning_stages(recipe: Mapping[str, Any]) -> list[str]:
    """All tuning stages in order."""
    return [*(name for name in MAIN_LINE if recipe.get(name) is not None), *(recipe.get("tune") or {})]


def kind_of(recipe: Mapping[str, Any], stage: str) -> str:
    """How a tuning stage learns; "" for any other stage."""
    if stage in MAIN_LINE:
        return stage
    own = (recipe.get("tune") or {}).get(stage) or {}
    return next((kind for kind in KINDS if own.get(kind) is not None), "")


def settings_of(recipe: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The settings of a tuning stage's kind."""
    own = recipe if stage in MAIN_LINE else (recipe.get("tune") or {}).get(stage) or {}
    return own.get(kind_of(recipe, stage)) or {}


def answering_stages(recipe: Mapping[str, Any]) -> list[str]:
    """Stages whose model writes answers, the one to take first at the head: the main line from its end, then further
    tuning stages from the last one, then pretraining stages, then the checkpoint that it began with.
    """
    tuned = [name for name in tuning_stages(recipe) if kind_of(recipe, name) != "reward"]
    main = [name for name in tuned if name in MAIN_LINE]
    further = [name for name in tuned if name not in MAIN_LINE]
    pretrained = [f"pretrain.{key}" for key in recipe.get("pretrain") or {}]
    taken_in = ["imported"] if recipe.get("imported") else []
    return [*reversed(main), *reversed(further), *reversed(pretrained), *taken_in]


def chats(recipe: Mapping[str, Any], stage: str) -> bool:
    """Whether a stage's model answers in turns; others go on with a text."""
    own = (recipe.get("tune") or {}).get(stage) or {}
    return kind_of(recipe, stage) not in ("", "reward") and own.get("form", "chat") == "chat"
