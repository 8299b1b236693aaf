"""A measurement on several ranks of this machine: the same function in n processes of one gloo group.

    spawned(work, n, *arguments) ── n processes ── work(rank, *arguments) ──> [what rank 0 found, rank 1, …]

Findings are JSON values. Ranks have one thread each, so that n of them disturb each other as little as two cores allow;
they are forked from one process that has imported everything, so that n of them do not import it n times.
"""

from __future__ import annotations

import gc
import json
import multiprocessing.forkserver
import os
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from sekkei.core import hardware
from sekkei.core.errors import UserError

GROUP_SECONDS = 120


def start_server() -> None:
    """Start the process that ranks are forked from, if it does not run yet, and do not wait for it.

    It has imported what a proof needs (5 s of a core), and nothing else has happened in it: no threads, no autograd.
    """
    multiprocessing.set_forkserver_preload(["sekkei.prove.worker"])
    multiprocessing.forkserver.ensure_running()


def spawned(work: Callable[..., Any], nproc: int, *arguments: Any) -> list[Any]:
    """Run `work(*arguments)` on every rank of a new group and return what each of them gave.

    Args:
        work: a function of a module (processes are spawned). arguments: that can be pickled.
    Raises:
        UserError: a rank died or hung.
    """
    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as name:
        try:
            start_server()
            multiprocessing.start_processes(_rank, (nproc, name, work, arguments), nproc, start_method="forkserver")
        except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{nproc} ranks: one ended: {reason}") from error
        return [json.loads((Path(name) / str(rank)).read_text()) for rank in range(nproc)]


def _rank(rank: int, nproc: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", hardware.loopback())
    warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nobody writes to log-probabilities
    torch.set_num_threads(1)
    gc.freeze()  # what was imported stays: collecting it again and again would copy its pages for every rank
    store = dist.FileStore(str(Path(folder) / "store"), nproc)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=nproc, timeout=timedelta(seconds=GROUP_SECONDS))
    found = work(*arguments)
    (Path(folder) / str(rank)).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
