"""This process's place in a layout, and the process groups along its axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from sekkei.parallel.layout import Layout

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXES = ("pp", "replicate", "shard", "cp", "tp")


class Groups:
    """Process groups, each set of ranks made once, for all the meshes that share this.

    A group of gloo is three threads, one of which wakes a hundred times a second, so hundreds of groups (a proof's
    rows, one mesh each) cost more than the work. Axes of size one share a group; so do axes along which the data ranks
    are the same. Pipelines, rings and tensor parallelism keep groups of their own.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[str, tuple[int, ...]], dist.ProcessGroup] = {}

    def of(self, kind: str, rows: list[list[int]]) -> dist.ProcessGroup:
        """This rank's group; every rank must ask for the same `rows` [groups, ranks], in the same order."""
        mine = tuple(next(row for row in rows if dist.get_rank() in row))
        if len(mine) == dist.get_world_size():
            assert dist.group.WORLD is not None
            return dist.group.WORLD
        key = (kind if len(mine) > 1 else "", mine)
        if key not in self.made:
            for row in rows:
                group = dist.new_group(row, group_desc=kind)
                if tuple(row) == mine:
                    self.made[key] = group
        return self.made[key]


class Mesh:
    """This process's place in a layout, and its process groups.

    Args:
        device_type: "cpu" or "cuda". groups: to share with other meshes of this process group.
    Attributes:
        pp, tp, cp: groups along one axis. dp: ranks with other rows (replicate · shard). data: all ranks with other
        tokens (dp · cp). sharding: those among which `zero=3` divides (shard · cp). ep: ranks that share a layer's
        experts; same_experts: ranks that hold the same ones; None where ep = 1. fsdp, fsdp_experts: meshes for
        `fully_shard`, with `zero=3`.
    """

    def __init__(self, layout: Layout, device_type: str, groups: Groups | None = None) -> None:
        from torch.distributed.device_mesh import DeviceMesh

        groups = groups or Groups()
        self.layout, self.device_type = layout, device_type
        sizes = (layout.pp, layout.replicate, layout.dp // layout.replicate, layout.cp, layout.tp)
        grid = torch.arange(layout.world).view(sizes)
        self.pp, self.cp, self.tp = (groups.of(axis, _rows(grid, axis)) for axis in ("pp", "cp", "tp"))
        self.dp = groups.of("data", _rows(grid, "replicate", "shard"))
        self.data = groups.of("data", _rows(grid, "replicate", "shard", "cp"))
        self.sharding = groups.of("data", _rows(grid, "shard", "cp"))
        self.pp_rank, self.dp_rank, self.cp_rank, self.tp_rank = (
            dist.get_rank(group) for group in (self.pp, self.dp, self.cp, self.tp)
        )
        self.ep: dist.ProcessGroup | None = None
        self.same_experts: dist.ProcessGroup | None = None
        if layout.ep > 1:
            data = grid.view(layout.pp, -1, layout.ep, layout.tp)
            self.ep = groups.of("ep", data.transpose(2, 3).reshape(-1, layout.ep).tolist())
            self.same_experts = groups.of("data", data.movedim(1, 3).reshape(-1, data.shape[1]).tolist())
        self.fsdp: DeviceMesh | None = None
        self.fsdp_experts: DeviceMesh | None = None
        if layout.zero == 3:
            self.fsdp = DeviceMesh.from_group(self.sharding, device_type, mesh_dim_names=("shard_cp",))
            if self.same_experts is not None:
                self.fsdp_experts = DeviceMesh.from_group(self.same_experts, device_type, mesh_dim_names=("same",))
        if layout.replicate > 1:
            copies = groups.of("data", _rows(grid, "replicate"))
            here = torch.tensor(dist.get_process_group_ranks(self.data)).view(layout.replicate, -1)
            names = ("replicate", "shard_cp")
            self.fsdp = DeviceMesh.from_group([copies, self.sharding], device_type, here, mesh_dim_names=names)


def _rows(grid: torch.Tensor, *axes: str) -> list[list[int]]:
    """Ranks of a mesh [pp, replicate, shard, cp, tp] that differ along some axes only: [groups, ranks]."""
    along = [AXES.index(axis) for axis in axes]
    others = [i for i in range(len(AXES)) if i not in along]
    size = math.prod(grid.shape[i] for i in along)
    rows: list[list[int]] = grid.permute(*others, *along).reshape(-1, size).tolist()
    return rows
