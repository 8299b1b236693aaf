"""`sekkei export`: a run's model as a Hugging Face folder, or as one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sekkei.core.errors import UserError

DTYPES = ("float32", "bfloat16")


def command(
    run_dir: Annotated[Path, typer.Argument(help="folder of a run, as runs/laptop")],
    out: Annotated[Path, typer.Argument(help="a new folder, or a new file that ends in .gguf")],
    stage: Annotated[str | None, typer.Option(help="whose model: grpo, dpo, sft, pretrain.… [default: newest]")] = None,
    dtype: Annotated[str, typer.Option(help="of the matrices: float32 or bfloat16")] = "float32",
    shard_gb: Annotated[float, typer.Option(help="a weights file may grow to this many GB")] = 5.0,
) -> None:
    """Write a model where other tools open it: transformers, vLLM, llama.cpp.

    \b
    Examples:
      sekkei export runs/laptop my-model
      sekkei export runs/laptop my-model --stage sft --dtype bfloat16
      sekkei export runs/laptop my-model.gguf
      vllm serve ./my-model
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype}: must be {' or '.join(DTYPES)}")
    if shard_gb <= 0:
        raise UserError(f"--shard-gb={shard_gb}: must be above 0")
    import torch

    from sekkei.core.progress import Console
    from sekkei.serve.exchange import export_gguf, export_hf

    if out.suffix == ".gguf":
        done = export_gguf(run_dir, out, stage, dtype=getattr(torch, dtype))
    else:
        shard = int(shard_gb * 1e9)
        done = export_hf(run_dir, out, stage, dtype=getattr(torch, dtype), max_shard_bytes=shard)
    Console().say(f"{out}: {done.stage} of {run_dir}, {done.parameters:,} parameters, {done.size / 1e6:.1f} MB")
