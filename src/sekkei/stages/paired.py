"""Stages that learn from the pairs of the stage `preferences`: DPO and its relatives, KTO, and the reward model.

    dpo      from a better and a worse answer; the start is the reference
    kto      from single answers: every better one is liked, every worse one is not
    reward   a scalar head on the start's trunk learns which of two is better; it answers nothing, it scores

The held-out pairs say what was learned: preference_accuracy for a policy, accuracy and calibration for a reward model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.hardware import fast_dtype
from sekkei.model.heads import with_heads
from sekkei.objectives.kto import KTO, Feedback
from sekkei.objectives.preference import (
    Pair,
    Preference,
    pair_batches,
    preference_accuracy,
    reference_logprobs,
    with_reference,
)
from sekkei.objectives.reward import RewardModelling, calibration, pair_gaps
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import TuneConfig
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.preferences import read_margins, read_pairs
from sekkei.stages.run import Figures, Run
from sekkei.stages.training import Training

CONTEXT = 256  # tokens per row, for the FLOPs shown
REFS = "checkpoints/refs.json"


@dataclass(frozen=True)
class PairedStage:
    """A tuning stage of kind dpo, kto or reward."""

    recipe: Recipe
    name: str
    version: int = 2
    together: bool = True

    @property
    def tune(self) -> TuneConfig:
        return self.recipe.tuning[self.name]

    @property
    def start(self) -> str:
        return self.recipe.stage_of(self.tune.start)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("preferences", self.start)

    @property
    def config(self) -> Any:
        return {self.tune.kind: self.tune.config, "lora": self.tune.lora}

    def run(self, run: Run, out: Path) -> Figures:
        pairs = read_pairs(run.artifact("preferences"), getattr(self.tune.config, "unmatched", False))
        work = {"dpo": self._dpo, "kto": self._kto, "reward": self._reward}[self.tune.kind]
        return {f"{self.name}.{name}": value for name, value in work(run, out, pairs).items()}

    def _dpo(self, run: Run, out: Path, pairs: Mapping[str, list[Pair]]) -> Figures:
        config, longest = self.tune.config, self.recipe.model.max_context
        training = self._training(run, reference=True)
        held_out = with_reference(pair_batches(pairs["test"], config.micro_tokens), training.ctx)
        start = preference_accuracy(held_out, training.ctx)
        refs = None
        if config.make_loss().needs_reference:
            weights = (
                f"{atomic.sha256(run.artifact(self.start) / 'model')} {fast_dtype(run.device)} {config.loop.dtype}"
            )
            refs = reference_logprobs(pairs["train"], training.ctx, config.micro_tokens, weights, out / REFS, run.ranks)
        objective = Preference(pairs["train"], config.make_loss(), config.pairs, config.micro_tokens, refs, longest)
        training.train(out, objective, config.steps, config.optim)
        return self._judged(training, out, start, preference_accuracy(held_out, training.ctx))

    def _kto(self, run: Run, out: Path, pairs: Mapping[str, list[Pair]]) -> Figures:
        config = self.tune.config
        training = self._training(run, reference=True)
        held_out = with_reference(pair_batches(pairs["test"], config.micro_tokens), training.ctx)
        start = preference_accuracy(held_out, training.ctx)
        sides = [((pair.chosen, True), (pair.rejected, False)) for pair in pairs["train"]]
        feedback = [
            Feedback(pair.prompt, answer, liked)
            for pair, both in zip(pairs["train"], sides, strict=True)
            for answer, liked in both
        ]
        objective = KTO(feedback, config, self.recipe.model.max_context)
        training.train(out, objective, config.steps, config.optim)
        return self._judged(training, out, start, preference_accuracy(held_out, training.ctx))

    def _reward(self, run: Run, out: Path, pairs: Mapping[str, list[Pair]]) -> Figures:
        config = self.tune.config
        training = self._training(run, reference=False)
        margins = read_margins(run.artifact("preferences"))
        objective = RewardModelling(pairs["train"], config, margins, self.recipe.model.max_context)
        training.train(out, objective, config.steps, config.optim)
        save_trained(training, out)
        return training.costs | calibration(pair_gaps(training.ctx, pairs["test"], config.micro_tokens))

    def _training(self, run: Run, reference: bool) -> Training:
        start = run.artifact(self.start) / "model"
        policy = load_model(start)
        if self.tune.kind == "reward":
            policy = with_heads(policy, ("reward",))
        others = {"reference": load_model(start)} if reference and self.tune.lora is None else {}
        return Training(run, self.name, policy, self.tune.config.loop, CONTEXT, others, lora=self.tune.lora)

    def _judged(self, training: Training, out: Path, start: Mapping[str, float], end: Mapping[str, float]) -> Figures:
        save_trained(training, out)
        named = {"start": start, "end": end}
        judged = {f"{figure}.{when}": found[figure] for figure in start for when, found in named.items()}
        return judged | training.costs
