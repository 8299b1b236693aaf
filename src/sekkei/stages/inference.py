"""What a finished model makes of more tokens at inference time: examples, thinking, votes, choosing, search.

    inference.<stage>/rows.json, study.svg, study.md      every strategy: accuracy and its interval, tokens, calls
    inference.<stage>/budget.json                         accuracy against tokens of thinking; where the stage learned
                                                          from problems of one's own: on those of `eval.path`

The model is asked in one process, all problems of a strategy together; seeds belong to requests, so the figures do
not depend on which of them meet in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.engine.engine import Engine
from sekkei.evals.budget import BudgetConfig, budget_curve, budget_figures
from sekkei.evals.reasoning import Exam, Problem, held_out_problems
from sekkei.llm.engine import EngineBackend
from sekkei.llm.face import LLM
from sekkei.llm.reward import open_reward
from sekkei.prompting import picture, scorers, study
from sekkei.recipes.inference import InferenceConfig
from sekkei.recipes.recipe import Recipe
from sekkei.stages.model_artifact import load_model
from sekkei.stages.problems import held_out_own
from sekkei.stages.run import Figures, Run
from sekkei.stages.sft import asked_file
from sekkei.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class InferenceStage:
    """The study of one stage's model. key: under `inference` in the recipe. asked: the stage that it means."""

    recipe: Recipe
    key: str
    asked: str
    version: int = 1
    together: bool = False

    @property
    def name(self) -> str:
        return f"inference.{self.asked}"

    @property
    def settings(self) -> InferenceConfig:
        return self.recipe.inference[self.key]

    @property
    def reads(self) -> tuple[str, ...]:
        judge = () if self.settings.scored_by is None else (self.settings.scored_by,)
        return ("tokenizer", self.recipe.stage_of(self.asked), *judge)

    @property
    def config(self) -> Any:
        asked = {"problems": self.recipe.eval.problems, "form": self.recipe.form_of(self.asked)}
        if self._own_problems:
            asked["file"] = asked_file(self.recipe.eval.path)
        return {"inference": self.settings, "chain": self.recipe.data.chain, **asked}

    @property
    def _own_problems(self) -> bool:
        return self.settings.budget is not None and self.recipe.asks_own(self.asked)

    def run(self, run: Run, out: Path) -> Figures:
        engine = Engine(load_model(run.artifact(self.recipe.stage_of(self.asked)) / "model").to(run.device))
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        figures: Figures = {}
        if self.settings.study is not None:
            figures |= self._strategies(
                run, out, EngineBackend(engine, tokenizer, name=self.asked), self.settings.study
            )
        if self.settings.budget is not None:
            figures |= self._thinking(out, engine, tokenizer, self.settings.budget)
        return figures

    def _strategies(self, run: Run, out: Path, backend: EngineBackend, asked: study.StudyConfig) -> Figures:
        scored_by, scorer = self.settings.scored_by, None
        if scored_by is not None:
            scorer = scorers.reward(open_reward(run.folder, scored_by).score_reply)
        with run.console.bar(self.name, study.units(asked, scorer is not None)) as bar:
            rows = study.chain_study(LLM(backend), self.recipe.data.chain, asked, scorer, scored_by or "reward", bar)
        atomic.write_json(out / "rows.json", study.rows_as_data(rows))
        atomic.write_text(out / "study.svg", picture.study_svg(rows))
        atomic.write_text(out / "study.md", study.table(rows) + "\n")
        return study.figures(rows, self.name)

    def _thinking(self, out: Path, engine: Engine, tokenizer: Tokenizer, asked: BudgetConfig) -> Figures:
        chains, sizes, seed = self.recipe.data.chain, self.recipe.eval, self.recipe.seed
        form, problems = self.recipe.form_of(self.asked), list[Problem]()
        if self._own_problems:
            problems += held_out_own(self.recipe, tokenizer, form)
        else:
            problems += held_out_problems(chains, chains.held_out_operations, sizes.problems, seed)
        exam = Exam(engine, tokenizer, problems, sizes.max_tokens, form)
        rows = budget_curve(exam, asked, seed)
        atomic.write_json(out / "budget.json", rows)
        return {f"{self.name}.{name}": value for name, value in budget_figures(rows).items()}
