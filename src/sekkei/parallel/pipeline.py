"""Pipeline parallelism: a model cut into stages of whole layers, a rank's stages each under the rest of the layout.

    4 layers, pp = 2     1f1b, gpipe                 interleaved, zero_bubble (two stages per rank, in a loop)
    rank 0               embed 0 1                   embed 0 | 2
    rank 1                         2 3 norm head             1 | 3 norm head

Idle share with p ranks and m micro-batches: (p - 1) / (m + p - 1) for gpipe (Huang et al. 2019) and for 1f1b (Narayanan
et al. 2019), which holds p instead of m micro-batches' activations; about half of it interleaved with two stages per
rank (Narayanan et al. 2021, section 2.2); less with zero_bubble, which puts off weight gradients until a rank would be
idle (Qi et al. 2023). When what runs is torch.distributed.pipelining's; who calls the loss: train/pipeline_step.py.

It does not handle tied embeddings, or layers of unequal cost.

Shapes: `B` rows of a micro-batch, `T` tokens of a rank, `D` model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from sekkei.model.config import ModelConfig
from sekkei.model.lora import lora_config
from sekkei.model.moe import biases
from sekkei.model.transformer import Head, Transformer
from sekkei.parallel.apply import Sharded, held_dtype, scale_gradients, weights_dtype
from sekkei.parallel.layout import Layout
from sekkei.parallel.mesh import Mesh

ONE_STAGE = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
SEVERAL = {"interleaved": ScheduleInterleaved1F1B, "zero_bubble": ScheduleInterleavedZeroBubble}

LossOf = Callable[[Tensor, Tensor], Tensor]
"""(what the last stage gives, number of the micro-batch [B]) -> this micro-batch's part of the loss."""


def layers_of(stage: int, layout: Layout, config: ModelConfig) -> range:
    """Indices of the layers of a stage."""
    each = config.num_layers // layout.stages
    return range(stage * each, (stage + 1) * each)


def cut(whole: Transformer, stage: int, layout: Layout) -> Transformer:
    """A stage of a whole model: the same modules, under the same names; embedding first, norm and heads last."""
    first, last = stage == 0, stage == layout.stages - 1
    with torch.device("meta"):
        part = Transformer(whole.config, heads_of(whole) if last else (), (), first)
    for index in layers_of(stage, layout, whole.config):
        part.layers[str(index)] = whole.layers[str(index)]
    for name in (["embed"] if first else []) + (["norm", "lm_head", "value_head", "reward_head"] if last else []):
        setattr(part, name, getattr(whole, name))
    part.run_block, part.score_labels = whole.run_block, whole.score_labels
    return part


def heads_of(model: Transformer) -> tuple[Head, ...]:
    """The heads that a model carries."""
    names: tuple[Head, ...] = ("lm", "value", "reward")
    return tuple(name for name in names if getattr(model, f"{name}_head") is not None)


