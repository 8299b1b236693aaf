"""A stage's finished model: `<stage>/model/`, sealed tensors plus the config that rebuilds the module."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from sekkei.core import config as loader
from sekkei.core import dist
from sekkei.core.errors import UserError
from sekkei.model.config import ModelConfig, RopeScaling
from sekkei.model.heads import with_heads
from sekkei.model.lora import merge_lora, save_lora
from sekkei.model.transformer import Head, Transformer
from sekkei.stages.training import Training
from sekkei.train.checkpoint import read_sealed, write_sealed
from sekkei.train.loop import load_model as copy_weights


def save_model(model: Transformer, folder: Path) -> None:
    """Write weights and config, atomically."""
    heads = [name for name in ("lm", "value", "reward") if getattr(model, f"{name}_head") is not None]
    write_sealed(folder, dict(model.named_parameters()), {"config": loader.to_mapping(model.config), "heads": heads})


def save_trained(training: Training, out: Path, heads: Collection[Head] | None = None) -> None:
    """Write what a stage has trained as `<out>/model`, by the first rank; all take part in gathering it.

    An adapter is written beside it, as `<out>/adapter`, and folded in.

    Args:
        heads: those that stay; None: all.
    """
    model = training.model()
    if training.run.ranks.first:
        if training.lora is not None:
            save_lora(out / "adapter", model, training.lora, training.run.recipe.name)
            model = merge_lora(model)
        save_model(model if heads is None else with_heads(model, heads), out / "model")
    dist.barrier()


def load_model(folder: Path, rescaled: RopeScaling | None = None) -> Transformer:
    """Read what `save_model` wrote, in float32 on the CPU.

    Args:
        rescaled: how positions are rescaled from here on; None: as they were.
    Raises:
        UserError: the files are missing or damaged.
    """
    try:
        tensors, state = read_sealed(folder)
    except UserError as error:
        what = str(error).partition(";")[0]  # its remedy is that of a checkpoint
        raise UserError(f"{what}; run the recipe again with --from {folder.parent.name}") from None
    config = loader.from_mapping(ModelConfig, state["config"], "model")
    if rescaled is not None:
        config = replace(config, rope_scaling=rescaled)
    heads: Collection[Head] = state["heads"]
    with torch.device("meta"):
        model = Transformer(config, heads)
    model = model.to_empty(device="cpu")
    if config.tied_embeddings and model.lm_head is not None and model.embed is not None:
        model.lm_head.weight = model.embed.weight
    copy_weights(model, tensors)
    return model
