"""Stages that learn from the model's own answers of the moment: GRPO, PPO and online DPO.

    reward = Σ weight · what the recipe weighs (problems.py) + reward_model · the reward model's score
             + judge.weight · what somebody says who reads the answer (judge/reward.py)

A judge's replies are kept in the run's folder judgements/<stage>. By default only the outcome is judged, nothing about
how it came about. PPO brings a critic, which begins as the reward model where there is one, else as the policy (Ouyang
et al. 2022); with `critic: shared` it is a head of the policy, which is taken off again when the model is saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sekkei.engine.request import Completion
from sekkei.evals.reasoning import answer_text
from sekkei.judge.reward import JudgeReward, Reading
from sekkei.judge.rubric import load_rubric
from sekkei.llm.open import LLMConfig, open_llm
from sekkei.model.heads import with_heads
from sekkei.model.transformer import Transformer
from sekkei.objectives.ahead import OwnCopy
from sekkei.objectives.grpo import GRPO
from sekkei.objectives.judged import Asked, Judged
from sekkei.objectives.online_dpo import OnlineDPO
from sekkei.objectives.ppo import PPO
from sekkei.objectives.rollout import Group
from sekkei.objectives.tool_use import CalculatorTool
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import TuneConfig
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.problems import asker
from sekkei.stages.run import Figures, Run
from sekkei.stages.sft import SAMPLE_TURNS, asked_file, own_file
from sekkei.stages.training import Training, autocast_dtype, sample_hook
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
        judges = (self.tune.scored_by, None if self.tune.judge is None else self.tune.judge.stage)
        return ("tokenizer", self.start, *(name for name in judges if name is not None))

    @property
    def config(self) -> Any:
        tune = self.tune
        watched = {"samples_every": self.recipe.eval.samples_every}
        tasks = {"chain": self.recipe.data.chain, "calculator": self.recipe.data.calculator}
        asked = {"form": tune.form, "rewards": tune.rewards, "file": asked_file(tune.path), **tasks}
        if tune.judge is not None:
            asked["judge"] = {"judge": tune.judge, "rubric": own_file(tune.judge.rubric)}
        return {tune.kind: tune.config, **asked, "lora": tune.lora, "eval": watched}

    def run(self, run: Run, out: Path) -> Figures:
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        with judge_of(run, self.name, self.tune, tokenizer) as judged:
            return self._run(run, out, tokenizer, judged)

    def _run(self, run: Run, out: Path, tokenizer: Tokenizer, judged: Judged | None) -> Figures:
        config, kind = self.tune.config, self.tune.kind
        training = self._training(run)
        tools = [CalculatorTool(tokenizer, config.max_calls)] if getattr(config, "tool", "none") != "none" else []
        problems = asker(self.recipe, self.name, tokenizer)
        objective = OBJECTIVES[kind](problems, config, (tokenizer.end_id,), *tools, judged=judged)
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
        if "reference" in config.needs and self.tune.lora is None:
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


@contextlib.contextmanager
def judge_of(run: Run, name: str, tune: TuneConfig, tokenizer: Tokenizer) -> Iterator[Judged | None]:
    """Who reads the answers of a stage, if anybody does: rank 0 asks, and every rank has the verdicts.

    Raises:
        UserError: the judge, or its rubric, cannot be opened.
    """
    if tune.judge is None:
        yield None
        return
    settings, first = tune.judge, run.ranks.first

    def shown(completion: Completion) -> str | None:
        said = parse_reply(answer_text(tokenizer, completion, tune.form)).content.strip()
        return said if said and completion.finish_reason == "stop" else None

    with contextlib.ExitStack() as held:
        judge: JudgeReward | None = None
        if first:
            spec = settings.by if settings.stage is None else f"{run.folder}#{settings.stage}"
            llm = open_llm(LLMConfig(spec=spec, concurrency=settings.concurrency))
            reading = Reading(
                how=settings.how,
                rubric=load_rubric(None if settings.rubric is None else Path(settings.rubric)),
                opponents=settings.opponents,
                concurrency=settings.concurrency,
                max_tokens=settings.max_tokens,
            )
            judge = held.enter_context(JudgeReward(llm, reading, run.folder / "judgements" / name))

        def graded(asked: Asked) -> Any:
            assert judge is not None
            return judge.grade(asked)

        def grade(asked: Asked) -> Any:
            return run.ranks.first_does(partial(graded, asked))

        yield Judged(grade, shown, settings.weight, tune.config.reward_errors)


def rollout_table(groups: list[Group], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Some answers of the last rollout with their rewards and the hash of the weights that drew them."""
    return [
        {
            "prompt": tokenizer.decode(group.prompt.ids),
            "text": tokenizer.decode(completion.token_ids),
            "reward": figures["reward"],
            "weights_hash": completion.weights_hash,
        }
        for group in groups[:SHOWN_GROUPS]
        for completion, figures in list(zip(group.completions, group.figures, strict=True))[:SHOWN_ANSWERS]
    ]
