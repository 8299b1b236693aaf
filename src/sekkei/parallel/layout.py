"""How a model is spread over processes: the `layout:` of a recipe, its arithmetic, and the mesh of its process groups.

    world = pp · replicate · shard · cp · tp     dp = replicate · shard

    rank  0  1  2  3  4  5  6  7                 axes from outer to inner: ranks that differ in tp only are neighbours,
    pp    0  0  0  0  1  1  1  1                 because tensor parallelism talks most (inside a node), pipelines least
    dp    0  0  1  1  0  0  1  1                 (between nodes)
    tp    0  1  0  1  0  1  0  1

ZeRO stages (Rajbhandari et al. 2020, section 5) say what the data ranks divide between them: 0 nothing, 1 optimizer
state, 2 gradients too, 3 parameters too. Context-parallel ranks hold the same parameters and see other tokens, so for
sums of gradients and for sharding they are data ranks. Pipeline ranks hold other layers and share nothing.

Experts (model/moe.py) are spread over `ep` neighbouring data ranks, which lie inside shard · cp. Ranks that hold the
same experts, `ep` apart, are the data ranks of these:

    shard · cp   0 1 2 3       ep = 2: experts   A B A B       sums over {0, 2} and {1, 3}; of all else, over all four
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

from sekkei.core.errors import ConfigError
from sekkei.model.config import ModelConfig
from sekkei.parallel.zigzag import check_length

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXES = ("pp", "replicate", "shard", "cp", "tp")

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]
CHUNKS: dict[Schedule, int] = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zero_bubble": 2}
"""Stages that a pipeline rank holds: with two, the bubble of the first is filled by the second."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One line of a recipe.

    Args:
        pp: pipeline ranks, each with some layers; schedule: the order of their work.
        dp: data-parallel ranks. replicate: how many groups of them hold the same shards (hybrid sharding; divides dp).
        cp: ranks that share one row (ring attention). tp: ranks that share one layer. zero: stage 0 to 3.
        ep: data ranks that share the experts of each layer.
        reshard: stage 3 frees a block's gathered parameters after the forward pass and gathers them again.
        context: how cp ranks share keys and values: passed round a ring, or gathered at once.
        sequence_parallel: the residual stream between tensor-parallel parts is cut over tp, too.
        microbatches: parts of each data rank's rows in an update, at least (0: as few as possible).
        recompute: what a backward pass computes again: `selective` attention's scores (Korthikanti et al. 2022,
        section 5), `full` whole blocks. weights: of the model while it trains; `bf16` keeps float32 masters, divided as
        `zero` says, and `reduce` is the dtype in which gradients of data ranks are then summed.
        offload: `zero=3` keeps parameters and moments in the CPU's memory. compile: fuse blocks by torch.compile.
    """

    pp: int = 1
    dp: int = 1
    replicate: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    zero: int = 0
    reshard: bool = True
    context: Literal["ring", "gather"] = "ring"
    sequence_parallel: bool = False
    schedule: Schedule = "1f1b"
    microbatches: int = 0
    recompute: Recompute = "none"
    weights: Literal["fp32", "bf16"] = "fp32"
    reduce: Literal["fp32", "bf16"] = "fp32"
    offload: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for key in ("pp", "dp", "replicate", "cp", "tp", "ep"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if not 0 <= self.zero <= 3:
            raise ConfigError("zero", f"got {self.zero}, must be 0, 1, 2 or 3")
        if self.dp % self.replicate:
            raise ConfigError("replicate", f"replicate={self.replicate} must divide dp={self.dp}")
        if self.zero and self.dp * self.cp == 1:
            raise ConfigError("zero", f"zero={self.zero} divides state between data ranks: dp·cp = 1·1 has one")
        if self.replicate > 1 and self.zero != 3:
            raise ConfigError("replicate", f"replicate={self.replicate} is a form of zero=3, got zero={self.zero}")
        if self.pp > 1 and self.schedule == "zero_bubble" and self.zero == 3:
            raise ConfigError(
                "schedule", "zero_bubble puts weight gradients off, where zero=3 does not see them: zero <= 2"
            )
        if self.pp > 1 and self.schedule == "zero_bubble" and self.recompute == "full":
            raise ConfigError(
                "recompute",
                "full would compute a block again for its input and once more for every matrix of it, as zero_bubble "
                "takes these gradients apart: none, selective, or schedule=interleaved",
            )
        if self.context != "ring" and self.cp == 1:
            raise ConfigError("context", f"{self.context!r} is a way to share a row over cp, and cp=1")
        if self.sequence_parallel and self.tp == 1:
            raise ConfigError("sequence_parallel", "cuts the sequence over tp, and tp=1")
        if self.microbatches < 0:
            raise ConfigError("microbatches", f"got {self.microbatches}, must be >= 0 (0: as few as possible)")
        shard = self.dp // self.replicate
        if shard * self.cp % self.ep:
            raise ConfigError("ep", f"ep={self.ep} must divide dp/replicate·cp = {shard}·{self.cp} = {shard * self.cp}")
        self._check_weights()

    def _check_weights(self) -> None:
        if self.weights == "bf16" and self.world == 1:
            raise ConfigError("weights", "'bf16' needs ranks that keep float32 masters; one process casts (loop.dtype)")
        if self.reduce == "bf16" and self.weights == "fp32":
            raise ConfigError("reduce", "'bf16' sums gradients in the weights' dtype: set weights=bf16 as well")
        if self.compile and self.world == 1:
            raise ConfigError("compile", "is for the parts of several ranks; one process runs its blocks as they are")
        if self.compile and self.recompute == "selective":
            raise ConfigError("compile", "fuses whole blocks, and recompute=selective reaches into them: none or full")
        if self.compile and self.pp > 1 and self.schedule == "zero_bubble":
            raise ConfigError("compile", "computes a block's gradients at once, and zero_bubble takes them apart")
        if self.offload and self.zero != 3:
            raise ConfigError("offload", f"is a form of zero=3, got zero={self.zero}")

    @property
    def world(self) -> int:
        """Processes that it needs."""
        return self.pp * self.dp * self.cp * self.tp

    @property
    def stages(self) -> int:
        """Parts that the model is cut into, one after the other."""
        return self.pp * CHUNKS[self.schedule] if self.pp > 1 else 1

    @property
    def name(self) -> str:
        """Short, as in tables: `dp2·tp2 zero3`."""
        axes = [f"{key}{value}" for key in ("pp", "dp", "cp", "tp", "ep") if (value := getattr(self, key)) > 1]
        marks = [self.schedule] if self.pp > 1 else []
        marks += [f"zero{self.zero}"] if self.zero else []
        marks += [f"replicate{self.replicate}"] if self.replicate > 1 else []
        marks += ["keep"] if self.zero == 3 and not self.reshard else []
        marks += [self.context] if self.context != "ring" else []
        marks += ["sp"] if self.sequence_parallel else []
        marks += [f"m{self.microbatches}"] if self.microbatches else []
        marks += {"none": [], "selective": ["recompute-scores"], "full": ["recompute"]}[self.recompute]
        marks += [f"{self.weights} weights"] if self.weights != "fp32" else []
        marks += [f"{self.reduce} sums"] if self.reduce != "fp32" else []
        marks += ["offload"] if self.offload else []
        marks += ["compile"] if self.compile else []
        return " ".join(["·".join(axes) or "single", *marks])

    def check(self, model: ModelConfig, world: int | None = None, tokens: int | None = None) -> None:
        """Refuse what does not divide.

        Args:
            world: processes there are. tokens: of a row.
        Raises:
            ConfigError: with the arithmetic.
        """
        if world is not None and world != self.world:
            product = f"pp·dp·cp·tp = {self.pp}·{self.dp}·{self.cp}·{self.tp} = {self.world}"
            raise ConfigError("layout", f"{product}, and there are {world} processes")
        self._check_experts(model)
        for key in ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size"):
            if getattr(model, key) % self.tp:
                raise ConfigError("layout.tp", f"tp={self.tp} must divide model.{key}={getattr(model, key)}")
        if model.tied_embeddings and self.tp > 1:
            raise ConfigError("layout.tp", f"tp={self.tp} cannot cut tied embeddings; set model.tied_embeddings=false")
        self._check_stages(model)
        if tokens is not None:
            check_length(tokens, self.cp)
            if self.sequence_parallel and tokens // self.cp % self.tp:
                raise ConfigError(
                    "layout.sequence_parallel", f"tp={self.tp} must divide a rank's {tokens}/{self.cp} tokens"
                )

    def check_micro_batches(self, count: int) -> None:
        """Refuse an update that the schedule cannot run.

        Args:
            count: micro-batches of each data rank.
        Raises:
            ConfigError: fewer than stages (the pipeline would never be full), or not whole rounds.
        """
        if self.pp > 1 and self.schedule == "1f1b" and count < self.pp:
            raise ConfigError(
                "layout.pp", f"1f1b needs pp={self.pp} micro-batches per data rank, an update has {count}"
            )
        if self.pp > 1 and CHUNKS[self.schedule] > 1 and count % self.pp:
            raise ConfigError(
                "layout.schedule", f"{self.schedule} goes in rounds: pp={self.pp} must divide {count} micro-batches"
            )

    def _check_experts(self, model: ModelConfig) -> None:
        if model.moe is None:
            if self.ep > 1:
                raise ConfigError("layout.ep", f"ep={self.ep} spreads experts, and model.moe is not set")
            return
        if self.tp > 1:
            raise ConfigError("layout.tp", f"tp={self.tp} cuts models without model.moe; use ep, dp, cp and pp")
        if model.moe.experts % self.ep:
            raise ConfigError("layout.ep", f"ep={self.ep} must divide model.moe.experts={model.moe.experts}")

    def _check_stages(self, model: ModelConfig) -> None:
        if self.pp == 1:
            return
        if model.tied_embeddings:
            raise ConfigError(
                "layout.pp", f"pp={self.pp} puts tied embeddings on two ranks; set model.tied_embeddings=false"
            )
        if model.num_layers % self.stages:
            product = f"pp·{CHUNKS[self.schedule]} = {self.stages} stages of {self.schedule}"
            raise ConfigError("layout.pp", f"{product} must divide model.num_layers={model.num_layers}")


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
