"""Stages that learn from the model's own answers of the moment: GRPO, PPO and online DPO.

    reward = Σ weight · what the recipe weighs (problems.py) + reward_model · the reward model's score

By default only the outcome is judged, nothing about how it came about. PPO brings a critic, which begins as the reward
model where there is one, else as the policy (Ouyang et al. 2022); with `critic: shared` it is a head of the policy,
which is taken off again when the model is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.model.heads import with_heads
from sekkei.model.transformer import Transformer
from sekkei.objectives.ahead import OwnCopy
from sekkei.objectives.grpo import GRPO
from sekkei.objectives.online_dpo import OnlineDPO
from sekkei.objectives.ppo import PPO
from sekkei.objectives.rollout import Group
from sekkei.objectives.tool_use import CalculatorTool
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import TuneConfig
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.problems import asker
from sekkei.stages.run import Figures, Run
from sekkei.stages.sft import SAMPLE_TURNS, own_file
from sekkei.stages.training import Training, autocast_dtype, sample_hook
from sekkei.text.chat import encode_prompt
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
        tasks = {"chain": self.recipe.data.chain, "calculator": self.recipe.data.calculator}
        asked = {"form": tune.form, "rewards": tune.rewards, "file": own_file(tune.path), **tasks}
        return {tune.kind: tune.config, **asked, "lora": tune.lora, "eval": watched}

    def run(self, run: Run, out: Path) -> Figures:
        config, kind = self.tune.config, self.tune.kind
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        training = self._training(run)
        tools = [CalculatorTool(tokenizer, config.max_calls)] if getattr(config, "tool", "none") != "none" else []
        problems = asker(self.recipe, self.name, tokenizer)
        objective = OBJECTIVES[kind](problems, config, (tokenizer.end_id,), *tools)
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
        training = Training(run, self.name, policy, config.loop, CONTEXT, others, critic, self.tune.lora)
        if getattr(config, "off_by", 0):
            trained = training.placed.get("policy", policy)
            training.ctx.generate = OwnCopy(trained, run.device, autocast_dtype(config.loop, run.device))
        return training


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
