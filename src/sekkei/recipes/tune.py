"""What comes after pretraining: stages that tune a model, each from a model that stands already.

    sft, dpo, grpo                    the main line: each begins with the model of the one before
    tune: {NAME: {start: sft, ppo: …}}   more of them, beside it or upon it, in any number

So a recipe compares methods from one start (laptop-study), or does what no fixed line can (r1: cold start, RL, a fresh
SFT on what RL wrote, RL again). All draws follow from the stage's name: the same stage under two names is the
same experiment with two seeds. Not handled here: how a stage works (stages/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sekkei.core.errors import ConfigError
from sekkei.core.stage_names import KINDS
from sekkei.data.tasks.chain import Form
from sekkei.model.lora import LoRAConfig
from sekkei.objectives.grpo import GRPOConfig
from sekkei.objectives.kto import KTOConfig
from sekkei.objectives.online_dpo import OnlineDPOConfig
from sekkei.objectives.ppo import PPOConfig
from sekkei.objectives.preference import DPOConfig
from sekkei.objectives.ranges import check_ranges
from sekkei.objectives.reward import RewardConfig
from sekkei.objectives.sft import SFTConfig
from sekkei.recipes.judge import JudgeRewardConfig

BASE = "base"
ROLLOUTS = frozenset({"online_dpo", "ppo", "grpo"})


@dataclass(frozen=True, kw_only=True)
class RewardWeights:
    """What an answer's reward is made of, beside a reward model's score (reward_model, of the kind).

    Args:
        verifier: weight of 1 for a right answer, else 0. format: of 1 for a closed think block and an answer, else 0.
        length: of 0 up to `free_tokens`, from there down to -1 at max_tokens.
    """

    verifier: float = 1.0
    format: float = 0.0
    length: float = 0.0
    free_tokens: int = 64

    def __post_init__(self) -> None:
        check_ranges(self, not_negative=("verifier", "format", "length", "free_tokens"))


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """One tuning stage; exactly one of the kinds is given.

    Args:
        start: whose model it begins with: base (the last pretraining stage), pretrain.NAME, or an earlier tuning stage.
        form: how problems are put to the model: as turns of a chat, or as the beginning of a document of
            pretraining, which a base model goes on with (R1-Zero).
        scored_by: the stage whose reward model scores answers, where the kind's reward_model is not 0.
        rewards: what answers are rewarded for. judge: somebody who reads them, besides.
        path: problems of one's own in place of chains (stages/problems.py): in rollouts; of SFT at its gate and in
            rejection sampling (sft.own).
        lora: train an adapter alone; it is kept beside the model, which holds it folded in.
    """

    start: str
    form: Form = "chat"
    scored_by: str | None = None
    rewards: RewardWeights = field(default_factory=RewardWeights)
    judge: JudgeRewardConfig | None = None
    path: str | None = None
    lora: LoRAConfig | None = None
    sft: SFTConfig | None = None
    reward: RewardConfig | None = None
    dpo: DPOConfig | None = None
    kto: KTOConfig | None = None
    online_dpo: OnlineDPOConfig | None = None
    ppo: PPOConfig | None = None
    grpo: GRPOConfig | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ConfigError("", f"needs exactly one of {', '.join(KINDS)}; it has {', '.join(given) or 'none'}")
        if self.lora is not None and self.lora.rank < 1:
            raise ConfigError("lora.rank", f"got {self.lora.rank}, must be >= 1")
        scores = getattr(self.config, "reward_model", 0.0)
        if scores and self.scored_by is None:
            raise ConfigError("scored_by", f"{self.kind}.reward_model={scores} needs a stage of kind reward; name it")
        if self.scored_by is not None and not scores:
            raise ConfigError(f"{self.kind}.reward_model", f"is 0, but scored_by={self.scored_by}: set one of the two")
        self._check_answers(scores)

    def _check_answers(self, scores: float) -> None:
        """What only stages that sample answers may set, and what they may not set together."""
        if self.kind not in ROLLOUTS:
            own = self.path is not None and self.kind != "sft"  # SFT asks at its gate, and for sft.own
            for key, here in (("form", self.form != "chat"), ("rewards", self.rewards != RewardWeights()),
                              ("path", own), ("judge", self.judge is not None)):  # fmt: skip
                if here:
                    raise ConfigError(key, f"{self.kind} samples no answers")
            return
        if not self.rewards.verifier and not scores and self.judge is None:
            raise ConfigError(
                "rewards.verifier",
                f"got 0, and {self.kind}.reward_model is 0, and there is no judge: nothing says what is right",
            )
        if self.judge is not None and self.judge.how == "pairs" and self.config.samples < 2:
            raise ConfigError("judge.how", f"got pairs, but {self.kind}.samples=1: an answer has nobody to meet")
        if self.rewards.length and self.rewards.free_tokens >= self.config.max_tokens:
            most = f"{self.kind}.max_tokens={self.config.max_tokens}"
            raise ConfigError("rewards.free_tokens", f"got {self.rewards.free_tokens}, must be below {most}")
        tool = getattr(self.config, "tool", "none")
        own = self.path is not None or self.form != "chat" or self.rewards != RewardWeights() or self.judge is not None
        if tool != "none" and own:
            raise ConfigError(
                f"{self.kind}.tool", f"{tool} asks its own sums in turns: leave out path, form, rewards and judge"
            )

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def config(self) -> Any:
        """The settings of its kind."""
        return getattr(self, self.kind)


def main_line(parts: Mapping[str, Any]) -> dict[str, TuneConfig]:
    """sft, dpo and grpo, as far as they are given, each upon the one before."""
    found, newest = {}, BASE
    for kind, config in parts.items():
        if config is not None:
            found[kind] = TuneConfig(start=newest, **{kind: config})
            newest = kind
    return found


def check_line(stages: Mapping[str, TuneConfig], own: frozenset[str], pretrained: list[str]) -> None:
    """Refuse tuning stages that cannot begin.

    Args:
        stages: all, in order. own: names from `tune`. pretrained: names of pretraining stages.
    Raises:
        ConfigError
    """
    models, rewards = {BASE, *(f"pretrain.{name}" for name in pretrained)}, set[str]()
    for name, stage in stages.items():
        key = f"tune.{name}" if name in own else name
        if stage.start not in models:
            raise ConfigError(f"{key}.start", f"got {stage.start!r}, must be one of {', '.join(sorted(models))}")
        if stage.scored_by is not None and stage.scored_by not in rewards:
            known = ", ".join(sorted(rewards)) or "none yet"
            raise ConfigError(f"{key}.scored_by", f"got {stage.scored_by!r}; stages of kind reward before it: {known}")
        if stage.judge is not None and stage.judge.stage not in (None, *(models - {BASE})):
            known = ", ".join(sorted(models - {BASE})) or "none yet"
            raise ConfigError(f"{key}.judge.by", f"got {stage.judge.by!r}; stages with a model before it: {known}")
        source = getattr(stage.config, "own", None)
        if source is not None and source.stage not in models - {BASE}:
            raise ConfigError(f"{key}.sft.own.stage", f"got {source.stage!r}, must be an earlier stage with a model")
        (rewards if stage.kind == "reward" else models).add(name)
