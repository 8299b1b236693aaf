"""What is alive on a rank during one training step, operation by operation, under ZeRO-0 and ZeRO-3.

    zero=0   parameters whole all the time
    zero=3   a block's parameters are gathered before it runs, and discarded at once; again in the backward pass
             (Rajbhandari et al. 2020, section 5.3)

Every change of a tensor's storage is an event (number of the operation, storage, its new size). `fully_shard` keeps the
storage of a gathered parameter and shrinks it to nothing when it is discarded, so what has been shrunk to nothing in
place is gathered parameters; other storages die. Everything is measured on real ranks over gloo, rank 0's is drawn.

It does not see what kernels and gloo allocate inside themselves.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.objectives.pretrain import TokenLoss
from sekkei.parallel.apply import Sharded
from sekkei.parallel.layout import Layout
from sekkei.parallel.mesh import Mesh
from sekkei.prove.spawned import spawned
from sekkei.train.objective import Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.sharded_step import ShardedStep

VOCAB = 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is run: few tokens, so that parameters are most of what is alive."""

    ranks: int = 4
    layers: int = 8
    width: int = 128
    tokens: int = 32


@dataclass(frozen=True)
class Timeline:
    """Most bytes alive from each operation of a step to the next, on rank 0.

    Args:
        live: all. gathered: of them, parameters that other ranks own. backward, optimizer: the first operation of each.
        whole: bytes of the whole model's parameters. held: of this rank's, between steps.
    """

    layout: str
    live: list[int]
    gathered: list[int]
    backward: int
    optimizer: int
    whole: int
    held: int


class Events(TorchDispatchMode):
    """A context manager that notes every change of a storage; `mark` names a place.

    Args:
        tensors: alive before it begins.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.operations = 0
        self.events: list[tuple[int, int, int]] = []  # operation, storage, bytes now
        self.marks: dict[str, int] = {}
        self._known: dict[int, tuple[Any, int]] = {}  # by address: (weak reference to the storage, its number)
        self._sizes: list[int] = []
        for tensor in tensors:
            self._see(tensor)

    def mark(self, name: str) -> None:
        self.marks.setdefault(name, self.operations)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self._look_again()  # what was resized since the last operation counts as its end
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self._look_again()
        return result

    def _look_again(self) -> None:
        for reference, number in list(self._known.values()):
            storage = reference()
            if storage is not None:
                self._note(number, storage.nbytes())

    def _see(self, tensor: Tensor) -> None:
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        key = storage._cdata
        if key not in self._known:
            number = len(self._sizes)
            self._sizes.append(0)
            self._known[key] = weakref.ref(storage), number
            weakref.finalize(storage, self._gone, key, number)
        self._note(self._known[key][1], storage.nbytes())

    def _note(self, number: int, size: int) -> None:
        if size != self._sizes[number]:
            self._sizes[number] = size
            self.events.append((self.operations, number, size))

    def _gone(self, key: int, number: int) -> None:
        self._known.pop(key, None)
        if self._sizes[number]:
            self._sizes[number] = 0
            self.events.append((self.operations, number, -1))

    def curves(self) -> tuple[list[int], list[int]]:
        """Most bytes alive from each operation to the next: all, and of storages that were shrunk to nothing."""
        shrunk = {number for _, number, size in self.events if size == 0}
        sizes: dict[int, int] = {}
        live, gathered = [0] * (self.operations + 1), [0] * (self.operations + 1)
        at, total, ours = 0, 0, 0
        for operation, number, size in [*self.events, (self.operations, -1, 0)]:
            while at < operation:
                at += 1
                live[at], gathered[at] = total, ours
            change = max(size, 0) - sizes.get(number, 0)
            sizes[number] = max(size, 0)
            total += change
            ours += change if number in shrunk else 0
            live[at], gathered[at] = max(live[at], total), max(gathered[at], ours)
        return live, gathered


def timelines(case: Case, layouts: Sequence[Layout] | None = None) -> list[Timeline]:
    """One step under each layout, on real ranks: without sharding, and with stage 3."""
    chosen = list(layouts or (Layout(dp=case.ranks), Layout(dp=case.ranks, zero=3)))
    first = spawned(measure, case.ranks, case, chosen)[0]
    return [Timeline(**found) for found in first]


def measure(case: Case, layouts: Sequence[Layout]) -> list[dict[str, Any]]:
    """This rank's timeline of each layout."""
    return [_measure(case, layout) for layout in layouts]


def _measure(case: Case, layout: Layout) -> dict[str, Any]:
    config = ModelConfig(
        hidden_size=case.width,
        num_layers=case.layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=case.width // 4,
        intermediate_size=3 * case.width,
        vocab_size=VOCAB,
    )
    mesh = Mesh(layout, "cpu")
    whole = build(config, seed=1)
    size = sum(parameter.nbytes for parameter in whole.parameters())
    model = Sharded(whole, mesh)
    optimizer = Optimizer(model.model, OptimConfig(kind="adamw", schedule="constant", warmup=0.0), 3, placed=model)
    step = ShardedStep({"policy": model}, mesh, torch.device("cpu"), None)

    def whole_step(number: int, events: Events | None) -> None:
        update = Update("policy", [_batch(case, mesh.dp_rank)], _Marking(events))
        step.backward(update)
        if events is not None:
            events.mark("optimizer")
        model.clip(1.0)
        optimizer.step(number)
        model.publish()
        model.model.zero_grad()

    whole_step(0, None)  # the first one makes buffers and moments
    held = [*model.model.parameters(), *model.targets.values(), *optimizer.tensors().values()]
    with Events(held) as events:
        whole_step(1, events)
    live, gathered = events.curves()
    return {
        "layout": layout.name,
        "live": live,
        "gathered": gathered,
        "backward": events.marks["backward"],
        "optimizer": events.marks["optimizer"],
        "whole": size,
        "held": model.bytes()["params"],
    }


class _Marking(TokenLoss):
    """The usual loss, which says when the forward pass is over."""

    def __init__(self, events: Events | None) -> None:
        super().__init__()
        object.__setattr__(self, "events", events)

    def terms(self, *args: Any, **kwargs: Any) -> Any:
        if self.events is not None:  # type: ignore[attr-defined]
            self.events.mark("backward")  # type: ignore[attr-defined]
        return super().terms(*args, **kwargs)


def _batch(case: Case, number: int) -> Batch:
    rng = random.Random(number)
    ids = [rng.randrange(VOCAB) for _ in range(case.tokens + 1)]
    return lay_out([[Sample(ids=ids, weights=[1.0] * len(ids))]], case.tokens)
