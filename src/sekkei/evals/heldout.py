"""Held-out bits per byte of a model on this machine, by domain: of its run's own held-out documents, or of a text.

    bits per byte = Σ -log2 p(token) / Σ bytes(token)          8 = no idea; comparable between tokenizers (bits.py)

Intervals resample documents. A text of one's own is parted into documents at empty lines where a part is at least
`PART` characters long; neighbours in one text are alike, so its interval is somewhat too narrow.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sekkei.core.config import read_yaml
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch
from sekkei.data.shards import Shard, open_shards
from sekkei.evals.ask import Progress, no_progress
from sekkei.evals.bits import document_bits
from sekkei.evals.local import LocalModel
from sekkei.evals.outcome import Outcome, ratio
from sekkei.llm.protocol import Usage
from sekkei.model.output import Output
from sekkei.objectives.conversations import records
from sekkei.parallel.ops import LocalOps
from sekkei.train.step import PlainStep

PART = 2000
HELD, TRAIN = ".heldout", ".train"


def evaluate_bits(
    local: LocalModel,
    documents: Mapping[str, Sequence[np.ndarray]],
    context: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Outcome:
    """Bits per byte of each domain's documents.

    Args:
        context: tokens of a window; None: the model's own.
        documents: ids by domain (`heldout_documents`, `text_documents`).
    Raises:
        ConfigError: the context is beyond the model's. UserError: a domain has no text.
    """
    most = local.model.config.max_context
    context = most if context is None else context
    if not 1 <= context <= most:
        raise ConfigError("context", f"got {context}, must be from 1 to the model's {most} tokens")
    device = next(local.model.parameters()).device
    step = PlainStep({"policy": local.model}, LocalOps(), device, None)

    def score(batch: Batch) -> Output:
        with torch.inference_mode():
            return step.score("policy", batch, frozenset({"logprobs"}), 1.0)

    figures, tokens, before, texts = {}, 0, 0, []
    for name, rows in documents.items():
        bits, sizes = document_bits(score, rows, context, local.token_bytes)
        if not sum(sizes):
            raise UserError(f"bpb: domain {name} has no text to read")
        figures[name] = ratio(bits, sizes, seed)
        before += len(rows)
        progress(before)
        tokens += sum(map(len, rows))
        texts += [(local.inner.decode(row.tolist(), skip_special_tokens=True),) for row in rows]
    return Outcome(
        task="bpb",
        items=before,
        figures=figures,
        settings={"context": context, "seed": seed, "documents": {name: len(rows) for name, rows in documents.items()}},
        usage=Usage(tokens, 0),
        texts=texts,
    )


def heldout_documents(local: LocalModel, tokens: int, seed: int) -> dict[str, list[np.ndarray]]:
    """The run's held-out documents, whole ones in a seeded order, of each domain until `tokens` are reached.

    Raises:
        UserError: the model is of no run, or the run has no token shards.
    """
    found = {}
    for name, shard in _shards(local, HELD).items():
        order = list(range(len(shard)))
        random.Random(derive_seed("held-out documents", seed, name)).shuffle(order)
        kept, total = [], 0
        for place in order:
            if total >= tokens:
                break
            kept.append(np.asarray(shard[place][: tokens - total]))
            total += len(kept[-1])
        if kept:
            found[name] = kept
    if not found:
        raise UserError(f"bpb: {local.run_dir} holds back no documents; give a text: bpb:FILE")
    return found


def text_documents(local: LocalModel, path: Path, tokens: int) -> dict[str, list[np.ndarray]]:
    """A text file as documents, at most `tokens` in all, under the name of the file.

    Raises:
        UserError: it cannot be read as UTF-8, or is empty.
    """
    parts = [""]
    for block in read_text(path).split("\n\n"):
        if len(parts[-1]) >= PART:
            parts.append("")
        parts[-1] += f"{block}\n\n"
    kept: list[np.ndarray] = []
    total = 0
    for part in parts:
        if part.strip() and total < tokens:
            kept.append(np.asarray(local.plain(part)[: tokens - total]))
            total += len(kept[-1])
    if not kept:
        raise UserError(f"{path}: holds no text")
    return {path.stem: kept}


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None


def training_texts(local: LocalModel) -> Iterator[str]:
    """Every document that the run's model was pretrained on, decoded; those of `data.sources` are among them.

    Raises:
        UserError: as `heldout_documents`.
    """
    for shard in _shards(local, TRAIN).values():
        for place in range(len(shard)):
            yield local.inner.decode(shard[place].tolist(), skip_special_tokens=True)


def tuning_files(local: LocalModel) -> list[str]:
    """Files of the user's own that tuning stages of the run may have learned from: conversations, pairs, problems."""
    if local.run_dir is None or local.stage.startswith("pretrain."):
        return []
    recipe: Any = read_yaml(local.run_dir / "recipe.yaml")
    parts = [recipe.get("sft"), recipe.get("preferences")]
    for stage in (recipe.get("tune") or {}).values():
        parts += [stage, *(part for part in stage.values() if isinstance(part, dict))]
    return list(dict.fromkeys(part["path"] for part in parts if part and part.get("path")))


def file_texts(path: str) -> Iterator[str]:
    """Every text in the records of such a file, whatever its format calls it.

    Raises:
        UserError: it is missing or damaged.
    """
    waiting: list[Any] = []
    for _, record in records(path):
        waiting.append(record)
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                yield value
            elif isinstance(value, Mapping):
                waiting += value.values()
            elif isinstance(value, Sequence):
                waiting += value


def _shards(local: LocalModel, side: str) -> dict[str, Shard]:
    """The run's shards of one side, by domain."""
    if local.run_dir is None:
        raise UserError(f"{local.name}: is of no run, so its own data are not known; give a text: bpb:FILE")
    folder = local.run_dir / "tokens" / "shards"
    if not folder.is_dir():
        raise UserError(f"{folder}: is not there; the run's own data are not known, give a text: bpb:FILE")
    return {name.removesuffix(side): shard for name, shard in open_shards(folder).items() if name.endswith(side)}
