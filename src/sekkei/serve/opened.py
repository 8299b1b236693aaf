"""Open a model for answering: of a run folder, or of a Hugging Face folder.

    runs/laptop       recipe.yaml, tokenizer/, <stage>/model/       the newest finished stage, or the one that is named
    my-llama          config.json, *.safetensors, tokenizer.json    dense Llama 3 and Qwen 3 (model/hf.py)

It reads only. It does not fetch anything: a folder must be on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sekkei.core.config import from_mapping
from sekkei.core.errors import UserError
from sekkei.llm.run_folder import chats, choose_stage
from sekkei.model.config import ModelConfig
from sekkei.model.hf import load_hf
from sekkei.model.transformer import Transformer
from sekkei.serve.words import ForeignWords, OwnWords, open_words
from sekkei.train.checkpoint import read_sealed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that can answer, with the words it speaks.

    name: what clients call it. stage: of a run, else None.
    """

    name: str
    model: Transformer
    words: OwnWords | ForeignWords
    stage: str | None = None


def open_model(folder: Path, stage: str | None = None, *, dtype: str = "float32", device: str = "auto") -> Opened:
    """The model of a folder, ready to answer.

    Args:
        stage: of a run folder. dtype: of the weights. device: "auto" takes a GPU where there is one.
    Raises:
        UserError: no model there, or it cannot be read; names what is missing.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype}: must be one of {', '.join(DTYPES)}")
    where = _device(device)
    if (folder / "config.json").is_file():
        if stage is not None:
            raise UserError(f"stage {stage}: {folder} is a Hugging Face folder, which has no stages")
        config, state = load_hf(folder)
        words = open_words(folder)
        name = folder.resolve().name
    else:
        stage = choose_stage(folder, stage)
        tensors, sealed = read_sealed(folder / stage / "model")
        config = from_mapping(ModelConfig, sealed["config"], "model")
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith(("value_head", "reward_head"))}
        words = open_words(folder / "tokenizer", chats(folder, stage))
        name = f"{folder.resolve().name}/{stage}"
    if words.inner.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {words.inner.get_vocab_size()} tokens, the model {config.vocab_size}: "
            "they do not belong together"
        )
    return Opened(name=name, model=build_from(config, state, DTYPES[dtype], where), words=words, stage=stage)


def build_from(
    config: ModelConfig, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> Transformer:
    """A language model with these weights, without drawing random ones first."""
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tied_embeddings and model.lm_head is not None and model.embed is not None:
        model.lm_head.weight = model.embed.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in state:
                raise UserError(f"the model's file lacks the tensor {name}")
            parameter.copy_(state[name])
    return model.eval().requires_grad_(False)


def facts(opened: Opened) -> dict[str, Any]:
    """What a person wants to know of it before talking to it."""
    size = sum(parameter.numel() for parameter in opened.model.parameters())
    return {
        "name": opened.name,
        "parameters": size,
        "context": opened.model.config.max_context,
        "chats": opened.words.chats,
        "device": str(next(opened.model.parameters()).device),
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name}: cannot be used ({str(error).splitlines()[0]})") from None
    return device
