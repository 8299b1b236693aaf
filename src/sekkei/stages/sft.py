"""Instruction tuning: demonstrations of the reasoning task in four styles, everyday turns, and a few refusals.

The stage has a gate: reinforcement learning can only select what is sometimes sampled, so sampled pass@1 on
held-out problems must reach a floor. Where it does not, training goes on for some more steps, a few times.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Sample
from sekkei.data.tasks import chain, everyday, refusals
from sekkei.engine.engine import Engine
from sekkei.evals.reasoning import ChainExam, held_out_problems
from sekkei.model.transformer import Transformer
from sekkei.objectives.sft import SFT, sft_sample
from sekkei.recipes.recipe import Recipe
from sekkei.stages.corpus import read_facts
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.run import Figures, Run
from sekkei.stages.training import Training, check_length, sample_hook
from sekkei.text.chat import encode_chat, encode_prompt
from sekkei.text.tokenizer import Tokenizer

Example = Callable[[int], Sample]
GATE = "gate.json"
GATE_PROBLEMS = 64
SAMPLE_TURNS = ("Hello!", "Who are you?", "start at 7, add 3, times 4, minus 5, modulo 23", "What does json.dumps do?")


@dataclass(frozen=True)
class SFTStage:
    """Behaviour cloning on top of the last pretraining stage."""

    recipe: Recipe
    base: str
    name: str = "sft"
    version: int = 1
    together: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data", "tokenizer", self.base)

    @property
    def config(self) -> Any:
        watched = {"samples_every": self.recipe.eval.samples_every, "max_tokens": self.recipe.eval.max_tokens}
        return {"sft": self.recipe.sft, "chain": self.recipe.data.chain, "eval": watched}

    def run(self, run: Run, out: Path) -> Figures:
        config = self.recipe.sft
        assert config is not None
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        model = load_model(run.artifact(self.base) / "model")
        example = self._examples(run, tokenizer)
        passed = _read_gate(out)
        while True:
            steps = config.steps + len(passed) * config.gate.extra_steps
            training = self._train(run, out, model, tokenizer, example, steps)
            model = training.model()
            reached = run.ranks.first_does(partial(self._sampled_pass1, model, tokenizer))
            if reached >= config.gate.min_pass1_sampled:
                break
            if len(passed) >= config.gate.rounds:
                raise UserError(
                    f"sft: sampled pass@1 is {reached:.3f} after {steps} steps, the gate "
                    f"sft.gate.min_pass1_sampled={config.gate.min_pass1_sampled} is not reached and "
                    f"sft.gate.rounds={config.gate.rounds} are used up; raise sft.steps"
                )
            run.console.say(f"  sft gate: sampled pass@1 {reached:.3f}, {config.gate.extra_steps} steps more")
            passed.append(reached)
            if run.ranks.first:
                atomic.write_json(out / GATE, passed)  # a resumed run must take the same decision
            model.requires_grad_(True)
        save_trained(training, out)
        return {"sft.steps": steps, "sft.gate.pass1_sampled": reached, "sft.gate.rounds": len(passed)}

    def _train(
        self,
        run: Run,
        out: Path,
        model: Transformer,
        tokenizer: Tokenizer,
        example: Callable[[int], Sample],
        steps: int,
    ) -> Training:
        config = self.recipe.sft
        assert config is not None
        training = Training(run, self.name, model, config.loop, context=256)
        prompts = [encode_prompt(tokenizer, [{"role": "user", "content": turn}]) for turn in SAMPLE_TURNS]
        hooks = [(run.recipe.eval.samples_every, sample_hook(training, tokenizer, prompts))]
        objective = SFT(example, config.examples, config.micro_tokens)
        training.train(out, objective, steps, config.optim, hooks)
        return training

    def _examples(self, run: Run, tokenizer: Tokenizer) -> Example:
        """Example i, a pure function of the seed: a chain in one of the four styles, an everyday turn, or a request."""
        config, seed = self.recipe.sft, self.recipe.seed
        assert config is not None
        facts = read_facts(run.artifact("data"))
        talks = everyday.conversations(facts, "train", seed, config.conversations)
        pairs = refusals.refusal_pairs("train", seed)
        requests = [[pair for pair in pairs if pair.kind == kind] for kind in ("harmful", "harmless")]

        def example(index: int) -> Sample:
            rng = random.Random(derive_seed("sft", seed, index))
            kind = rng.random()
            if kind < config.everyday:
                messages = rng.choice(talks).messages
            elif kind < config.everyday + config.refusals:
                pair = rng.choice(rng.choice(requests))  # evenly, or the commoner kind becomes the answer to all
                messages = [*pair.prompt, *pair.chosen]
            else:
                chains = self.recipe.data.chain
                problem = chain.sample_problem(rng, rng.choice(chains.train_operations), "train", chains)
                messages = chain.demonstration(problem, rng.choice(chain.STYLES))
            rendered = encode_chat(tokenizer, messages)
            check_length(len(rendered.ids), "sft: a conversation", self.recipe.model.max_context)
            return sft_sample(rendered)

        return example

    def _sampled_pass1(self, model: Transformer, tokenizer: Tokenizer) -> float:
        chains = self.recipe.data.chain
        problems = held_out_problems(chains, chains.held_out_operations, GATE_PROBLEMS, self.recipe.seed + 1)
        exam = ChainExam(Engine(model), tokenizer, problems, self.recipe.eval.max_tokens)
        return exam.sampled(self.recipe.seed)["pass1_sampled"]


def _read_gate(out: Path) -> list[float]:
    path = out / GATE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
