"""Models out to Hugging Face folders and GGUF files, and Hugging Face folders in.

    runs/laptop ──export──> my-model/   config.json, *.safetensors, generation_config.json, tokenizer.json,
                                        tokenizer_config.json, chat_template.jinja       (transformers, vLLM, sekkei)
    my-llama/   ──import──> runs/llama  recipe.yaml, tokenizer/, sft/model/              (chat, serve, judge)

A model that was only pretrained is exported without a chat template, so that nobody takes it for an assistant. Texts
begin with <|bos|> in training: the exported tokenizer.json puts it before a text (a post-processor); the chat template
writes it itself, and is read without that. A special token that is spelled out in a text is that token to others'
readers, characters to ours. It does not handle adapters beside a model (merge them first), value or reward heads (they
are left out), or fetching.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from sekkei.core import atomic
from sekkei.core import config as loader
from sekkei.core.errors import UserError
from sekkei.core.stage_names import MAIN_LINE
from sekkei.llm.run_folder import chats, choose_stage
from sekkei.model.config import ModelConfig
from sekkei.model.export_gguf import save_gguf
from sekkei.model.hf import MAX_SHARD_BYTES, load_hf, save_hf
from sekkei.serve.words import OwnWords, open_words, read_json
from sekkei.text.tokenizer import BOS
from sekkei.train.checkpoint import read_sealed, write_sealed

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)
BASE_STAGE = "pretrain.imported"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: the stage, its parameters, and the files' bytes."""

    stage: str
    parameters: int
    size: int


def export_hf(
    run_dir: Path,
    out: Path,
    stage: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Write a run's model as a Hugging Face folder, whole or not at all.

    Raises:
        UserError: no such model, or `out` already holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already holds something; choose another folder, or remove it first")
    stage, config, state = read_run(run_dir, stage)
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    bos, eos, pad = _marks(run_dir / "tokenizer")
    with atomic.new_folder(out) as aside:
        save_hf(aside, config, state, bos_id=bos, eos_id=eos, max_shard_bytes=max_shard_bytes)
        _copy_tokenizer(run_dir / "tokenizer", aside, with_template=chats(run_dir, stage))
        if isinstance(open_words(run_dir / "tokenizer"), OwnWords):
            _put_bos_first(aside)
        settings = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
        known = {key: value for key, value in settings.items() if value is not None}
        atomic.write_json(aside / "generation_config.json", read_json(aside / "generation_config.json") | known)
    size = sum(file.stat().st_size for file in out.iterdir())
    return Exported(stage=stage, parameters=sum(t.numel() for t in state.values()), size=size)


def export_gguf(run_dir: Path, out: Path, stage: str | None = None, *, dtype: torch.dtype = torch.float32) -> Exported:
    """Write a run's model as one GGUF file.

    Raises:
        UserError: as `export_hf`, and as `save_gguf`.
    """
    if out.exists():
        raise UserError(f"{out}: already exists; choose another name, or remove it first")
    stage, config, state = read_run(run_dir, stage)
    tokenizer = run_dir / "tokenizer"
    bos, eos, _ = _marks(tokenizer)
    template = tokenizer / "chat_template.jinja"
    save_gguf(
        out,
        config,
        {name: tensor.to(dtype) for name, tensor in state.items()},
        name=f"{run_dir.resolve().name}/{stage}",
        tokenizer_json=(tokenizer / "tokenizer.json").read_text(encoding="utf-8"),
        template=template.read_text(encoding="utf-8") if chats(run_dir, stage) and template.is_file() else None,
        bos_id=bos,
        eos_id=eos,
        bos_first=isinstance(open_words(tokenizer), OwnWords),
    )
    return Exported(stage=stage, parameters=sum(t.numel() for t in state.values()), size=out.stat().st_size)


def import_hf(folder: Path, run_dir: Path, stage: str | None = None) -> Exported:
    """Make a run folder of a Hugging Face folder.

    Args:
        stage: what it counts as; None: "sft" where it has a chat template, else a pretraining stage.
    Raises:
        UserError: it cannot be read, or is of a family that is not handled; `run_dir` already holds something.
    """
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"{run_dir}: already holds something; choose another folder, or remove it first")
    config, state = load_hf(folder)
    words = open_words(folder)
    if words.inner.get_vocab_size() > config.vocab_size:
        raise UserError(f"{folder}: its tokenizer has more tokens than the model's {config.vocab_size}")
    chosen = stage or ("sft" if words.chats else BASE_STAGE)
    if chosen not in MAIN_LINE and not chosen.startswith("pretrain."):
        raise UserError(f"stage {chosen}: must be {', '.join(MAIN_LINE)} or pretrain.NAME")
    state = {name: tensor.float() for name, tensor in state.items()}
    with atomic.new_folder(run_dir) as aside:
        if isinstance(words, OwnWords):
            words.tokenizer.save(aside / "tokenizer")
        else:  # config.json, which may alone name the end, stays behind
            _copy_tokenizer(folder, aside / "tokenizer", with_template=True)
            settings = read_json(aside / "tokenizer" / "generation_config.json")
            settings["eos_token_id"] = list(words.stop_tokens)
            atomic.write_json(aside / "tokenizer" / "generation_config.json", settings)
        write_sealed(aside / chosen / "model", state, {"config": loader.to_mapping(config), "heads": ["lm"]})
        atomic.write_json(aside / chosen / "done.json", {"key": "imported", "from": folder.resolve().name})
        pretrain = {"imported": {}} if chosen in MAIN_LINE else {chosen.removeprefix("pretrain."): {}}
        recipe = {"name": run_dir.resolve().name, "model": loader.to_mapping(config), "pretrain": pretrain}
        if chosen in MAIN_LINE:
            recipe[chosen] = {}
        atomic.write_text(aside / "recipe.yaml", json.dumps(recipe, indent=1) + "\n")  # JSON is YAML
    size = sum(file.stat().st_size for file in run_dir.rglob("*") if file.is_file())
    return Exported(stage=chosen, parameters=sum(t.numel() for t in state.values()), size=size)


