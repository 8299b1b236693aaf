"""A model that is trained, as the loop sees it, whatever lies where.

Placed      what the loop may ask of a model under a layout: `Sharded` and `Pipelined` (parallel/) fulfil it
Plain       the same of a model that is whole on one process
Trainee     a model, its optimizer, and how it is placed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sekkei.model.moe import biases

if TYPE_CHECKING:
    from sekkei.train.optim import Optimizer


class Placed(Protocol):
    """Where the parts of a model lie."""

    @property
    def targets(self) -> Mapping[str, nn.Parameter]:
        """What an optimizer updates on this rank, by the parameter's name: parameters, or slices of them."""
        ...

    def clip(self, limit: float) -> float:
        """Scale gradients so that their common norm is at most `limit`; returns the norm before."""
        ...

    def publish(self) -> None:
        """After the targets have changed: let every rank have the new weights."""
        ...

    def whole_of(self, name: str, x: Tensor) -> Tensor:
        """From what lies like the target `name` on each rank to the whole; all ranks that hold it take part."""
        ...

    def part_of(self, name: str, x: Tensor) -> Tensor:
        """The inverse of `whole_of`."""
        ...

    def matrices_of(self, name: str, x: Tensor) -> Tensor:
        """From what lies like the target `name` to whole matrices: of a stack of them perhaps not all."""
        ...

    def part_of_matrices(self, name: str, x: Tensor) -> Tensor:
        """The inverse of `matrices_of`."""
        ...

    def ranks_of(self, name: str) -> dist.ProcessGroup | None:
        """Ranks that `matrices_of` gives the same; None: this process alone."""
        ...

    def summed(self, x: Tensor) -> Tensor:
        """The sum over ranks with other tokens."""
        ...


class Plain:
    """A model that is whole here."""

    def __init__(self, model: nn.Module) -> None:
        self.targets = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def clip(self, limit: float) -> float:
        return float(torch.nn.utils.clip_grad_norm_(list(self.targets.values()), limit))

    def publish(self) -> None:
        """The targets are the weights."""

    def whole_of(self, name: str, x: Tensor) -> Tensor:
        return x

    def part_of(self, name: str, x: Tensor) -> Tensor:
        return x

    def matrices_of(self, name: str, x: Tensor) -> Tensor:
        return x

    def part_of_matrices(self, name: str, x: Tensor) -> Tensor:
        return x

    def ranks_of(self, name: str) -> dist.ProcessGroup | None:
        return None

    def summed(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Trainee:
    """A model that is trained, with its optimizer.

    Args:
        placed: where its parts lie; None: it is whole here.
    """

    model: nn.Module
    optimizer: Optimizer
    placed: Placed | None = None

    @property
    def parts(self) -> Placed:
        return self.placed or Plain(self.model)

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """What changes in training, by the parameter's name: targets, and routers' biases, which all ranks have."""
        return {**self.parts.targets, **biases(self.model)}

    def tensors(self) -> Mapping[str, tuple[str, Tensor]]:
        """What a checkpoint holds of it here: key -> (parameter's name, tensor that lies like its target)."""
        found = {f"model/{name}": (name, weight.detach()) for name, weight in self.weights.items()}
        for key, value in self.optimizer.tensors().items():
            found[key] = (key.split("/")[1], value)
        return found
