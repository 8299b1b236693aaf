"""Bytes that this process sends to others, counted exactly on any backend, by kind of collective.

Every collective passes through a dispatch mode as an operation of `c10d`. What a rank sends, for n ranks of the group
and s bytes, is that of the ring algorithms that libraries use for large messages (Patarasu and Yuan 2009):

    all-reduce 2 (n-1)/n s    reduce-scatter, all-gather (n-1)/n s of the whole    send s    broadcast s, its source

Waiting, barriers and what a backend says to itself are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Size = Callable[[Sequence[Any], int], float]


def _all(argument: Any) -> int:
    """Bytes of a tensor, or of lists of them."""
    if isinstance(argument, Tensor):
        return argument.numel() * argument.element_size()
    return sum(_all(item) for item in argument)


KINDS: dict[str, tuple[str, Size]] = {
    "allreduce_": ("all-reduce", lambda a, n: 2 * (n - 1) / n * _all(a[0])),
    "_reduce_scatter_base_": ("reduce-scatter", lambda a, n: (n - 1) / n * _all(a[1])),
    "reduce_scatter_": ("reduce-scatter", lambda a, n: (n - 1) / n * _all(a[1])),
    "_allgather_base_": ("all-gather", lambda a, n: (n - 1) / n * _all(a[0])),
    "allgather_": ("all-gather", lambda a, n: (n - 1) / n * _all(a[0])),
    "alltoall_base_": ("all-to-all", lambda a, n: (n - 1) / n * _all(a[1])),
    "send": ("send", lambda a, n: _all(a[0])),
    "broadcast_": ("broadcast", lambda a, n: _all(a[0])),
}
SILENT = frozenset({"recv_", "recv_any_source_", "barrier", "monitored_barrier_"})


class Traffic(TorchDispatchMode):
    """A context manager; `sent` counts bytes and `calls` collectives by kind.

    Raises:
        RuntimeError: a collective that it does not know, rather than a sum that is too small.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return round(sum(self.sent.values()))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "c10d" and func._opname not in SILENT:
            self._count(func._opname, args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: Sequence[Any]) -> None:
        if name not in KINDS:
            raise RuntimeError(f"c10d.{name} is not counted: add it to parallel/traffic.py")
        kind, size = KINDS[name]
        group = next(_groups(args))
        if name == "broadcast_" and int(args[2]) != group.rank():
            return
        self.sent[kind] += size(args, group.size())  # type: ignore[assignment]
        self.calls[kind] += 1


def _groups(args: Iterable[Any]) -> Iterator[Any]:
    for argument in args:
        try:
            yield dist.ProcessGroup.unbox(argument)
        except (TypeError, RuntimeError):
            continue
