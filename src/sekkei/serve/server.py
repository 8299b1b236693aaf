"""`sekkei serve` from a folder to a running server, and its graceful end.

SIGTERM and Ctrl-C: no new connections, running answers are finished (for at most `grace` seconds, then given up), the
engine's thread ends, exit code 0. A second signal ends at once.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sekkei.core.errors import UserError

if TYPE_CHECKING:
    from sekkei.serve.app import ServeConfig
    from sekkei.serve.gate import Gate

PREFILL_TOKENS = 1024  # of prompts in one pass: a running answer waits for one such pass at most
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def build_app(
    folder: Path,
    config: ServeConfig,
    *,
    stage: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    max_batch: int = 64,
    cache_gb: float = 2.0,
    embed: Callable[[Sequence[str]], Any] | None = None,
    embedder: str = "",
    adapters: Mapping[str, Path] | None = None,
) -> Gate:
    """A model and the app that answers with it.

    Args:
        max_batch: samples that run at once. cache_gb: of keys and values, unless one context needs more.
        adapters: folders with LoRA adapters of this model, by the name that clients ask for.
    Raises:
        UserError: the model cannot be opened, or the extra is not installed.
    """
    require_extra()
    from sekkei.engine.engine import BLOCK, Engine
    from sekkei.serve.app import create_app
    from sekkei.serve.opened import open_model

    opened = open_model(folder, stage, dtype=dtype, device=device)
    taken = {opened.name, opened.stage, "default", embedder} & {*(adapters or {})}
    if taken:
        raise UserError(f"--lora {taken.pop()}=…: another model has that name here; choose a new one")
    model_config = opened.model.config
    wide = next(opened.model.parameters()).element_size()
    per_block = 2 * model_config.num_layers * model_config.num_kv_heads * model_config.head_size * BLOCK * wide
    least = -(-model_config.max_context // BLOCK)
    engine = Engine(
        opened.model,
        max_batch=max_batch,
        blocks=max(least, min(max_batch * least, int(cache_gb * 2**30) // per_block)),
        prefill_tokens=PREFILL_TOKENS,
        refill=1,
        tokenizer=opened.words.inner,
        adapters=adapters,
    )
    return create_app(opened, engine, config, embed, embedder)


def serve(app: Gate, host: str, port: int, *, grace: float = 60.0, ready: Callable[[str], None] | None = None) -> None:
    """Answer until a signal comes.

    Args:
        port: 0 takes a free one. ready: told the address once connections are taken.
    Raises:
        UserError: the address cannot be bound.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(grace)),
        timeout_keep_alive=30,
        server_header=False,
        backlog=2048,
    )
    with _bound(host, port) as listening:
        address = f"http://{'[' + host + ']' if ':' in host else host}:{listening.getsockname()[1]}"
        _server(config, app, (lambda: ready(address)) if ready is not None else None).run(sockets=[listening])


def _server(config: Any, app: Gate, ready: Callable[[], None] | None) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn raises a signal again after its graceful end; here the end is the answer to it."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            import signal
            import threading

            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: Any) -> None:
            app.stopping = True
            if not self.should_exit:
                print("stopping: running answers are finished; once more stops at once", file=sys.stderr, flush=True)
            super().handle_exit(sig, frame)
            self.force_exit = self.force_exit or self._signalled
            self._signalled = True

        _signalled = False

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if ready is not None and self.started:
                ready()

    return Server(config)


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"{host}:{port}: cannot listen there ({error}); choose another --port or --host") from None
        yield listening
    finally:
        listening.close()


def require_extra() -> None:
    """Say what to install where the server's libraries are missing.

    Raises:
        UserError
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the server needs {error.name}: pip install 'sekkei[serve]'") from None
