"""Pretraining, stage by stage, and what it taught: held-out bits per byte by domain and by position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sekkei.core.seed import derive_seed
from sekkei.data.loader import MixtureLoader
from sekkei.data.shards import open_shards
from sekkei.engine.engine import Engine
from sekkei.evals.bits import domain_bits
from sekkei.model.config import RopeScaling
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.pretrain import Pretrain, PretrainConfig
from sekkei.recipes.recipe import Recipe
from sekkei.stages.corpus import splits_of
from sekkei.stages.model_artifact import load_model, save_model
from sekkei.stages.run import Figures, Run
from sekkei.stages.training import sample_hook, train
from sekkei.text.tokenizer import Tokenizer
from sekkei.train.loop import Hook
from sekkei.train.step import PlainStep

SAMPLE_PROMPTS = (
    "Return a list of",
    "def read(self, path):\n",
    "A box holds 12 pens. How many pens are in 3 boxes?",
    "start at 7, add 3, times 4, modulo 23",
)


@dataclass(frozen=True)
class PretrainStage:
    """One stage of the curriculum. The first starts from initial weights, the others from the one before."""

    recipe: Recipe
    key: str
    version: int = 1

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
        return f"pretrain.{keys[index - 1]}" if index else None

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
        mixture = list(self.stage.mixture.items())  # its order decides which row is whose
        return {"stage": self.stage, "mixture": mixture, "model": model, "rescaled": self.rescaled, "eval": watched}

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
        )
        model = self._model(run, tokenizer)
        domain = max(stage.mixture, key=lambda name: stage.mixture[name])

        def hooks(step: PlainStep, engine: Engine) -> list[tuple[int, Hook]]:
            def held_out(done: int) -> Figures:
                score = partial(step.score, "policy", wants=frozenset({"logprobs"}), temperature=1.0)
                shard = shards[f"{domain}.heldout"]
                bits = domain_bits(score, shard, stage.context, sizes, run.recipe.eval.quick_tokens)
                return {"heldout_bpb": bits, "watched": bits}

            prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in SAMPLE_PROMPTS]
            sample = sample_hook(run, self.name, engine, tokenizer, prompts)
            return [(stage.eval_every, held_out), (run.recipe.eval.samples_every, sample)]

        train(
            run,
            self.name,
            out,
            model,
            Pretrain(loader, stage.rows, stage.micro_rows),
            steps=stage.steps,
            optim=stage.optim,
            loop=stage.loop,
            context=stage.context,
            hooks=hooks,
        )
        save_model(model, out / "model")
        figures: Figures = {f"{self.name}.tokens": stage.tokens}
        for name, epochs in loader.epochs(stage.steps * stage.rows).items():
            figures[f"{self.name}.epochs.{name}"] = epochs
        return figures

    def _model(self, run: Run, tokenizer: Tokenizer) -> Transformer:
        if self.before is not None:
            return load_model(run.artifact(self.before) / "model", self.rescaled)
        config = replace(run.recipe.model, vocab_size=tokenizer.vocab_size)
        return build(config, run.recipe.seed)
