"""Bytes of tensor storage alive on this process, and their peak, counted exactly on any device.

Every operation passes through a dispatch mode; the storages of its results are counted once each, whatever the number
of views, and given back when the storage is freed. Unlike `torch.distributed._tools.MemTracker` it stands repeated
forwards (pipelines, gradient accumulation). A storage that is resized in place, as `fully_shard` does to free and fill
gathered parameters, is counted at once. It does not see what a kernel allocates inside itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A context manager; afterwards (or inside) read `live`, `peak` and `peaks`.

    Args:
        tensors: alive before it begins, and to be counted (inputs, parameters).
    Attributes:
        peaks: the highest point of each section of what was run: since `mark(name)` was called, and in it between one
        collective and the next, as {(name, collectives before): bytes}.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.peaks: dict[tuple[Hashable, int], int] = {}
        self._section: tuple[Hashable, int] = (None, 0)
        self._sizes: dict[int, int] = {}
        for tensor in tensors:
            self._count(tensor)

    def __enter__(self) -> LiveBytes:
        self._resize = resize = torch.UntypedStorage.resize_

        def counted(storage: Any, size: int) -> Any:
            result = resize(storage, size)
            self._measure(storage)
            return result

        torch.UntypedStorage.resize_ = counted  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "namespace", "") == "c10d":
            name, collectives = self._section
            self._begin(name, collectives + 1)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def mark(self, name: Hashable) -> None:
        """Here another section begins."""
        self._begin(name, 0)

    def _begin(self, name: Hashable, collectives: int) -> None:
        self._section = name, collectives
        self.peaks[self._section] = max(self.live, self.peaks.get(self._section, 0))

    def _count(self, tensor: Tensor) -> None:
        self._measure(tensor.untyped_storage())

    def _measure(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            weakref.finalize(storage, self._free, key)
        self.live += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        if self.live > self.peaks.get(self._section, 0):
            self.peaks[self._section] = self.live
            self.peak = max(self.peak, self.live)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors: views of one buffer count once, and in full."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
