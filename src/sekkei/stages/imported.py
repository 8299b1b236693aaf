"""The beginning of a life that does not begin from nothing: the weights of a Hugging Face folder (recipes/imported.py).

imported/model/     as any stage's model; pretraining, or the first tuning stage, goes on with it
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sekkei.model.hf import load_hf
from sekkei.recipes.imported import CONFIG, folder_digest, read_imported
from sekkei.recipes.recipe import IMPORTED, Recipe
from sekkei.serve.opened import build_from
from sekkei.stages.model_artifact import save_model
from sekkei.stages.run import Figures, Run


@dataclass(frozen=True)
class ImportedStage:
    """Takes in the folder's weights, with a row for each special token that its vocabulary lacked."""

    recipe: Recipe
    name: str = IMPORTED
    version: int = 1
    together: bool = False
    reads: tuple[str, ...] = ("tokenizer",)

    @property
    def config(self) -> Any:
        return {"weights": self._weights, "model": self.recipe.model}

    @cached_property
    def _weights(self) -> str:
        """Digest of what the folder holds of a model, read once in a run."""
        return folder_digest(self._folder, CONFIG, "*.safetensors", "*.safetensors.index.json")

    @property
    def _folder(self) -> Path:
        assert self.recipe.imported is not None
        return Path(self.recipe.imported)

    def run(self, run: Run, out: Path) -> Figures:
        taken, (_, state) = read_imported(self._folder), load_hf(self._folder)
        for name in {"embed.weight", "lm_head.weight"} & state.keys():
            state[name] = taken.grown(state[name])
        model = build_from(taken.model, state, torch.float32, torch.device("cpu"))
        save_model(model, out / "model")
        size = sum(parameter.numel() for parameter in model.parameters())
        return {"imported.parameters": float(size), "imported.added_tokens": float(len(taken.added))}