class Pipelined:
    """A rank's stages of a model, with the face of `Sharded`.

    Args:
        whole: the model; every rank begins with all of it and keeps its stages.
    Attributes:
        stages: by their number in the pipeline. targets: what an optimizer updates, of all of them.
        dtype, wide, lora: as `Sharded`'s; hidden: of what stages send. shape: the whole model, without storage or
        adapter.
        table: shape and whether it is trained of every parameter of the whole model, by name.
        model: holds the parameters of all stages here, under the whole model's names; it is not to be called.
    """

    def __init__(self, whole: Transformer, mesh: Mesh) -> None:
        layout = mesh.layout
        layout.check(whole.config)
        with torch.device("meta"):
            self.shape = Transformer(whole.config, heads_of(whole))
        self.table = {name: (p.shape, p.requires_grad) for name, p in whole.named_parameters()}
        self.kept_wide = biases(whole).keys()
        self.lora = lora_config(whole)
        self.wide = next(whole.parameters()).dtype
        self.dtype = held_dtype(layout, self.wide)
        self.hidden = weights_dtype(layout) or self.wide
        self.mesh, self.config = mesh, whole.config
        mine = range(mesh.pp_rank, layout.stages, layout.pp)
        self.stages = {stage: Sharded(cut(whole, stage, layout), mesh) for stage in mine}
        self.targets = {name: t for stage in self.stages.values() for name, t in stage.targets.items()}
        self.model = _Holder([stage.model for stage in self.stages.values()])

    def finish_micro_batch(self) -> None:
        for stage in self.stages.values():
            stage.finish_micro_batch()

    def finish_gradients(self) -> None:
        """After the last backward pass of an update."""
        for stage in self.stages.values():
            stage.finish_gradients()

    def grad_norm(self) -> float:
        """2-norm of the whole model's gradient, over all axes."""
        square = torch.zeros((), dtype=torch.float64, device=next(self.model.parameters()).device)
        for stage in self.stages.values():
            square += stage.grad_square()
        dist.all_reduce(square, group=self.mesh.pp)
        return math.sqrt(float(square))

    def clip(self, limit: float) -> float:
        """Scale gradients so that their common norm is at most `limit`; returns the norm before."""
        norm = self.grad_norm()
        self.widen()
        if norm > limit:
            scale_gradients(self.targets.values(), limit / (norm + 1e-6))
        return norm

    def widen(self) -> None:
        """Before the optimizer: targets have their gradients in their own dtype."""
        for stage in self.stages.values():
            stage.widen()

    def publish(self) -> None:
        """After the optimizer's step."""
        for stage in self.stages.values():
            stage.publish()

    def gather_named(self, masters: bool = False, frozen: bool = True) -> Iterator[tuple[str, Tensor]]:
        """As `Sharded.gather_named`."""
        own = {name: x for stage in self.stages.values() for name, x in stage.gather_named(masters, frozen)}
        names = [name for name, (_, trained) in self.table.items() if frozen or trained or name in self.kept_wide]
        yield from self._from_all(names, own, self.wide if masters else self.dtype)

    def gather_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The whole model's gradients, as `gather_named`; for proofs."""
        own = {name: x for stage in self.stages.values() for name, x in stage.gather_gradients()}
        names = [name for name, (_, trained) in self.table.items() if trained]
        yield from self._from_all(names, own, next(iter(own.values())).dtype)

    def whole_of(self, name: str, x: Tensor) -> Tensor:
        """As `Sharded.whole_of`, for a target of this rank's stages, on the ranks that hold them."""
        return self._holder(name).whole_of(name, x)

    def part_of(self, name: str, x: Tensor) -> Tensor:
        """As `Sharded.part_of`, for a target of this rank's stages."""
        return self._holder(name).part_of(name, x)

    def matrices_of(self, name: str, x: Tensor) -> Tensor:
        """As `Sharded.matrices_of`."""
        return self._holder(name).matrices_of(name, x)

    def part_of_matrices(self, name: str, x: Tensor) -> Tensor:
        """As `Sharded.part_of_matrices`."""
        return self._holder(name).part_of_matrices(name, x)

    def ranks_of(self, name: str) -> dist.ProcessGroup | None:
        """As `Sharded.ranks_of`."""
        return self._holder(name).ranks_of(name)

    def summed(self, x: Tensor) -> Tensor:
        """As `Sharded.summed`, of this rank's stages."""
        return next(iter(self.stages.values())).summed(x)

    def _holder(self, name: str) -> Sharded:
        return self.stages[self._stage_of(name)]

    def bytes(self) -> dict[str, int]:
        """Bytes that this rank holds now."""
        held = [stage.bytes() for stage in self.stages.values()]
        return {key: sum(part[key] for part in held) for key in held[0]}

    def _from_all(self, names: list[str], own: dict[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        device = next(self.model.parameters()).device
        for name in names:
            shape, trained = self.table[name]
            owner = self._stage_of(name) % self.mesh.layout.pp
            kind = self.wide if name in self.kept_wide else dtype if trained else self.dtype
            x = own[name].contiguous() if name in own else torch.empty(shape, dtype=kind, device=device)
            dist.broadcast(x, dist.get_global_rank(self.mesh.pp, owner), group=self.mesh.pp)
            yield name, x

    def _stage_of(self, name: str) -> int:
        if name.startswith("layers."):
            return int(name.split(".")[1]) // (self.config.num_layers // self.mesh.layout.stages)
        return 0 if name.startswith("embed.") else self.mesh.layout.stages - 1


class _Holder(nn.Module):
    """Parameters of several stages under the names that they have in the whole model."""

    def __init__(self, stages: list[Transformer]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({index: layer for stage in stages for index, layer in stage.layers.items()})
        for stage in stages:
            for name, module in stage.named_children():
                if name != "layers":
                    self.add_module(name, module)


def make_schedule(
    model: Pipelined, micro_batches: int, rows: int, tokens: int, outputs: int, loss: LossOf, device: torch.device
) -> Any:
    """A torch schedule over this rank's stages, for one shape of micro-batches.

    Args:
        rows: `B` of a micro-batch. tokens: `T` of this rank, after the context-parallel cut.
        outputs: numbers that the last stage gives per token, as [B, T, outputs], float32 at least.
    Raises:
        ConfigError: the schedule cannot run that many micro-batches.
    """
    layout = model.mesh.layout
    layout.check_micro_batches(micro_batches)
    carried = tokens // layout.tp if layout.sequence_parallel else tokens
    wide = torch.float64 if model.wide == torch.float64 else torch.float32
    stages = []
    for number, stage in model.stages.items():
        first, last = number == 0, number == layout.stages - 1
        ids = torch.empty(rows, tokens, dtype=torch.int64, device="meta")
        hidden = torch.empty(rows, carried, model.config.hidden_size, dtype=model.hidden, device="meta")
        given = torch.empty(rows, tokens, outputs, dtype=wide, device="meta")
        stages.append(
            PipelineStage(
                stage.model,
                number,
                layout.stages,
                device,
                input_args=ids if first else hidden.requires_grad_(),
                output_args=given.requires_grad_() if last else hidden.detach().requires_grad_(),
                group=model.mesh.pp,
            )
        )
    if layout.schedule in ONE_STAGE:
        return ONE_STAGE[layout.schedule](stages[0], micro_batches, loss_fn=loss, scale_grads=False)
    return SEVERAL[layout.schedule](stages, micro_batches, loss_fn=loss, scale_grads=False)
