"""Starting a run's ranks on this machine, and starting them again when one dies.

    sekkei run R --nproc 4
      └─ torch's elastic launcher ── 4 × `sekkei run R` with RANK, WORLD_SIZE …
           a rank dies (kill -9, out of memory, a broken GPU)  ->  the others are ended, all are started again, and go
           on from the last checkpoint; at most `restarts` times
           a rank reports a user's error (exit code 2)         ->  the job ends with that code
           the launcher dies                                   ->  the ranks end, too

Each attempt has a rendezvous of its own, so no key of a dead one is found. Several machines: torchrun itself, or the
scripts of `sekkei launch`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence

from sekkei.core.cluster import SAVING_SECONDS
from sekkei.core.errors import UserError

NOT_MENDED_BY_A_RESTART = (1, 2, 130)  # what our own command line returns: the verb says no, user's error, interrupted
DEFAULT_RESTARTS = 3
LAUNCHER = "SEKKEI_LAUNCHER"  # in a rank's environment: the process that started it
MONITOR_SECONDS = 0.2
WATCH_SECONDS = 0.5


def run_ranks(arguments: Sequence[str], nproc: int, restarts: int = DEFAULT_RESTARTS) -> int:
    """Run `sekkei <arguments>` as `nproc` ranks and return an exit code. Restarted ranks redo nothing on purpose.

    Raises:
        UserError: ranks died more often than `restarts` times.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from sekkei.core import hardware

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # we say it below
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING_SECONDS))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cores() // nproc)))
    if hardware.best_device().type == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", hardware.loopback())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=f"sekkei-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=MONITOR_SECONDS,
    )
    for attempt in range(restarts + 1):
        try:
            elastic_launch(config, sys.executable)("-m", "sekkei", *arguments)
            return 0
        except SignalException:
            return 130
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode in NOT_MENDED_BY_A_RESTART:
                return failure.exitcode
            how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            left = restarts - attempt
            if not left:
                raise UserError(
                    f"rank {rank} of {nproc} died ({how}), and {restarts} restarts are used up; the same command goes "
                    "on from the last checkpoint"
                ) from None
            arguments = without_redoing(arguments)
            print(
                f"rank {rank} of {nproc} died ({how}): all ranks start again from the last checkpoint", file=sys.stderr
            )
    raise AssertionError("the loop returns or raises")


def end_with_launcher() -> None:
    """In a rank that `run_ranks` has started: end at once when the launcher is gone (kill -9), whose command, given
    again, would find this rank at work in the run folder.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher != str(os.getppid()):  # another one, such as torchrun, has started it
        return

    def watch() -> None:
        while launcher == str(os.getppid()):
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def without_redoing(arguments: Sequence[str]) -> list[str]:
    """A command line without --force and --from STAGE, which would throw away what the first attempt has done."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--from":
            next(rest, None)
        elif argument != "--force" and not argument.startswith("--from="):
            kept.append(argument)
    return kept
