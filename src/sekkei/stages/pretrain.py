"""Pretraining, stage by stage, and what it taught: held-out bits per byte by domain and by position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sekkei.core import config as configs
from sekkei.core.seed import derive_seed
from sekkei.data.loader import MixtureLoader
from sekkei.data.sampling import SamplingConfig
from sekkei.data.shards import open_shards
from sekkei.evals.bits import domain_bits
from sekkei.model.config import RopeScaling
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.pretrain import Pretrain, PretrainConfig
from sekkei.recipes.recipe import IMPORTED, Recipe
from sekkei.stages.corpus import splits_of
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.run import Figures, Run
from sekkei.stages.training import Training, sample_hook
from sekkei.text.tokenizer import Tokenizer

SAMPLE_PROMPTS = (
    "Return a list of",
    "def read(self, path):\n",
    "A box holds 12 pens. How many pens are in 3 boxes?",
    "start at 7, add 3, times 4, modulo 23",
)


def initial_model(recipe: Recipe, tokenizer: Tokenizer) -> Transformer:
    """Untrained, as the first stage begins with it."""
    return build(replace(recipe.model, vocab_size=tokenizer.vocab_size), recipe.seed)


@dataclass(frozen=True)
class PretrainStage:
    """One stage of the curriculum. The first starts from initial or imported weights, others from the one before."""

    recipe: Recipe
    key: str
    version: int = 1
    together: bool = True

    @property
    def name(self) -> str:
        return f"pretrain.{self.key}"

    @property
    def stage(self) -> PretrainConfig:
        return self.recipe.pretrain[self.key]

    @property
    def before(self) -> str | None:
        """The stage whose model this one goes on with."""
        keys = list(self.recipe.pretrain)
        index = keys.index(self.key)
        first = None if self.recipe.imported is None else IMPORTED
        return f"pretrain.{keys[index - 1]}" if index else first

    @property
    def rescaled(self) -> RopeScaling | None:
        """How this stage rescales the positions of the one before, if it does."""
        keys = list(self.recipe.pretrain)
        if self.stage.rope_factor == 1:
            return None
        context = self.recipe.pretrain[keys[keys.index(self.key) - 1]].context
        return RopeScaling(kind="llama3", factor=self.stage.rope_factor, original_context=context)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("tokenizer", "tokens", *([self.before] if self.before else []))

    @property
    def config(self) -> Any:
        watched = {"quick_tokens": self.recipe.eval.quick_tokens, "samples_every": self.recipe.eval.samples_every}
        model = self.recipe.model if self.before is None else None
        order = [list(part) for part in (self.stage.mixture, self.stage.opening)]  # decides which row is whose
        stage = configs.to_mapping(self.stage)
        if self.stage.sampling == SamplingConfig():
            del stage["sampling"]  # nothing was chosen: what was made before there was a choice stays whole
        return {"stage": stage, "order": order, "model": model, "rescaled": self.rescaled, "eval": watched}

    def run(self, run: Run, out: Path) -> Figures:
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        shards = open_shards(run.artifact("tokens") / "shards")
        stage, sizes = self.stage, tokenizer.token_bytes()
        loader = MixtureLoader(
            splits_of(shards, "train"),
            stage.mixture,
            stage.context,
            stage.steps * stage.rows,
            derive_seed(run.recipe.seed, self.name),
            sizes,
            key=f"{self.name}.mixture",
            opening=stage.opening,
            opening_rows=min(stage.opening_steps, stage.steps) * stage.rows,
            sampling=stage.sampling,
        )
        model = self._model(run, tokenizer)
        domain = max(stage.mixture, key=lambda name: stage.mixture[name])

        training = Training(run, self.name, model, stage.loop, stage.context)
        score = partial(training.step.score, "policy", wants=frozenset({"logprobs"}), temperature=1.0)

        def held_out(done: int) -> Figures:
            bits = domain_bits(score, shards[f"{domain}.heldout"], stage.context, sizes, run.recipe.eval.quick_tokens)
            return {"heldout_bpb": bits, "watched": bits}

        prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in SAMPLE_PROMPTS]
        sample = sample_hook(training, tokenizer, prompts)
        objective = Pretrain(loader, stage.rows, stage.micro_rows)
        hooks = [(stage.eval_every, held_out), (run.recipe.eval.samples_every, sample)]
        training.train(out, objective, stage.steps, stage.optim, hooks)
        save_trained(training, out)
        figures: Figures = {f"{self.name}.tokens": stage.tokens}
        for name, epochs in loader.epochs(stage.steps * stage.rows).items():
            figures[f"{self.name}.epochs.{name}"] = epochs
        return figures

    def _model(self, run: Run, tokenizer: Tokenizer) -> Transformer:
        if self.before is not None:
            return load_model(run.artifact(self.before) / "model", self.rescaled)
        return initial_model(run.recipe, tokenizer)
