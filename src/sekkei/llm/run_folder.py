"""Open the model of a run folder for answering: which stage's model it is, its weights, its tokenizer.

    runs/laptop/recipe.yaml, tokenizer/, <stage>/done.json, <stage>/model/      (docs/design.md, section 5)

It reads only; a folder that a run is writing to may be opened, since finished stages no longer change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sekkei.core import stage_names
from sekkei.core.config import read_yaml
from sekkei.core.errors import UserError
from sekkei.llm.engine import EngineBackend

if TYPE_CHECKING:
    from sekkei.model.transformer import Transformer


def choose_stage(run_dir: Path, wanted: str | None = None) -> str:
    """The stage whose model to load: `wanted`, or the newest finished one.

    Raises:
        UserError: no run there, no finished model, or `wanted` is not one of them.
    """
    recipe = run_dir / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(f"{run_dir}: holds no run (recipe.yaml is missing); sekkei run writes one")
    finished = [
        name
        for name in stage_names.answering_stages(read_yaml(recipe))
        if (run_dir / name / "done.json").is_file() and (run_dir / name / "model").is_dir()
    ]
    if not finished:
        raise UserError(f"{run_dir}: no stage has finished a model yet; go on with sekkei run {recipe}")
    if wanted is None:
        return finished[0]
    if wanted not in finished:
        raise UserError(f"stage {wanted}: {run_dir} has no finished model of it; it has {', '.join(finished)}")
    return wanted


def chats(run_dir: Path, stage: str) -> bool:
    """Whether a stage's model answers in turns; others go on with a text."""
    return stage_names.chats(read_yaml(run_dir / "recipe.yaml"), stage)


def open_run(run_dir: Path, stage: str | None = None, max_batch: int = 64) -> EngineBackend:
    """The newest finished model of a run (or that of `stage`), on the CPU in float32, ready to answer.

    Raises:
        UserError: as `choose_stage`, or a file is missing or damaged.
    """
    chosen = choose_stage(run_dir, stage)
    from sekkei.engine.engine import Engine
    from sekkei.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(run_dir / "tokenizer")
    engine = Engine(read_model(run_dir / chosen / "model"), max_batch=max_batch)
    return EngineBackend(engine, tokenizer, base=not chats(run_dir, chosen), name=f"{run_dir}#{chosen}")


def read_model(folder: Path) -> Transformer:
    """The model that a stage wrote (stages/model_artifact.py), with its heads, on the CPU in float32, for answering.

    Raises:
        UserError: a file is missing or damaged.
    """
    import torch

    from sekkei.core.config import from_mapping
    from sekkei.model.config import ModelConfig
    from sekkei.model.transformer import Transformer
    from sekkei.train.checkpoint import read_sealed
    from sekkei.train.loop import load_model

    tensors, state = read_sealed(folder)
    config = from_mapping(ModelConfig, state["config"], "model")
    with torch.device("meta"):
        model = Transformer(config, state["heads"])
    model = model.to_empty(device="cpu")
    if config.tied_embeddings and model.lm_head is not None and model.embed is not None:
        model.lm_head.weight = model.embed.weight
    with torch.no_grad():
        load_model(model, tensors)
    return model.eval()
