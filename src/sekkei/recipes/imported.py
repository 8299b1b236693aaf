"""A checkpoint in Hugging Face's layout as the beginning of a life: its shape and tokenizer, made ready for our texts.

    imported: ./Qwen3-0.6B     the recipe's `model` and `tokenizer.vocab_size` are then the folder's

Our documents and turns are framed by nine special tokens (text/tokenizer.py). Those that the vocabulary lacks are added
behind its last token, and a model whose embedding has no spare rows grows by them. A new token begins as the one that
did its work before, so that the first step is no shock: <|bos|> as the folder's bos_token, <|end|> as its eos_token,
<|pad|> as its pad_token; the others as the mean of all rows (Hewitt 2021, "Initializing New Word Embeddings for
Pretrained Language Models"). Text is cut and encoded as the folder's tokenizer does it; turns follow our template.

It does not handle tokenizers other than byte-level BPE, models other than dense Llama and Qwen3 (model/hf.py), or the
folder's own chat template: a model that knew other turns learns ours. What `sekkei export` wrote comes back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sekkei.core import atomic
from sekkei.core import config as loader
from sekkei.core.errors import ConfigError, UserError
from sekkei.model.config import ModelConfig
from sekkei.model.hf import config_from_hf
from sekkei.serve.words import OwnWords, open_words, read_json
from sekkei.text.tokenizer import BOS, END, PAD, SPECIAL, Tokenizer, default_template

CONFIG = "config.json"
WORDS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a folder begins a life with.

    model: its shape, with a row for every token. tokenizer: with all special tokens.
    added: new token -> the token whose row it begins with, None: the mean of all.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    added: Mapping[int, int | None]

    def grown(self, weight: Tensor) -> Tensor:
        """The embedding, or the head, [V, D] of the checkpoint with the rows of the new tokens, [V', D]."""
        mean = weight.float().mean(0).to(weight.dtype)
        rows = torch.cat([weight, mean.expand(self.model.vocab_size - len(weight), -1)])
        for token, like in self.added.items():
            rows[token] = mean if like is None else weight[like]
        return rows


def read_imported(folder: Path) -> Imported:
    """Read config and tokenizer of a folder; not its weights.

    Raises:
        ConfigError: under the key `imported`, what is missing there or cannot be taken in.
    """
    if not (folder / CONFIG).is_file():
        what = "is a run: write its model with sekkei export" if (folder / "recipe.yaml").is_file() else "has none"
        raise ConfigError("imported", f"needs a Hugging Face folder with {CONFIG}, *.safetensors and tokenizer.json; "
                          f"{folder} {what}")  # fmt: skip
    try:
        model, words = config_from_hf(read_json(folder / CONFIG)), open_words(folder)
    except UserError as error:
        raise ConfigError("imported", f"{folder}: {error}") from None
    if isinstance(words, OwnWords):
        tokenizer, added = words.tokenizer, dict[int, int | None]()
    else:
        inner = words.inner
        written = json.loads(inner.to_str())
        if written["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(written["decoder"]):
            raise ConfigError("imported", f"{folder}: its tokenizer is no byte-level BPE, the only kind handled")
        marks = {BOS: words.marks["bos_token"], END: words.marks["eos_token"], PAD: words.marks["pad_token"]}
        like = {END: words.stop_tokens[0]} | {ours: inner.token_to_id(mark) for ours, mark in marks.items() if mark}
        missing = [token for token in SPECIAL if inner.token_to_id(token) is None]
        inner.post_processor = None  # what it puts around a text; ours is put there by hand
        inner.add_special_tokens(missing)
        added = {inner.token_to_id(token): like.get(token) for token in missing}
        tokenizer = Tokenizer(inner, default_template())
    if tokenizer.vocab_size - len(added) > model.vocab_size:
        raise ConfigError("imported", f"{folder}: its tokenizer has {tokenizer.vocab_size - len(added)} tokens, its "
                          f"model {model.vocab_size}: they do not belong together")  # fmt: skip
    rows = max(model.vocab_size, tokenizer.vocab_size)
    return Imported(model=replace(model, vocab_size=rows), tokenizer=tokenizer, added=added)


def folder_digest(folder: Path, *patterns: str) -> str:
    """Of a folder's files of these names: another content is another stage."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return atomic.sha256_json([[file.name, atomic.sha256(file)] for file in files])


def with_imported(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's keys, with those of the folder that it begins with, if it names one.

    Raises:
        ConfigError: as `read_imported`.
    """
    folder = data.get("imported")
    if not isinstance(folder, str):
        return dict(data)
    found = read_imported(Path(folder)).model
    tokenizer = {**(data.get("tokenizer") or {}), "vocab_size": found.vocab_size}
    return {**data, "model": loader.to_mapping(found), "tokenizer": tokenizer}
