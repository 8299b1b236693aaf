"""`sekkei serve`: a model over HTTP, as OpenAI's API speaks, with a chat page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sekkei.core.errors import UserError

KEY = "SEKKEI_API_KEY"


def command(
    folder: Annotated[Path, typer.Argument(help="folder of a run, or a Hugging Face folder (Llama 3, Qwen 3)")],
    stage: Annotated[str | None, typer.Option(help="whose model of a run [default: newest]")] = None,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar=KEY, help="bearer key that clients must send")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="further name that clients call this server by")] = None,
    dtype: Annotated[str, typer.Option(help="of the weights: float32 or bfloat16")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    max_batch: Annotated[int, typer.Option(help="samples that run at once")] = 64,
    cache_gb: Annotated[float, typer.Option(help="memory of keys and values, GiB")] = 2.0,
    max_waiting: Annotated[int, typer.Option(help="samples that may wait; more get 429")] = 256,
    max_requests: Annotated[int, typer.Option(help="requests at once; more get 429")] = 256,
    max_body_mb: Annotated[float, typer.Option(help="size of a request; larger ones get 413")] = 4.0,
    grace: Annotated[float, typer.Option(help="seconds to finish running answers at the end")] = 60.0,
    lora: Annotated[list[str] | None, typer.Option(help="NAME=DIR: a LoRA adapter, asked for by name")] = None,
    embedder: Annotated[str | None, typer.Option(help="for /v1/embeddings: a name that sekkei rag knows")] = None,
) -> None:
    """Answer over HTTP: chat page at /, OpenAI's API under /v1, Prometheus at /metrics.

    \b
    Examples:
      sekkei serve runs/laptop
      sekkei serve ./Llama-3.2-1B-Instruct --dtype bfloat16 --port 8001
      sekkei serve runs/laptop --lora polite=adapters/polite --lora terse=adapters/terse
      SEKKEI_API_KEY=secret sekkei serve runs/laptop --host 0.0.0.0
      curl http://127.0.0.1:8000/v1/models
    """
    for name, value in (("max-batch", max_batch), ("max-requests", max_requests), ("cache-gb", cache_gb)):
        if value <= 0:
            raise UserError(f"--{name}={value}: must be above 0")
    if not 0 <= port < 2**16:
        raise UserError(f"--port={port}: must be from 0 to 65535")
    from sekkei.core.progress import Console
    from sekkei.serve.server import LOOPBACK, build_app, require_extra, serve

    require_extra()
    from sekkei.serve.app import LOCAL_HOSTS, ServeConfig

    console = Console()
    local = host in LOOPBACK
    if not local and not api_key:
        console.say(f"warning: anybody who reaches {host} may use this server; set {KEY} to ask for a key")
    config = ServeConfig(
        key=api_key or None,
        hosts=LOCAL_HOSTS | {name.lower() for name in allow_host or ()} if local or allow_host else None,
        max_body=int(max_body_mb * 2**20),
        max_requests=max_requests,
        max_waiting=max_waiting,
    )
    app = build_app(
        folder, config, stage=stage, dtype=dtype, device=device, max_batch=max_batch, cache_gb=cache_gb,
        embed=_embed(embedder), embedder=embedder or "", adapters=_folders(lora or ()),
    )  # fmt: skip
    serve(app, host, port, grace=grace, ready=lambda url: console.say(f"{folder} answers at {url}, API under {url}/v1"))


def _folders(options: Sequence[str]) -> dict[str, Path]:
    """`NAME=DIR` of each --lora.

    Raises:
        UserError: one is not of this form, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for option in options:
        name, mark, folder = option.partition("=")
        if not (name and mark and folder) or name in found:
            raise UserError(f"--lora {option}: must be NAME=DIR, each name once")
        found[name] = Path(folder)
    return found


def _embed(name: str | None) -> Any:
    if name is None:
        return None
    from sekkei.rag.embed import find_embedder

    embedder = find_embedder(name)
    return embedder.embed
