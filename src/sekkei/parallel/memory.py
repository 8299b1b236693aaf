"""Bytes of state that one rank holds under a layout, in closed form: nothing is built, nothing is run.

    parameters + gradients + master + moments        exact: `Sharded.bytes()` and Adam's state

What is there besides at the highest point of a step: peak.py. In bytes per parameter, for N data ranks (dp · cp) and
n = the parameters left after tensor parallelism:

                    fp32 weights     bf16 weights, fp32 master     the same, gradients summed in fp32
    stage 0         4 + 4 + 8        2 + 2 + 12                    2 + 4 + 12
    stage 1         8 + 8 / N        4 + 12 / N                    4 + 16 / N
    stage 2         4 + 12 / N       2 + 14 / N                    2 + 16 / N
    stage 3         16 / N           16 / N                        16 / N

The middle column is the textbook's (Rajbhandari et al. 2020, section 5). Summed in fp32 (`layout.reduce`, the default),
the reduced gradient of a slice costs 4 / N beside the whole bf16 gradients (stage 1) or in place of their slice of
2 / N (stage 2). A parameter that N does not divide gives the first ranks ceil(n / N) elements (stages 1 and 2) or
ceil(rows / N) rows (stage 3), the last ones less. State is that between the backward pass and the optimizer, which
widens the gradients of a rank's slices to fp32 while it runs.

Exact in all stages; stage 3 with bf16 weights keeps fp32 shards that are gathered in bf16.

A pipeline rank has its own layers, the first one the embedding too, the last one norm, head and logits; how many
micro-batches' activations it keeps is its schedule's (order.py).

Experts: a rank has E / ep of each layer, N is dp · cp / ep for them, and its rows are taken as its share, as if loads
were balanced. Routers' biases lie whole and wide on every rank, without gradients.

It does not handle offloading, Muon, or the allocator's fragments.

Shapes: `L` layers, `D` width, `N` query heads, `K` key/value heads, `H` head width, `F` inner width, `V` vocabulary,
`M` tokens of a micro-batch on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

from sekkei.core.errors import ConfigError
from sekkei.model.config import ModelConfig
from sekkei.parallel.cuts import cut_dim, is_expert
from sekkei.parallel.layout import Layout

Weights = Literal["fp64", "fp32", "bf16"]
Table = tuple[tuple[str, tuple[int, ...], int], ...]
WEIGHT_BYTES: dict[Weights, int] = {"fp64": 8, "fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained.

    Args:
        context: tokens of a row. rows: of the global batch. micro_rows: rows per data rank and forward pass.
        weights: their dtype, which goes before the layout's; forward passes of fp32 and bf16 run in bf16.
    """

    model: ModelConfig
    context: int
    rows: int
    micro_rows: int = 1
    weights: Weights = "bf16"

    def __post_init__(self) -> None:
        for key in ("context", "rows", "micro_rows"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")

    @property
    def weight(self) -> int:
        """Bytes of a weight."""
        return WEIGHT_BYTES[self.weights]

    @property
    def wide(self) -> int:
        """Bytes of an element of masters, moments and reduced gradients."""
        return max(4, self.weight)

    @property
    def compute(self) -> int:
        """Bytes of an element in forward passes."""
        return 8 if self.weights == "fp64" else 2

    def check(self, layout: Layout) -> None:
        """Refuse a layout that does not divide the model or the batch.

        Raises:
            ConfigError: with the arithmetic.
        """
        layout.check(self.model, tokens=self.context)
        if self.rows % (layout.dp * self.micro_rows):
            product = f"dp·micro_rows = {layout.dp}·{self.micro_rows} = {layout.dp * self.micro_rows}"
            raise ConfigError("layout.dp", f"{product} must divide rows={self.rows}")
        layout.check_micro_batches(self.passes(layout))

    def passes(self, layout: Layout) -> int:
        """Micro-batches of one step on each rank."""
        return self.rows // (layout.dp * self.micro_rows)


def textbook_bytes(stage: int, ranks: int) -> float:
    """Bytes per parameter by the ZeRO paper: bf16 weights and gradients, fp32 master and moments."""
    return (16.0, 4 + 12 / ranks, 2 + 14 / ranks, 16 / ranks)[stage]


def parameter_table(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], range]]:
    """(name in the first of them, shape, layers that have it) of every parameter; what is in no layer has one."""
    d, h, one = model.hidden_size, model.head_size, range(1)
    a, c, layers = model.num_heads * h, model.num_kv_heads * h, range(model.num_layers)
    yield "embed.weight", (model.vocab_size, d), one
    block = {
        "attention_norm": (d,),
        "attention.q_proj": (a, d),
        "attention.k_proj": (c, d),
        "attention.v_proj": (c, d),
        "attention.o_proj": (d, a),
        "mlp_norm": (d,),
    }
    if model.qk_norm:
        block |= {"attention.q_norm": (h,), "attention.k_norm": (h,)}
    for name, shape in block.items():
        yield f"layers.0.{name}.weight", shape, layers
    for name, shape in _mlp("mlp", d, model.intermediate_size).items() if model.dense_layers else ():
        yield f"layers.0.{name}.weight", shape, layers[: model.dense_layers]
    if model.moe is not None:
        first, moe = model.dense_layers, model.moe
        some = {"mlp.router.weight": (moe.experts, d), "mlp.router.bias": (moe.experts,)}
        for name, shape in _mlp("mlp.experts", d, moe.intermediate_size).items():
            some[name] = (moe.experts, *shape)
        if moe.shared:
            shared = _mlp("mlp.shared", d, moe.shared * moe.intermediate_size)
            some |= {f"{name}.weight": shape for name, shape in shared.items()}
        for name, shape in some.items():
            yield f"layers.{first}.{name}", shape, layers[first:]
    yield "norm.weight", (d,), one
    if not model.tied_embeddings:
        yield "lm_head.weight", (model.vocab_size, d), one