def read_run(run_dir: Path, stage: str | None) -> tuple[str, ModelConfig, dict[str, Tensor]]:
    """Stage, config and the language model's tensors of a run.

    Raises:
        UserError: as `choose_stage`; a file is damaged.
    """
    stage = choose_stage(run_dir, stage)
    tensors, sealed = read_sealed(run_dir / stage / "model")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("value_head", "reward_head"))}
    return stage, loader.from_mapping(ModelConfig, sealed["config"], "model"), kept


def _marks(folder: Path) -> tuple[int | None, int | None, int | None]:
    """Ids of the marks of beginning, end and padding of a tokenizer folder."""
    inner = open_words(folder).inner
    settings: Mapping[str, Any] = read_json(folder / "tokenizer_config.json")
    marks = (settings.get(f"{name}_token") for name in ("bos", "eos", "pad"))
    texts = (mark.get("content") if isinstance(mark, dict) else mark for mark in marks)
    bos, eos, pad = (inner.token_to_id(text) if text else None for text in texts)
    return bos, eos, pad


def _copy_tokenizer(source: Path, target: Path, with_template: bool) -> None:
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and (with_template or name != "chat_template.jinja"):
            shutil.copyfile(source / name, target / name)
    settings = read_json(target / "tokenizer_config.json")
    if not with_template and settings.pop("chat_template", None) is not None:
        atomic.write_json(target / "tokenizer_config.json", settings)


def _put_bos_first(folder: Path) -> None:
    """Make others' tokenizer encode as ours does: <|bos|> before a text (`add_special_tokens`), not before a chat."""
    path = folder / "tokenizer.json"
    inner = tokenizers.Tokenizer.from_file(str(path))
    inner.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, inner.token_to_id(BOS))]
    )
    atomic.write_text(path, inner.to_str(pretty=True))
    settings = read_json(folder / "tokenizer_config.json")
    atomic.write_json(folder / "tokenizer_config.json", settings | {"bos_token": BOS, "add_bos_token": True})
