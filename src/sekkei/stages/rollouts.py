"""Stages that learn from the model's own answers of the moment: GRPO, PPO and online DPO.

    reward = verifier · (1 if the answer is right, else 0) + reward_model · the reward model's score

Only the outcome is judged, nothing about how it came about. PPO brings a critic, which begins as the reward model
where there is one, else as the policy (Ouyang et al. 2022); with `critic: shared` it is a head of the policy, which
is taken off again when the model is saved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.seed import derive_seed
from sekkei.data.tasks import chain
from sekkei.engine.request import Completion
from sekkei.evals.reasoning import answer_text, question_ids
from sekkei.model.heads import with_heads
from sekkei.model.transformer import Transformer
from sekkei.objectives.grpo import GRPO
from sekkei.objectives.online_dpo import OnlineDPO
from sekkei.objectives.ppo import PPO
from sekkei.objectives.rollout import Group, Prompt
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import TuneConfig
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.run import Figures, Run
from sekkei.stages.sft import SAMPLE_TURNS
from sekkei.stages.training import Training, sample_hook
from sekkei.text.chat import encode_prompt, parse_reply
from sekkei.text.tokenizer import Tokenizer

CONTEXT = 256  # tokens per row, for the FLOPs shown
SHOWN_GROUPS, SHOWN_ANSWERS = 2, 4  # of a rollout, in the log
OBJECTIVES: Mapping[str, Callable[..., Any]] = {"grpo": GRPO, "ppo": PPO, "online_dpo": OnlineDPO}


@dataclass(frozen=True)
class RolloutStage:
    """A tuning stage of kind grpo, ppo or online_dpo."""

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
        judge = () if self.tune.scored_by is None else (self.tune.scored_by,)
        return ("tokenizer", self.start, *judge)

    @property
    def config(self) -> Any:
        tune = self.tune
        watched = {"samples_every": self.recipe.eval.samples_every}
        asked = {"form": tune.form, "verifier": tune.verifier, "chain": self.recipe.data.chain}
        return {tune.kind: tune.config, **asked, "lora": tune.lora, "eval": watched}

    def run(self, run: Run, out: Path) -> Figures:
        config, kind = self.tune.config, self.tune.kind
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        training = self._training(run)
        objective = OBJECTIVES[kind](lambda index: self.prompt(index, tokenizer), config, (tokenizer.end_id,))
        every = min(run.recipe.eval.samples_every, max(1, config.steps // 4))

        def rollout_hook(done: int) -> Mapping[str, float]:
            run.log.write({"stage": self.name, "step": done, "rollout": rollout_table(objective.groups, tokenizer)})
            return {}

        hooks = [(every, rollout_hook)]
        if self.tune.form == "chat":
            prompts = [encode_prompt(tokenizer, [{"role": "user", "content": turn}]) for turn in SAMPLE_TURNS]
            hooks.append((every, sample_hook(training, tokenizer, prompts)))
        critic_optim = config.critic_optim if kind == "ppo" else None
        training.train(out, objective, config.steps, config.optim, hooks, critic_optim)
        save_trained(training, out, ("lm",))
        figures = {"rollouts": config.steps * config.prompts * config.samples, **training.costs}
        return {f"{self.name}.{name}": value for name, value in figures.items()}

    def _training(self, run: Run) -> Training:
        config, start = self.tune.config, run.artifact(self.start) / "model"
        policy, critic, others = load_model(start), None, dict[str, Transformer]()
        if self.tune.scored_by is not None:
            others["reward"] = load_model(run.artifact(self.tune.scored_by) / "model")
        if "reference" in config.needs:
            others["reference"] = load_model(start)
        if "critic" in config.needs:
            critic = with_heads(others.get("reward", policy), ("value",))
        elif self.tune.kind == "ppo":
            policy = with_heads(policy, ("lm", "value"))
        return Training(run, self.name, policy, config.loop, CONTEXT, others, critic, self.tune.lora)

    def prompt(self, index: int, tokenizer: Tokenizer) -> Prompt:
        """Problem number `index` of the training side, with its judge."""
        chains, form, verifier = self.recipe.data.chain, self.tune.form, self.tune.verifier
        rng = random.Random(derive_seed(self.name, self.recipe.seed, index))
        problem = chain.sample_problem(rng, rng.choice(chains.train_operations), "train", chains)

        def judge(completion: Completion) -> Mapping[str, float]:
            text = answer_text(tokenizer, completion, form)
            right = float(completion.finish_reason == "stop" and chain.verify(problem, text))
            steps = chain.count_steps(parse_reply(text).reasoning or "")
            return {"reward": verifier * right, "right": right, "steps_written": steps}

        return Prompt(question_ids(tokenizer, problem, form), judge)


def rollout_table(groups: list[Group], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Some answers of the last rollout with their rewards, for the report."""
    return [
        {
            "prompt": tokenizer.decode(group.prompt.ids),
            "text": tokenizer.decode(completion.token_ids),
            "reward": figures["reward"],
        }
        for group in groups[:SHOWN_GROUPS]
        for completion, figures in list(zip(group.completions, group.figures, strict=True))[:SHOWN_ANSWERS]
    ]
