"""Reinforcement learning with a verifiable reward: only whether the answer is right, nothing about how."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.seed import derive_seed
from sekkei.data.tasks import chain
from sekkei.engine.request import Completion
from sekkei.objectives.grpo import GRPO
from sekkei.objectives.rollout import Prompt
from sekkei.recipes.recipe import Recipe
from sekkei.stages.model_artifact import load_model, save_trained
from sekkei.stages.run import Figures, Run
from sekkei.stages.sft import SAMPLE_TURNS
from sekkei.stages.training import Training, sample_hook
from sekkei.text.chat import encode_prompt, parse_reply
from sekkei.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class GRPOStage:
    """GRPO from the model of the stage before (DPO where there is one, else SFT)."""

    recipe: Recipe
    before: str
    name: str = "grpo"
    version: int = 1
    together: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("tokenizer", self.before)

    @property
    def config(self) -> Any:
        watched = {"samples_every": self.recipe.eval.samples_every}
        return {"grpo": self.recipe.grpo, "chain": self.recipe.data.chain, "eval": watched}

    def run(self, run: Run, out: Path) -> Figures:
        config = self.recipe.grpo
        assert config is not None
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        start = run.artifact(self.before) / "model"
        policy = load_model(start)
        others = {"reference": load_model(start)} if "reference" in config.needs else {}
        training = Training(run, self.name, policy, config.loop, context=256, others=others)
        prompts = [encode_prompt(tokenizer, [{"role": "user", "content": turn}]) for turn in SAMPLE_TURNS]
        every = min(run.recipe.eval.samples_every, max(1, config.steps // 4))
        objective = GRPO(lambda index: self.prompt(index, tokenizer), config, (tokenizer.end_id,))
        hooks = [(every, sample_hook(training, tokenizer, prompts))]
        training.train(out, objective, config.steps, config.optim, hooks)
        save_trained(training, out)
        return {"grpo.rollouts": config.steps * config.prompts * config.samples}

    def prompt(self, index: int, tokenizer: Tokenizer) -> Prompt:
        """Problem number `index` of the training side, with its judge."""
        chains = self.recipe.data.chain
        rng = random.Random(derive_seed("grpo", self.recipe.seed, index))
        problem = chain.sample_problem(rng, rng.choice(chains.train_operations), "train", chains)

        def judge(completion: Completion) -> Mapping[str, float]:
            ended = completion.finish_reason == "stop"
            text = tokenizer.decode(completion.token_ids[:-1] if ended else completion.token_ids)
            right = float(ended and chain.verify(problem, text))
            return {"reward": right, "steps_written": chain.count_steps(parse_reply(text).reasoning or "")}

        return Prompt(tuple(encode_prompt(tokenizer, chain.prompt(problem))), judge)
