"""Does retrieval keep a model from inventing? Questions on docstrings, answerable and not, alone and with documents.

    documents/rag/…            the documents and their index
    documents/answers.json     every question with its answers

Three arms: the model alone, with the best passage, and with it where enough speaks for the passage (rag/study.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from sekkei.core import atomic
from sekkei.engine.engine import Engine
from sekkei.llm.engine import EngineBackend
from sekkei.llm.face import LLM
from sekkei.rag.study import StudyConfig, docstring_study, flat_figures
from sekkei.recipes.documents import DocumentsConfig
from sekkei.recipes.recipe import Recipe
from sekkei.stages.corpus import read_facts
from sekkei.stages.model_artifact import load_model
from sekkei.stages.run import Figures, Run
from sekkei.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class DocumentsStage:
    """Figures documents.<arm>.*"""

    recipe: Recipe
    name: str = "documents"
    version: int = 1
    together: bool = False
    packages: ClassVar[Mapping[str, str]] = {"lancedb": "rag"}  # said before the first stage begins

    @property
    def asked(self) -> DocumentsConfig:
        assert self.recipe.documents is not None
        return self.recipe.documents

    @property
    def stage(self) -> str:
        asked = self.recipe.asked(self.asked.stage)
        assert asked is not None
        return asked

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data", "tokenizer", self.stage)

    @property
    def config(self) -> Any:
        return self.asked

    def run(self, run: Run, out: Path) -> Figures:
        model = load_model(run.artifact(self.stage) / "model").to(run.device)
        backend = EngineBackend(Engine(model), Tokenizer.load(run.artifact("tokenizer")), name=self.stage)
        config = StudyConfig(plain=True, max_tokens=self.asked.max_tokens)
        count, seed = self.asked.questions, self.recipe.seed
        outcomes = docstring_study(LLM(backend), out / "rag", read_facts(run.artifact("data")), count, seed, config)
        atomic.write_json(out / "answers.json", [asdict(outcome) for outcome in outcomes])
        return flat_figures(outcomes, self.name)
