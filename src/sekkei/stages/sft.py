"""Instruction tuning: demonstrations of the reasoning task in four styles, everyday turns, and a few refusals.

With `own`, what an earlier stage's model wrote and the verifier called right takes the place of the demonstrations;
with `tune.NAME.path` it is asked problems of that file.

The stage has a gate: reinforcement learning can only select what is sometimes sampled, so sampled pass@1 on
held-out problems (with a file: on problems of it) must reach a floor. Where it does not, training goes on for some more
steps, a few times.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Sample
from sekkei.data.tasks import Message, calculator, chain, everyday, refusals
from sekkei.data.tasks.chain import Form
from sekkei.evals.items import chosen
from sekkei.evals.maths import verifier
from sekkei.evals.reasoning import Exam, Problem, held_out_problems
from sekkei.model.transformer import Transformer
from sekkei.objectives.conversations import fitting, learned_turns, read_conversations
from sekkei.objectives.sft import SFT, OwnConfig, SFTConfig, sft_sample
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import TuneConfig
from sekkei.stages.corpus import read_facts
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.problems import own_problems
from sekkei.stages.run import Figures, Run
from sekkei.stages.training import Training, check_length, sample_hook
from sekkei.text.chat import Rendered, encode_chat, encode_prompt
from sekkei.text.tokenizer import Tokenizer
from sekkei.train.gathered import SharedEngine

Example = Callable[[int], Sample]
Demonstrate = Callable[[random.Random], Rendered]
GATE = "gate.json"
GATE_PROBLEMS = 64
TURNS = (2, 3, 5, 9)  # chains in one conversation: 1, 2, 4 or 8 examples before the last
SAMPLE_TURNS = ("Hello!", "Who are you?", "start at 7, add 3, times 4, minus 5, modulo 23", "What does json.dumps do?")


@dataclass(frozen=True)
class SFTStage:
    """Behaviour cloning on top of the last pretraining stage."""

    recipe: Recipe
    name: str
    together: bool = True

    @property
    def version(self) -> int:
        return 2 if self.sft.path else 1  # 2: text in parts is read, and what is left out is a figure

    @property
    def tune(self) -> TuneConfig:
        return self.recipe.tuning[self.name]

    @property
    def sft(self) -> SFTConfig:
        return self.tune.config

    @property
    def reads(self) -> tuple[str, ...]:
        writer = () if self.sft.own is None else (self.sft.own.stage,)
        return tuple(dict.fromkeys(("data", "tokenizer", self.recipe.stage_of(self.tune.start), *writer)))

    @property
    def config(self) -> Any:
        watched = {"samples_every": self.recipe.eval.samples_every, "max_tokens": self.recipe.eval.max_tokens}
        tasks = {"chain": self.recipe.data.chain, "calculator": self.recipe.data.calculator}
        problems = {} if self.tune.path is None else {"problems": asked_file(self.tune.path)}
        files = {"file": own_file(self.sft.path), **problems}
        return {"sft": self.sft, **tasks, "lora": self.tune.lora, "eval": watched, **files}

    def run(self, run: Run, out: Path) -> Figures:
        config = self.sft
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        model = load_model(run.artifact(self.recipe.stage_of(self.tune.start)) / "model")
        told, counts = ([], {}) if config.path is None else self._told(run, tokenizer, config.path)
        example = self._examples(run, tokenizer, told)
        passed = _read_gate(out)
        while True:
            steps = config.steps + len(passed) * config.gate.extra_steps
            training = self._train(run, out, model, tokenizer, example, steps)
            model = training.model()
            reached = self._sampled_pass1(model, tokenizer)
            if reached >= config.gate.min_pass1_sampled:
                break
            if len(passed) >= config.gate.rounds:
                key = self.recipe.key_of(self.name)
                raise UserError(
                    f"{self.name}: sampled pass@1 is {reached:.3f} after {steps} steps, the gate "
                    f"{key}.gate.min_pass1_sampled={config.gate.min_pass1_sampled} is not reached and "
                    f"{key}.gate.rounds={config.gate.rounds} are used up; raise {key}.steps"
                )
            run.console.say(f"  {self.name} gate: sampled pass@1 {reached:.3f}, {config.gate.extra_steps} steps more")
            passed.append(reached)
            if run.ranks.first:
                atomic.write_json(out / GATE, passed)  # a resumed run must take the same decision
        save_trained(training, out)
        gate = {"gate.pass1_sampled": reached, "gate.rounds": len(passed)}
        figures = {"steps": steps, **gate, **training.costs, **counts}
        return {f"{self.name}.{name}": value for name, value in figures.items()}

    def _train(
        self,
        run: Run,
        out: Path,
        model: Transformer,
        tokenizer: Tokenizer,
        example: Callable[[int], Sample],
        steps: int,
    ) -> Training:
        config = self.sft
        training = Training(run, self.name, model, config.loop, context=256, lora=self.tune.lora)
        prompts = [encode_prompt(tokenizer, [{"role": "user", "content": turn}]) for turn in SAMPLE_TURNS]
        hooks = [(run.recipe.eval.samples_every, sample_hook(training, tokenizer, prompts))]
        objective = SFT(example, config.examples, config.micro_tokens)
        training.train(out, objective, steps, config.optim, hooks)
        return training

    def _examples(self, run: Run, tokenizer: Tokenizer, told: Sequence[Rendered]) -> Example:
        """Example i, a pure function of the seed: a chain, an everyday turn, a request, or a sum for the calculator."""
        config, seed = self.sft, self.recipe.seed
        facts = read_facts(run.artifact("data"))
        talks = everyday.conversations(facts, "train", seed, config.conversations)
        pairs = refusals.refusal_pairs("train", seed)
        requests = [[pair for pair in pairs if pair.kind == kind] for kind in ("harmful", "harmless")]
        solved = self._demonstrations(run, tokenizer, told)

        def example(index: int) -> Sample:
            rng = random.Random(derive_seed(self.name, seed, index))
            kind = rng.random()
            if kind < config.everyday:
                rendered = encode_chat(tokenizer, rng.choice(talks).messages)
            elif kind < config.everyday + config.refusals:
                pair = rng.choice(rng.choice(requests))  # evenly, or the commoner kind becomes the answer to all
                rendered = encode_chat(tokenizer, [*pair.prompt, *pair.chosen])
            elif kind < config.everyday + config.refusals + config.tools:
                sums = self.recipe.data.calculator
                rendered = encode_chat(tokenizer, calculator.demonstration(calculator.sample_task(rng, "train", sums)))
            else:
                rendered = solved(rng)
            check_length(len(rendered.ids), f"{self.name}: a conversation", self.recipe.model.max_context)
            return sft_sample(rendered)

        return example

    def _demonstrations(self, run: Run, tokenizer: Tokenizer, told: Sequence[Rendered]) -> Demonstrate:
        """Solved chains, written by rule in one of the styles or by an earlier stage's model; or a file's talks."""
        chains, styles = self.recipe.data.chain, self.sft.styles
        if told:
            return lambda rng: rng.choice(told)
        if self.sft.own is not None:
            written = self._written(run, tokenizer, self.sft.own)
            return lambda rng: encode_chat(tokenizer, rng.choice(written))

        def demonstrate(rng: random.Random) -> Rendered:
            style, several = rng.choice(styles), rng.random() < self.sft.turns
            messages: list[Message] = []
            for _ in range(rng.choice(TURNS) if several else 1):
                problem = chain.sample_problem(rng, rng.choice(chains.train_operations), "train", chains)
                messages += chain.demonstration(problem, style)
            return encode_chat(tokenizer, messages)

        return demonstrate

    def _told(self, run: Run, tokenizer: Tokenizer, path: str) -> tuple[list[Rendered], Figures]:
        """The user's own conversations, and counts: conversations (read), those left out by reason, those trimmed.

        Raises:
            UserError: as `read_conversations`, or all of them are longer than the model's context.
        """
        talks, counts = read_conversations(path)
        rendered = (learned_turns(encode_chat(tokenizer, talk), self.sft.learn) for talk in talks)
        kept, long = fitting(rendered, self.recipe.model.max_context)
        counts = {**counts, **long}
        left_out = ", ".join(f"{n:,.0f} {name.partition('/')[2]}" for name, n in counts.items())
        run.console.say(
            f"  {self.name}: {len(kept):,} conversations of {path}" + (f" ({left_out})" if left_out else "")
        )
        if not kept:
            raise UserError(
                f"{path}: every conversation is longer than model.max_context={self.recipe.model.max_context}"
            )
        read = len(kept) + sum(n for name, n in counts.items() if "/dropped_" in name)
        return kept, {f"file.{name.replace('/', '_')}": n for name, n in {"conversations": read, **counts}.items()}

    def _written(self, run: Run, tokenizer: Tokenizer, own: OwnConfig) -> list[list[Message]]:
        """Right answers of another stage's model, as conversations.

        Raises:
            UserError: there is none.
        """
        seed, form = derive_seed("own answers", self.name, self.recipe.seed), self.recipe.form_of(own.stage)
        problems = self._problems_for(tokenizer, own, form, seed)
        engine = SharedEngine(load_model(run.artifact(own.stage) / "model").to(run.device))
        exam = Exam(engine, tokenizer, problems, own.max_tokens, form)
        kept: list[list[Message]] = []
        for problem, group in zip(problems, exam.ask(own.temperature, own.samples, seed), strict=True):
            right = [exam.reply(completion) for completion in group if exam.right(problem, completion)]
            for reply in list(dict.fromkeys(right))[: own.per_prompt]:
                said = {"role": "assistant", "content": reply.content, "reasoning_content": reply.reasoning or ""}
                kept.append([{"role": "user", "content": problem.question}, said])
        run.console.say(f"  {self.name}: {len(kept)} right answers of {own.stage} to {len(problems)} problems")
        if not kept:
            key = self.recipe.key_of(self.name)
            raise UserError(f"{self.name}: no answer of {own.stage} is right; raise {key}.own.prompts")
        return kept

    def _problems_for(self, tokenizer: Tokenizer, own: OwnConfig, form: Form, seed: int) -> Sequence[Problem]:
        """What the other stage's model is asked: training chains, or problems of the stage's file, each once."""
        chains, path = self.recipe.data.chain, self.tune.path
        if path is not None:
            key = f"{self.recipe.key_of(self.name)}.own"
            found = own_problems(self.recipe, path, tokenizer, form, own.max_tokens, key)
            return chosen(found, own.prompts, seed)
        rng = random.Random(seed)
        operations = [rng.choice(chains.train_operations) for _ in range(own.prompts)]
        return [chain.sample_problem(rng, count, "train", chains) for count in operations]

    def _sampled_pass1(self, model: Transformer, tokenizer: Tokenizer) -> float:
        recipe, path, seed, most = self.recipe, self.tune.path, self.recipe.seed, self.recipe.eval.max_tokens
        problems: Sequence[Problem]
        if path is not None:
            problems = chosen(own_problems(recipe, path, tokenizer, "chat", most, "eval"), GATE_PROBLEMS, seed + 1)
        else:
            chains = recipe.data.chain
            problems = held_out_problems(chains, chains.held_out_operations, GATE_PROBLEMS, seed + 1)
        return Exam(SharedEngine(model), tokenizer, problems, most).sampled(seed)["pass1_sampled"]


def own_file(path: str | None) -> str | None:
    """Digest of a file of the user's own: another content is another stage. What is on a hub is known by its name."""
    return atomic.sha256(Path(path)) if path is not None and Path(path).is_file() else path


def asked_file(path: str | None) -> Any:
    """Digest of a file of problems, and what finds answers equal: another verifier judges otherwise."""
    return None if path is None else [own_file(path), verifier()]


def _read_gate(out: Path) -> list[float]:
    path = out / GATE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
