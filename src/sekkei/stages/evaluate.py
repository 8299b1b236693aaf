"""What a checkpoint can do, measured on held-out things, after every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sekkei.core.errors import UserError
from sekkei.data.batch import Batch
from sekkei.data.shards import Shard, open_shards
from sekkei.data.tasks import everyday
from sekkei.data.tasks.chain import Form
from sekkei.engine.engine import Engine
from sekkei.evals import conversations as talks
from sekkei.evals.bits import ScoreBatch, domain_bits, position_bits
from sekkei.evals.reasoning import Exam, held_out_problems
from sekkei.model.config import RopeScaling
from sekkei.model.transformer import Transformer
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.ops import LocalOps
from sekkei.recipes.recipe import IMPORTED, Recipe
from sekkei.stages.corpus import read_facts, splits_of
from sekkei.stages.model_artifact import load_model
from sekkei.stages.pretrain import initial_model
from sekkei.stages.problems import held_out_own
from sekkei.stages.run import Figures, Run
from sekkei.stages.sft import asked_file
from sekkei.stages.training import place, step_of
from sekkei.text.tokenizer import Tokenizer
from sekkei.train.gathered import SharedEngine
from sekkei.train.step import PlainStep

BITS_DOMAINS = ("docs", "code", "math")
LONG_DOMAINS = ("docs", "code")  # those with documents longer than a short context


@dataclass(frozen=True)
class BitsStage:
    """Held-out bits per byte of a pretraining checkpoint, by domain and by position.

    Where the stage rescaled positions, the checkpoint before it is measured too, rescaled but not trained:
    the control that shows what training on long rows added. Before the first stage there are the initial weights, or
    those that were imported.
    """

    recipe: Recipe
    key: str
    before: str | None
    rescaled: RopeScaling | None
    version: int = 2
    together: bool = True

    @property
    def name(self) -> str:
        return f"eval.pretrain.{self.key}"

    @property
    def reads(self) -> tuple[str, ...]:
        own = (f"pretrain.{self.key}",)
        compared = self.before is not None and (self.rescaled is not None or self.before == IMPORTED)
        return ("tokenizer", "tokens", *own, *([self.before] if compared and self.before else []))

    @property
    def config(self) -> Any:
        sizes = self.recipe.eval
        contexts = {name: stage.context for name, stage in self.recipe.pretrain.items()}
        sets = {"tokens": sizes.tokens, "long": sizes.long_windows}
        return {**sets, "contexts": contexts, "rescaled": self.rescaled, "share": self._token_share}

    @property
    def _token_share(self) -> float:
        """Of all pretraining tokens, those of this stage."""
        return self.recipe.pretrain[self.key].tokens / self.recipe.total_tokens

    def run(self, run: Run, out: Path) -> Figures:
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        shards = splits_of(open_shards(run.artifact("tokens") / "shards"), "heldout")
        sizes, prefix = tokenizer.token_bytes(), f"pretrain.{self.key}"
        score = scorer(run, load_model(run.artifact(prefix) / "model"))
        context = self.recipe.pretrain[self.key].context
        figures: Figures = {f"{prefix}.token_share": self._token_share}
        with run.console.bar(self.name, 0) as bar:
            measured = {prefix: score}
            if self.before is None:
                measured["pretrain.start"] = scorer(run, initial_model(self.recipe, tokenizer))
            elif self.before == IMPORTED:
                measured["pretrain.start"] = scorer(run, load_model(run.artifact(IMPORTED) / "model"))
            for label, model in measured.items():
                for done, domain in enumerate(BITS_DOMAINS):
                    bits = domain_bits(model, shards[domain], context, sizes, self.recipe.eval.tokens)
                    figures[f"{label}.bpb.{domain}"] = bits
                    bar.update(done, domain)
            figures |= self._by_position(score, shards, sizes, prefix)
            if self.rescaled and self.before:
                control = scorer(run, load_model(run.artifact(self.before) / "model", self.rescaled))
                figures |= self._by_position(control, shards, sizes, f"{prefix}.control")
        return figures

    def _by_position(self, score: ScoreBatch, shards: Mapping[str, Shard], sizes: list[int], prefix: str) -> Figures:
        """Bits per byte of the same text in the second half of the short context and beyond it in the long one."""
        contexts = sorted({stage.context for stage in self.recipe.pretrain.values()})
        short, long = contexts[0], contexts[-1]
        if short == long:
            return {}
        texts = [shards[name] for name in LONG_DOMAINS]
        found = position_bits(score, texts, short, long, sizes, self.recipe.eval.long_windows)
        figures = {f"{prefix}.bpb.positions_{low}_{high}": bits for (low, high), bits in found.items()}
        if (short, long) in found:
            figures[f"{prefix}.bpb.beyond_context"] = found[short, long]
        return figures


@dataclass(frozen=True)
class EvaluateStage:
    """Reasoning, problems of one's own, everyday turns, refusals and in-context learning of one checkpoint; ranks share
    what is asked.

    Args:
        checkpoint: the stage whose model is asked. label: its name in the figures ("base", "sft" …).
        form: how chains are put to it.
    """

    recipe: Recipe
    checkpoint: str
    label: str
    form: Form = "chat"
    version: int = 1
    together: bool = True

    @property
    def name(self) -> str:
        return f"eval.{self.label}"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data", "tokenizer", self.checkpoint)

    @property
    def config(self) -> Any:
        tasks = {"chain": self.recipe.data.chain, "patterns": self.recipe.data.patterns}
        own = {} if self.recipe.eval.path is None else {"file": asked_file(self.recipe.eval.path)}
        return {"eval": self.recipe.eval, **tasks, "form": self.form, **own}

    def run(self, run: Run, out: Path) -> Figures:
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        engine = SharedEngine(load_model(run.artifact(self.checkpoint) / "model").to(run.device))
        figures: Figures = {}
        with run.console.bar(self.name, 4) as bar:
            figures |= self._reasoning(engine, tokenizer)
            bar.update(1, "reasoning")
            figures |= self._conversations(run, engine, tokenizer)
            bar.update(2, "everyday turns")
            sizes, seed = self.recipe.eval, self.recipe.seed
            refused = talks.refused(engine, tokenizer, seed, sizes.requests)
            figures |= {f"chat.{self.label}.{name}": value for name, value in refused.items()}
            bar.update(3, "requests")
            with asked_by(f"eval.shots={list(sizes.shots)}"):
                shots = talks.shots(engine, tokenizer, self.recipe.data.patterns, seed, sizes.probes, sizes.shots)
            figures |= {f"icl.{self.label}.{name}": value for name, value in shots.items()}
            bar.update(4, "in-context patterns")
        return figures

    def _reasoning(self, engine: Engine, tokenizer: Tokenizer) -> Figures:
        chains, sizes, seed = self.recipe.data.chain, self.recipe.eval, self.recipe.seed
        prefix = f"reasoning.{self.label}"
        figures: Figures = {}
        problems = held_out_problems(chains, chains.held_out_operations, sizes.problems, seed)
        exam = Exam(engine, tokenizer, problems, sizes.max_tokens, self.form)
        figures |= _accuracy(exam, prefix, seed)
        if sizes.path is not None:
            own = Exam(engine, tokenizer, held_out_own(self.recipe, tokenizer, self.form), sizes.max_tokens, self.form)
            figures |= _accuracy(own, f"own.{self.label}", seed)
        more = chains.reported_operations
        further = held_out_problems(chains, more, sizes.problems, seed)
        longer = Exam(engine, tokenizer, further, sizes.max_tokens, self.form)
        with asked_by(f"data.chain.reported_operations={more}"):
            figures[f"{prefix}.operations{more}.pass1_greedy"] = longer.greedy()["pass1_greedy"]
        return figures

    def _conversations(self, run: Run, engine: Engine, tokenizer: Tokenizer) -> Figures:
        facts = read_facts(run.artifact("data"))
        asked = everyday.conversations(facts, "test", self.recipe.seed, self.recipe.eval.conversations)
        figures, shown = talks.answered(engine, tokenizer, asked)
        run.log.drop(self.name)
        samples = [{"prompt": question, "text": reply} for question, reply in shown[:24]]
        run.log.write({"stage": self.name, "step": 0, "samples": samples})
        return {f"chat.{self.label}.{name}": value for name, value in figures.items()}


def _accuracy(exam: Exam, prefix: str, seed: int) -> Figures:
    """Greedy, sampled, by vote, at best, and with thinking switched off."""
    found = {**exam.greedy(), **exam.sampled(seed)}
    found["no_thinking.pass1_greedy"] = exam.greedy(thinking=False)["pass1_greedy"]
    return {f"{prefix}.{name}": value for name, value in found.items()}


@contextmanager
def asked_by(key: str) -> Iterator[None]:
    """Name the recipe key that made a prompt too long for the model."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}; lower it, or raise model.max_context") from None


def scorer(run: Run, model: Transformer) -> ScoreBatch:
    """Log-probabilities of a batch's labels, in the evaluation's own precision (float32); under a layout each rank
    keeps its part of the model, and all take part.
    """
    if run.mesh is not None:
        layout = run.mesh.layout
        wide = layout.weights == "fp32"
        mesh = run.mesh if wide else Mesh(replace(layout, weights="fp32", reduce="fp32"), run.device.type)
        placed = step_of({"policy": place(model.to(run.device), mesh)}, mesh, run.device, None)
        return partial(placed.score, "policy", wants=frozenset({"logprobs"}), temperature=1.0)
    step = PlainStep({"policy": model.to(run.device)}, LocalOps(), run.device, None)

    def score(batch: Batch) -> Any:
        with torch.inference_mode():
            return step.score("policy", batch, frozenset({"logprobs"}), 1.0)

    return score
