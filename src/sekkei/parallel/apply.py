"""A layout, applied to a plain model from outside: tensor or expert parallel, then recomputation, then ZeRO.

    model ── apply ──> Sharded          what the optimizer updates (`targets`), gradients that are summed after
                                        `finish_gradients`, their norm over all axes, and `gather_named`

Every rank begins with the whole model, drawn by name from the seed, and keeps its part: so every layout starts from the
same numbers. Stage 3 is torch's `fully_shard` per block, with its averaging replaced by plain sums. Experts that are
spread over ranks are divided, at every stage, between the ranks that hold the same ones. What no optimizer updates
(routers' biases) lies whole on every rank.

A pipeline rank does this with each of its stages (pipeline.py). It does not handle models that do not fit one rank's
memory before they are cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sekkei.model.lora import lora_config
from sekkei.model.moe import MoE, biases
from sekkei.model.transformer import Transformer
from sekkei.parallel.collectives import all_gathered, all_reduced
from sekkei.parallel.compiled import compile_blocks
from sekkei.parallel.cuts import cut_dim, is_expert
from sekkei.parallel.experts import apply_expert_parallel
from sekkei.parallel.layout import Layout
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.tensor import apply_tensor_parallel, whole
from sekkei.parallel.zero import Zero


class Sharded:
    """A model under a layout.

    Attributes:
        targets: what an optimizer updates, by the parameter's name: parameters, slices of them, or DTensors.
        dtype: of parameters. wide: of what the optimizer updates. lora: of an adapter in the model.
    """

    def __init__(self, model: Transformer, mesh: Mesh) -> None:
        layout = mesh.layout
        layout.check(model.config)
        self.model, self.mesh, self.config = model, mesh, model.config
        self.wide = next(model.parameters()).dtype
        self.dtype = held_dtype(layout, self.wide)
        self.lora = lora_config(model)
        self.partial: frozenset[str] = frozenset()
        if layout.tp > 1:
            self.partial = apply_tensor_parallel(model, mesh.tp, layout.sequence_parallel)
        if mesh.ep is not None:
            apply_expert_parallel(model, mesh.ep)
        if layout.compile:
            compile_blocks(model)
        self.zeros: list[Zero] = []
        if layout.zero == 3:
            _fully_shard(model, mesh)
            self.targets = {name: p for name, p in model.named_parameters() if p.requires_grad}
        else:
            self.zeros = _zeros(model, mesh)
            places = {name: target for zero in self.zeros for name, target in zero.targets.items()}
            self.targets = {name: places[name] for name, _ in model.named_parameters() if name in places}
        self.partial &= self.targets.keys()  # what is frozen beside an adapter has no gradient
        self._slices = {s.name: s for zero in self.zeros for s in zero.slices}
        self._zero_of = {s.name: zero for zero in self.zeros for s in zero.slices}

    def finish_micro_batch(self) -> None:
        for zero in self.zeros:
            zero.finish_micro_batch()

    def finish_gradients(self) -> None:
        """After the last backward pass of an update: gradients of targets are those of the global batch."""
        for zero in self.zeros:
            zero.finish_gradients()
        if self.partial:
            for name in sorted(self.partial):
                grad = self.gradient(name)
                if grad is not None:
                    dist.all_reduce(_local(grad), group=self.mesh.tp)

    def gradient(self, name: str) -> Tensor | None:
        """Of a target, as it is kept until the optimizer: perhaps narrower than the target."""
        held = self._slices.get(name)
        return held.gradient if held and self._zero_of[name].apart else self.targets[name].grad

    def grad_norm(self) -> float:
        """2-norm of the whole model's gradient: each element counts once, wherever it lies."""
        return math.sqrt(self.grad_square())

    def grad_square(self) -> float:
        """Its square."""
        mesh, layout = self.mesh, self.mesh.layout
        device = torch.device(mesh.device_type)
        squares = torch.zeros(3, dtype=torch.float64, device=device)  # cut over tp; the same on all tp ranks; over ep
        for name in self.targets:
            grad = self.gradient(name)
            if grad is not None:
                cut = layout.tp > 1 and cut_dim(name) is not None
                part = 2 if layout.ep > 1 and is_expert(name) else 0 if cut else 1
                squares[part] += _local(grad).double().square().sum().to(device)
        if layout.zero:
            dist.all_reduce(squares[:2], group=mesh.sharding if layout.zero == 3 else mesh.data)
        dist.all_reduce(squares[:1], group=mesh.tp)
        if mesh.ep is not None:
            if layout.zero:
                dist.all_reduce(squares[2:], group=mesh.same_experts)
            dist.all_reduce(squares[2:], group=mesh.ep)
        return float(squares.sum())

    def clip(self, limit: float) -> float:
        """Scale gradients so that their common norm is at most `limit`; returns the norm before."""
        norm = self.grad_norm()
        self.widen()
        if norm > limit:
            scale_gradients(self.targets.values(), limit / (norm + 1e-6))
        return norm

    def widen(self) -> None:
        """Before the optimizer: targets have their gradients in their own dtype."""
        for zero in self.zeros:
            zero.widen()

    def publish(self) -> None:
        """After the optimizer's step."""
        for zero in self.zeros:
            zero.publish()
            zero.zero_grad()

    def gather_named(self, masters: bool = False, frozen: bool = True) -> Iterator[tuple[str, Tensor]]:
        """The whole model's parameters, or what they were rounded from, on every rank, one after the other (all ranks
        take part).

        Args:
            frozen: also those that training leaves as they are.
        """
        moved = biases(self.model)  # without gradients
        for name, parameter in self.model.named_parameters():
            if not (frozen or parameter.requires_grad or name in moved):
                continue
            if masters and name in self.targets:
                yield name, self.whole_of(name, self.targets[name])
            else:
                yield name, self._with_experts(name, self._matrices(name, parameter.detach()))

    def gather_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The whole model's gradients, as `gather_named`; for proofs."""
        for name in self.targets:
            grad = self.gradient(name)
            assert grad is not None, name
            yield name, self.whole_of(name, grad)

    def whole_of(self, name: str, x: Tensor) -> Tensor:
        """From what lies like the target `name` on each rank (a gradient, a moment) to the whole, on every rank."""
        if name not in self.targets:
            return x.detach()  # every rank has it
        return self._with_experts(name, self.matrices_of(name, x))

    def matrices_of(self, name: str, x: Tensor) -> Tensor:
        """As `whole_of`, but of spread experts only those that are here: what Muon orthogonalises."""
        x, parameter = x.detach(), self.model.get_parameter(name)
        zero = self._zero_of.get(name)
        if zero is not None and zero.stage:
            width = -(-parameter.numel() // zero.size)
            padded = x.new_zeros(width)
            padded[: x.numel()] = x
            parts = all_gathered(padded, zero.group)
            x = parts[: parameter.numel()]
        return self._matrices(name, x if isinstance(x, DTensor) else x.view(parameter.shape))

    def part_of(self, name: str, x: Tensor) -> Tensor:
        """The inverse: what of a whole tensor lies like the target `name` here."""
        if name not in self.targets:
            return x
        if self.mesh.ep is not None and is_expert(name):
            x = x.chunk(self.mesh.layout.ep)[dist.get_rank(self.mesh.ep)]
        return self.part_of_matrices(name, x)

    def part_of_matrices(self, name: str, x: Tensor) -> Tensor:
        """The inverse of `matrices_of`."""
        parameter, target = self.model.get_parameter(name), self.targets[name]
        dim = cut_dim(name)
        if self.mesh.layout.tp > 1 and dim is not None:
            x = x.chunk(self.mesh.layout.tp, dim)[self.mesh.tp_rank]
        if isinstance(parameter, DTensor):
            return distribute_tensor(x.contiguous(), parameter.device_mesh, parameter.placements, src_data_rank=None)
        zero = self._zero_of.get(name)
        if zero is not None and zero.stage:
            width = -(-parameter.numel() // zero.size)
            x = x.reshape(-1)[zero.rank * width : (zero.rank + 1) * width]
        return x.reshape(target.shape)

    def ranks_of(self, name: str) -> dist.ProcessGroup | None:
        """Data ranks that `matrices_of` gives the same."""
        return self.mesh.same_experts if self.mesh.ep is not None and is_expert(name) else self.mesh.data

    def summed(self, x: Tensor) -> Tensor:
        """The sum over all ranks with other tokens."""
        return all_reduced(x, self.mesh.data)

    def _with_experts(self, name: str, x: Tensor) -> Tensor:
        return all_gathered(x, self.mesh.ep) if self.mesh.ep is not None and is_expert(name) else x

    def _matrices(self, name: str, x: Tensor) -> Tensor:
        local = x.full_tensor() if isinstance(x, DTensor) else x
        return whole(name, local, self.mesh.tp) if self.mesh.layout.tp > 1 else local

    def bytes(self) -> dict[str, int]:
        """Bytes that this rank holds now: parameters, gradients, masters that are not views of them."""
        parameters = [_local(p) for p in self.model.parameters()]
        slices = self._slices.values()
        gradients = [_local(p.grad) for p in self.model.parameters() if p.grad is not None]
        reduced = [s.gradient for s in slices if s.gradient is not None]
        return {
            "params": _size(parameters),
            "grads": _size(gradients) + _size(_outside(reduced, gradients)),
            "master": _size(_outside([s.master.detach() for s in slices], parameters)),
        }


def scale_gradients(targets: Iterable[torch.nn.Parameter], factor: float) -> None:
    """In place, whatever part of them is here."""
    for target in targets:
        if target.grad is not None:
            _local(target.grad).mul_(factor)


def _zeros(model: Transformer, mesh: Mesh) -> list[Zero]:
    """Stages 0 to 2: of what all data ranks share, and of experts that only some of them share."""
    layout, named = mesh.layout, list(model.named_parameters())
    reduce = torch.bfloat16 if layout.reduce == "bf16" else None
    rest = (layout.zero, weights_dtype(layout), reduce)
    for name, p in named if layout.weights == "bf16" else ():
        if not p.requires_grad and name not in biases(model):  # what an adapter stands beside
            p.data = p.data.to(torch.bfloat16)
    if mesh.same_experts is None:
        return [Zero(named, mesh.data, *rest)]
    dense, spread = ([(name, p) for name, p in named if is_expert(name) is cut] for cut in (False, True))
    return [Zero(dense, mesh.data, *rest), Zero(spread, mesh.same_experts, *rest)]


def _fully_shard(model: Transformer, mesh: Mesh) -> None:
    layout, shards = mesh.layout, mesh.fsdp
    assert shards is not None
    narrow = weights_dtype(layout)
    reduce = torch.bfloat16 if layout.reduce == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=reduce) if narrow else MixedPrecisionPolicy()
    pinned = mesh.device_type == "cuda"
    offload = CPUOffloadPolicy(pin_memory=pinned) if layout.offload else OffloadPolicy()
    options: dict[str, Any] = {
        "mp_policy": policy,
        "offload_policy": offload,
        "ignored_params": set(biases(model).values()),
    }
    for block in model.layers.values():
        if layout.ep > 1 and isinstance(block.mlp, MoE):
            same = mesh.fsdp_experts
            fully_shard(block.mlp.experts, mesh=same, reshard_after_forward=layout.reshard, **options)
        fully_shard(block, mesh=shards, reshard_after_forward=layout.reshard, **options)
    fully_shard(model, mesh=shards, reshard_after_forward=False, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def weights_dtype(layout: Layout) -> torch.dtype | None:
    """What parameters are held in while masters keep their dtype; None: there are no masters apart."""
    return torch.bfloat16 if layout.weights == "bf16" else None


def held_dtype(layout: Layout, wide: torch.dtype) -> torch.dtype:
    """Of parameters between steps: `fully_shard` keeps them wide and gathers them narrow."""
    return wide if layout.zero == 3 else weights_dtype(layout) or wide


def _outside(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> list[Tensor]:
    """Those that share no storage with the others."""
    held = {other.untyped_storage().data_ptr() for other in others}
    return [tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in held]


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x.detach()
