"""The calculator exam: held-out sums, worked through by the agent's whole loop with the newest model.

agent/runs.jsonl      every conversation: question, calls, results, answer, and whether it is right
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.agent.exam import calculator_exam, held_out_tasks
from sekkei.core import atomic
from sekkei.data.tasks import calculator
from sekkei.engine.engine import Engine
from sekkei.llm.engine import EngineBackend
from sekkei.llm.face import LLM
from sekkei.recipes.recipe import Recipe
from sekkei.stages.model_artifact import load_model
from sekkei.stages.run import Figures, Run
from sekkei.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class AgentStage:
    """Figures agent.calculator.*, of the last stage of the main line."""

    recipe: Recipe
    asked: str
    name: str = "agent"
    version: int = 1
    together: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("tokenizer", self.asked)

    @property
    def config(self) -> Any:
        return {"tasks": self.recipe.eval.tools, "calculator": self.recipe.data.calculator}

    def run(self, run: Run, out: Path) -> Figures:
        model = load_model(run.artifact(self.asked) / "model").to(run.device)
        backend = EngineBackend(Engine(model), Tokenizer.load(run.artifact("tokenizer")), name=self.asked)
        tasks = held_out_tasks(self.recipe.data.calculator, self.recipe.eval.tools, self.recipe.seed)
        with run.console.bar(self.name, 1) as bar:
            figures, outcomes = calculator_exam(LLM(backend), tasks)
            bar.update(1, "calculator")
        lines = [
            {
                "question": task.question,
                "right": calculator.verify(task, outcome.answer),
                "calls": outcome.calls,
                "stopped": outcome.stopped,
                "messages": outcome.messages,
            }
            for task, outcome in zip(tasks, outcomes, strict=True)
        ]
        atomic.write_text(out / "runs.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return {f"agent.calculator.{name}": value for name, value in figures.items()}
