"""Stages that learn from the pairs of the stage `preferences`: DPO and its relatives, KTO, and the reward model.

    dpo      from a better and a worse answer; the start is the reference
    kto      from single answers: every better one is liked, every worse one is not; or as a file of one's own says
    reward   a scalar head on the start's trunk learns which of two is better; it answers nothing, it scores

The held-out side says what was learned: preference_accuracy for a policy (feedback_accuracy where answers are single),
accuracy and calibration for a reward model. On both sides what is longer than the context is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.core.hardware import fast_dtype
from sekkei.data.batch import Batch
from sekkei.model.heads import with_heads
from sekkei.objectives.kto import KTO, Feedback, sound_feedback
from sekkei.objectives.pair_loss import sequence_logprobs
from sekkei.objectives.preference import (
    Pair,
    Preference,
    pair_batches,
    preference_accuracy,
    reference_logprobs,
    sound_pairs,
    with_reference,
)
from sekkei.objectives.reward import RewardModelling, calibration, pair_gaps
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import LocalOps
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import TuneConfig
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.preferences import FEEDBACK, read_feedback, read_margins, read_pairs, refuse_unpaired
from sekkei.stages.run import Figures, Run
from sekkei.stages.training import Training
from sekkei.train.objective import Context

CONTEXT = 256  # tokens per row, for the FLOPs shown
REFS = "checkpoints/refs.json"


@dataclass(frozen=True)
class PairedStage:
    """A tuning stage of kind dpo, kto or reward."""

    recipe: Recipe
    name: str
    together: bool = True

    @property
    def version(self) -> int:
        return 3 if self.recipe.preferences.path else 2  # 3: long pairs are held out no more; our own are never long

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

    @property
    def longest(self) -> int:
        return self.recipe.model.max_context

    def run(self, run: Run, out: Path) -> Figures:
        folder, kind = run.artifact("preferences"), self.tune.kind
        if (folder / FEEDBACK).exists():
            refuse_unpaired(self.recipe, self.name, kind)
            figures = self._unpaired(run, out, read_feedback(folder))
        else:
            work = {"dpo": self._dpo, "kto": self._kto, "reward": self._reward}[kind]
            figures = work(run, out, read_pairs(folder, getattr(self.tune.config, "unmatched", False)))
        return {f"{self.name}.{name}": value for name, value in figures.items()}

    def _dpo(self, run: Run, out: Path, pairs: Mapping[str, list[Pair]]) -> Figures:
        config, train = self.tune.config, pairs["train"]
        test, dropped = held_out_pairs(pairs["test"], self.longest)
        training = self._training(run, reference=True)
        held_out = with_reference(pair_batches(test, config.micro_tokens), training.ctx)
        start = preference_accuracy(held_out, training.ctx)
        refs = None
        if config.make_loss().needs_reference:
            weights = (
                f"{atomic.sha256(run.artifact(self.start) / 'model')} {fast_dtype(run.device)} {config.loop.dtype}"
            )
            kept, _ = sound_pairs(train, self.longest)
            scored = [train[i] for i in kept]
            known = reference_logprobs(scored, training.ctx, config.micro_tokens, weights, out / REFS, run.ranks)
            by_pair = dict(zip(kept, known, strict=True))
            refs = [by_pair.get(i, (0.0, 0.0)) for i in range(len(train))]  # the objective leaves the same ones out
        objective = Preference(train, config.make_loss(), config.pairs, config.micro_tokens, refs, self.longest)
        training.train(out, objective, config.steps, config.optim)
        end = preference_accuracy(held_out, training.ctx)
        return self._judged(training, out, start, end) | left_out(objective.dropped, dropped)

    def _kto(self, run: Run, out: Path, pairs: Mapping[str, list[Pair]]) -> Figures:
        config = self.tune.config
        test, dropped = held_out_pairs(pairs["test"], self.longest)
        training = self._training(run, reference=True)
        held_out = with_reference(pair_batches(test, config.micro_tokens), training.ctx)
        start = preference_accuracy(held_out, training.ctx)
        sides = [((pair.chosen, True), (pair.rejected, False)) for pair in pairs["train"]]
        feedback = [
            Feedback(pair.prompt, answer, liked)
            for pair, both in zip(pairs["train"], sides, strict=True)
            for answer, liked in both
        ]
        objective = KTO(feedback, config, self.longest)
        training.train(out, objective, config.steps, config.optim)
        end = preference_accuracy(held_out, training.ctx)
        return self._judged(training, out, start, end) | left_out(objective.dropped, dropped)

    def _unpaired(self, run: Run, out: Path, feedback: Mapping[str, list[Feedback]]) -> Figures:
        """KTO from single answers as a file has them."""
        config = self.tune.config
        test, dropped = sound_feedback(feedback["test"], self.longest)
        if len({one.desirable for one in test}) < 2:
            raise UserError(too_long("answers of one kind", dropped, self.longest))
        training = self._training(run, reference=True)
        samples = [one.sample() for one in test]
        held_out = with_reference(pack_samples(samples, config.micro_tokens), training.ctx)
        start = feedback_accuracy(held_out, training.ctx)
        objective = KTO(feedback["train"], config, self.longest)
        training.train(out, objective, config.steps, config.optim)
        end = feedback_accuracy(held_out, training.ctx)
        return self._judged(training, out, start, end) | left_out(objective.dropped, dropped)

    def _reward(self, run: Run, out: Path, pairs: Mapping[str, list[Pair]]) -> Figures:
        config = self.tune.config
        test, dropped = held_out_pairs(pairs["test"], self.longest)
        training = self._training(run, reference=False)
        margins = read_margins(run.artifact("preferences"))
        objective = RewardModelling(pairs["train"], config, margins, self.longest)
        training.train(out, objective, config.steps, config.optim)
        save_trained(training, out)
        found = calibration(pair_gaps(training.ctx, test, config.micro_tokens))
        return training.costs | found | left_out(objective.dropped, dropped)

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


def held_out_pairs(pairs: Sequence[Pair], longest: int) -> tuple[list[Pair], dict[str, float]]:
    """The held-out pairs that the objective would keep, and how many it would leave out for which reason.

    Raises:
        UserError: none is left.
    """
    kept, dropped = sound_pairs(pairs, longest)
    if not kept:
        raise UserError(too_long("no pairs", dropped, longest))
    return [pairs[i] for i in kept], dropped


def too_long(left: str, dropped: Mapping[str, float], longest: int) -> str:
    why = ", ".join(f"{n:,.0f} {name.partition('_')[2]}" for name, n in dropped.items())
    return (
        f"preferences.path: of the held-out side {left} are left (left out: {why}); give shorter ones, or raise "
        f"model.max_context={longest}"
    )


def left_out(train: Mapping[str, float], test: Mapping[str, float]) -> Figures:
    """Counts of both sides as figures: dropped_long.train …"""
    sides = {"train": train, "test": test}
    return {f"{name.partition('/')[2]}.{side}": n for side, counts in sides.items() for name, n in counts.items()}


def feedback_accuracy(batches: Sequence[Batch], ctx: Context) -> dict[str, float]:
    """On held-out single answers (with `extra["ref"]`): how often a liked one gained more than one that is not.

    Returns:
        feedback_accuracy: share of all couples of a liked and another answer, whatever their prompts, in which the
        implicit reward of the liked one is higher, ties half (the area under the ROC curve; Hanley & McNeil 1982); .5
        while the policy equals the reference.
    """
    gains: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for cpu_batch in batches:
        batch = cpu_batch.to(ctx.device)
        out = ctx.score("policy", batch, frozenset({"logprobs"}), 1.0)
        assert out.logprobs is not None
        gain = sequence_logprobs(out.logprobs, batch, LocalOps()) - batch.extra["ref"]
        for liked, sign in ((True, 1.0), (False, -1.0)):
            gains[liked].append(gain[batch.extra["sign"] == sign].cpu())
    liked, others = torch.cat(gains[True]), torch.cat(gains[False]).sort().values
    below, not_above = (torch.searchsorted(others, liked, right=right) for right in (False, True))
    return {"feedback_accuracy": float((below + not_above).double().mean() / (2 * len(others)))}
