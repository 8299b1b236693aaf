"""The scorecard: the run's own models on held-out questions, by the rubric of judge/rubric.yaml.

    judge/answers.<stage>.json    what each model said, and what programs found right in it
    judge/scorecards.json, scorecards.html

Rows that a program or the run's reward model can fill are filled; of the others the page says that they need an
external judge, and how to give one: `judge.judges` here, or later `sekkei judge run` on the same files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.engine.engine import Engine
from sekkei.judge.command import Order, judged
from sekkei.judge.verified import answered, checked_questions
from sekkei.llm.engine import EngineBackend
from sekkei.llm.face import LLM
from sekkei.llm.reward import open_reward
from sekkei.recipes.judge import JudgeConfig
from sekkei.recipes.recipe import Recipe
from sekkei.stages.corpus import read_facts
from sekkei.stages.model_artifact import load_model
from sekkei.stages.run import Figures, Run
from sekkei.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class JudgeStage:
    """Figures judge.<stage>.<criterion>, with their intervals."""

    recipe: Recipe
    name: str = "judge"
    version: int = 1
    together: bool = False

    @property
    def judge(self) -> JudgeConfig:
        assert self.recipe.judge is not None
        return self.recipe.judge

    @property
    def stages(self) -> list[str]:
        """Whose models answer."""
        named = (self.recipe.asked(name) for name in self.judge.stages)
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def reads(self) -> tuple[str, ...]:
        scorer = () if self.judge.scored_by is None else (self.judge.scored_by,)
        return ("data", "tokenizer", *self.stages, *scorer)

    @property
    def config(self) -> Any:
        return {"judge": self.judge, "stages": self.stages, "chain": self.recipe.data.chain}

    def run(self, run: Run, out: Path) -> Figures:
        tokenizer, facts = Tokenizer.load(run.artifact("tokenizer")), read_facts(run.artifact("data"))
        questions = checked_questions(self.recipe.data.chain, facts, self.recipe.seed, self.judge.questions)
        files = []
        with run.console.bar(self.name, len(self.stages)) as bar:
            for done, stage in enumerate(self.stages, start=1):
                model = load_model(run.artifact(stage) / "model").to(run.device)
                backend = EngineBackend(Engine(model), tokenizer, name=stage)
                files.append(out / f"answers.{stage}.json")
                atomic.write_json(files[-1], answered(LLM(backend), questions, stage, self.recipe.eval.max_tokens))
                bar.update(done, stage)
        scorers = () if self.judge.scored_by is None else (open_reward(run.folder, self.judge.scored_by),)
        found = judged(Order(answers=files, judges=self.judge.judges, scorers=scorers), None, out)
        assert found is not None
        figures: Figures = {}
        for card in found.cards:
            measured = {**card.criteria, **{f"reward_{name}": value for name, value in card.rewards.items()}}
            for name, estimate in measured.items():
                parts = {"": estimate.value, ".low": estimate.low, ".high": estimate.high}
                figures |= {f"judge.{card.name}.{name}{end}": x for end, x in parts.items() if math.isfinite(x)}
        if found.missing:
            run.console.say(f"  judge: {', '.join(found.missing)}: no program can tell; judge.judges names who can")
        return figures
