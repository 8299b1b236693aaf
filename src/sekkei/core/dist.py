"""Processes that work together: joining a group, leaving it, and plain messages between its ranks.

    torchrun or a launcher ── RANK, WORLD_SIZE, MASTER_ADDR … ──> start() ──> ranks ──> finish()

gloo carries tensors between CPUs, NCCL between GPUs (one per process, chosen by LOCAL_RANK). A group has a time limit:
a rank that died makes the others end with an error instead of waiting for ever. A launcher that restarts ranks after a
failure (TORCHELASTIC_RESTART_COUNT) reuses its store, in which keys of the last attempt are still there, so each
attempt writes under a prefix of its own.

Messages are JSON in byte tensors, no pickles. `torch` is imported inside the functions, so that the command line stays
light. It does not handle more than one GPU per process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sekkei.core.errors import UserError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

GROUP_SECONDS = 600.0  # longer than any step or checkpoint
PATIENT_DAYS = 30.0  # of waiting for what one rank does alone: data, evaluation
T = TypeVar("T")


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


class Ranks:
    """The processes of a run, as one of them sees it; `Ranks(device)` is a process alone."""

    def __init__(self, device: torch.device, patient: dist.ProcessGroup | None = None) -> None:
        self.device, self.patient = device, patient

    @property
    def first(self) -> bool:
        return rank() == 0

    def first_does(self, work: Callable[[], T]) -> T:
        """Let rank 0 do something, however long it takes, and every rank have its result (JSON values).

        Where rank 0 fails, its broken connection ends the others.
        """
        if self.patient is None:
            return work()
        value = work() if self.first else None
        return broadcast_json(value, 0, self.patient)


def start(device_type: str = "cpu", seconds: float = GROUP_SECONDS) -> Ranks:
    """Join the process group that the launcher's environment describes.

    Args:
        device_type: "cpu" (gloo) or "cuda" (NCCL). seconds: until a silent rank counts as dead.
    Returns:
        this process's place.
    Raises:
        UserError: the environment names no rank, or this machine has fewer GPUs than processes.
    """
    import torch
    import torch.distributed as dist

    if not launched():
        raise UserError("several processes need a launcher: torchrun --nproc-per-node N -m sekkei …")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_RANK", rank))
    device = torch.device("cpu")
    if device_type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(f"LOCAL_RANK={local} needs {local + 1} GPUs here, there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    limit = timedelta(seconds=seconds)
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    keeper = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store: dist.Store = dist.TCPStore(address, port, world, is_master=keeper, timeout=limit)
    store = dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    return Ranks(device, dist.new_group(backend="gloo", timeout=timedelta(days=PATIENT_DAYS)))


def finish() -> None:
    """Leave the group, if there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 where it is alone."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together; 1 where this one is alone."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast_json(value: Any, source: int, group: dist.ProcessGroup | None = None) -> Any:
    """`value` of the process with global rank `source`, on every rank of the group; others' values are ignored."""
    import torch
    import torch.distributed as dist

    device = _device(group)
    text = json.dumps(value).encode() if dist.get_rank() == source else b""
    length = torch.tensor([len(text)], device=device)
    dist.broadcast(length, source, group=group)
    message = torch.empty(int(length), dtype=torch.uint8, device=device)
    if text:
        message.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(message, source, group=group)
    return json.loads(bytes(message.tolist()))


def gather_json(value: Any) -> list[Any]:
    """Every rank's `value`, in order of rank, on every rank."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_device())
    lengths = [torch.zeros(1, dtype=torch.int64, device=text.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(text)], device=text.device))
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=text.device)
    padded[: len(text)] = text
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [json.loads(bytes(part[: int(n)].tolist())) for part, n in zip(parts, lengths, strict=True)]


def barrier() -> None:
    """Wait for all ranks."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def any_rank(wish: bool) -> bool:
    """Whether any rank says so; the same answer on all."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return wish
    flag = torch.tensor([int(wish)], device=_device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _device(group: dist.ProcessGroup | None = None) -> torch.device:
    import torch
    import torch.distributed as dist

    return torch.device("cuda") if dist.get_backend(group) == "nccl" else torch.device("cpu")
