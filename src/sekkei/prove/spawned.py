"""A measurement on several ranks of this machine: the same function in n processes of one gloo group.

    spawned(work, n, *arguments) ── n processes ── work(rank, *arguments) ──> [what rank 0 found, rank 1, …]

Findings are JSON values. Ranks have one thread each, so that n of them disturb each other as little as two cores allow.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from sekkei.core import hardware
from sekkei.core.errors import UserError

GROUP_SECONDS = 120


def spawned(work: Callable[..., Any], nproc: int, *arguments: Any) -> list[Any]:
    """Run `work(*arguments)` on every rank of a new group and return what each of them gave.

    Args:
        work: a function of a module (processes are spawned). arguments: that can be pickled.
    Raises:
        UserError: a rank died or hung.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            multiprocessing.spawn(_rank, (nproc, name, work, arguments), nproc)
        except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{nproc} ranks: one ended: {reason}") from error
        return [json.loads((Path(name) / str(rank)).read_text()) for rank in range(nproc)]


def _rank(rank: int, nproc: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", hardware.loopback())
    warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nobody writes to log-probabilities
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), nproc)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=nproc, timeout=timedelta(seconds=GROUP_SECONDS))
    found = work(*arguments)
    (Path(folder) / str(rank)).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