def _mlp(name: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    sizes = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    return {f"{name}.{part}": shape for part, shape in sizes.items()}


def layers_here(model: ModelConfig, layout: Layout, stage: int) -> list[int]:
    """Layers of pipeline rank `stage`: its stages are pp apart."""
    return _layers_here(model.num_layers, layout.pp, layout.stages, stage)


def _layers_here(layers: int, pp: int, stages: int, stage: int) -> list[int]:
    each = layers // stages
    return [layer for layer in range(layers) if layer // each % pp == stage]


def local_table(model: ModelConfig, layout: Layout, stage: int) -> Table:
    """(name, shape, how often) on one tensor- and expert-parallel rank of pipeline rank `stage`."""
    return _local_table(model, layout.pp, layout.stages, layout.tp, layout.ep, stage)


@lru_cache
def _local_table(model: ModelConfig, pp: int, stages: int, tp: int, ep: int, stage: int) -> Table:
    found, here = [], set(_layers_here(model.num_layers, pp, stages, stage))
    for name, shape, layers in parameter_table(model):
        home = 0 if name.startswith("embed.") else pp - 1
        times = len(here.intersection(layers)) if name.startswith("layers.") else int(stage == home)
        cut, parts = (0, ep) if is_expert(name) else (cut_dim(name), tp)
        if times:
            local = tuple(size // parts if dim == cut else size for dim, size in enumerate(shape))
            found.append((name, local, times))
    return tuple(found)


def state_bytes(model: ModelConfig, layout: Layout, weights: Weights, rank: int = 0) -> dict[str, int]:
    """Parameters, gradients, masters and Adam's moments on `rank`, after backward and before the optimizer's step."""
    stage, inside = divmod(rank, layout.world // layout.pp)
    data = inside // layout.tp
    whole = own = rows = biases = 0
    for name, shape, times in local_table(model, layout, stage):
        size, spread = prod(shape), layout.ep > 1 and is_expert(name)
        if name.endswith(".router.bias"):
            biases += times * size
            continue
        ranks, index = layout.dp * layout.cp, data
        shards = ranks // layout.replicate
        if spread:
            shards, index = ranks // layout.ep, data // layout.ep
            ranks = shards
        whole += times * size
        own += times * _share(size, ranks, index)
        rows += times * _share(shape[0], shards, index % shards) * prod(shape[1:])
    w = WEIGHT_BYTES[weights]
    wide = max(4, w)
    sums = wide if layout.reduce == "fp32" else w
    if layout.zero == 3:
        return {"params": wide * (rows + biases), "grads": wide * rows, "master": 0, "moments": 2 * wide * rows}
    updated = own if layout.zero else whole
    grads = {0: sums * whole, 1: w * whole + (sums * own if sums > w else 0), 2: sums * own}[layout.zero]
    master = wide * updated if w < wide else 0  # else a view of the weights
    return {"params": w * whole + wide * biases, "grads": grads, "master": master, "moments": 2 * wide * updated}


def _share(size: int, parts: int, index: int) -> int:
    """Elements of part `index`, where every part but the last ones has ceil(size / parts)."""
    width = -(-size // parts)
    return max(0, min(width, size - index * width))


def micro_tokens(job: Job, layout: Layout) -> int:
    """`M`."""
    return job.micro_rows * job.context // layout.cp


@dataclass(frozen=True)
class Held:
    """Parameters on one rank of a pipeline stage: outside of blocks, in all blocks, of those in spread experts; and in
    the largest block.
    """

    root: int
    blocks: int
    spread: int
    largest: int


def held_parameters(model: ModelConfig, layout: Layout, stage: int = 0) -> Held:
    """Before ZeRO divides them; without routers' biases, which no gradient reaches."""
    return _held(local_table(model, layout, stage), layout.ep > 1)


def stage_parameters(model: ModelConfig, layout: Layout, number: int) -> Held:
    """Those of one stage, of which a rank may have two."""
    return _held(_local_table(model, layout.stages, layout.stages, layout.tp, layout.ep, number), layout.ep > 1)


@lru_cache
def _held(local: Table, experts: bool) -> Held:
    table = [(name, prod(shape), times) for name, shape, times in local if not name.endswith(".router.bias")]
    blocks = sum(size * times for name, size, times in table if name.startswith("layers."))
    spread = sum(size * times for name, size, times in table if experts and is_expert(name))
    mlp = sum(size for name, size, _ in table if ".mlp." in name and name.startswith("layers.0."))
    experts = sum(size for name, size, _ in table if ".mlp." in name) - mlp
    rest = sum(size for name, size, _ in table if name.startswith("layers.") and ".mlp." not in name)
    return Held(sum(size * times for _, size, times in table) - blocks, blocks, spread, rest + max(mlp, experts))


def hidden_bytes(job: Job, layout: Layout) -> int:
    """What one pipeline stage sends to the next for a micro-batch."""
    cut = layout.tp if layout.sequence_parallel else 1
    return micro_tokens(job, layout) * job.model.hidden_size * job.weight // cut


def routed_bytes(job: Job, layout: Layout) -> int:
    """What a rank sends to the experts of one layer for a micro-batch, its own share included."""
    active = job.model.moe.active if job.model.moe else 0
    return micro_tokens(job, layout) * active * job.model.hidden_size * job.compute


def kv_width(model: ModelConfig, layout: Layout) -> int:
    """Elements of keys and values of one token in one layer on one rank."""
    return 2 * model.num_kv_heads * model.head_size // layout.tp
