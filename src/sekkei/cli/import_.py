"""`sekkei import`: a Hugging Face folder as a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(help="folder with config.json, *.safetensors and tokenizer.json")],
    run_dir: Annotated[Path, typer.Argument(help="the new run folder, as runs/llama")],
    stage: Annotated[
        str | None, typer.Option(help="what it counts as [default: sft with a chat template, else pretrain.imported]")
    ] = None,
) -> None:
    """Take in a dense Llama 3 or Qwen 3 checkpoint. Nothing is fetched: the folder must be on the disk.

    The new folder can be chatted with, served, judged and exported again. To serve a checkpoint without taking it in,
    name its folder: sekkei serve FOLDER.

    \b
    Examples:
      sekkei import ./Llama-3.2-1B-Instruct runs/llama
      sekkei chat runs/llama
    """
    from sekkei.core.progress import Console
    from sekkei.serve.exchange import import_hf

    done = import_hf(folder, run_dir, stage)
    Console().say(f"{run_dir}: {done.stage}, {done.parameters:,} parameters; talk to it with sekkei chat {run_dir}")
