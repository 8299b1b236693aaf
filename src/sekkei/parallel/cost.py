"""Seconds of one optimizer step under a layout, estimated from a data sheet: a ranking aid, not a forecast.

    step = (compute + tp + ep + cp + pp) (1 + bubble) + data

    compute   rows · T · (6 P + 12 L T N H) / (gpus · peak · utilisation), 4/3 of it with recomputation
    tp        4 L + 2 sums of [M, D] per micro-batch (two per block forward, two backward; embedding, head), 2 L more
              with recomputation. A sum moves 2 (n-1)/n of its bytes; the sequence cut too, two halves of that
    ep        4 exchanges of k M rows [D] per micro-batch and layer with experts (there and back, forward and backward),
              2 more with recomputation, of which (ep - 1) / ep leaves the rank, as if loads were balanced
    cp        cp - 1 hops of keys and values forward and backward, cp hops of their float32 gradients; what attention's
              own time hides of it is free. Gathered instead: as many bytes but one hop, and nothing is hidden
    pp        hidden states to the next stage and gradients back, for each stage of a rank and micro-batch
    bubble    (p - 1) / m idle to busy for gpipe and 1f1b, half of it interleaved (Narayanan et al. 2021, section 2.2),
              a third zero_bubble (Qi et al. 2023, ZB-H1, forward and both halves of backward equally long)
    data      stage 0  one sum of gradients per step              stage 2  a wide reduce-scatter per micro-batch,
              stage 1  one wide reduce-scatter per step,                   one all-gather of weights
                       one all-gather of weights                  stage 3  all-gather, again with `reshard`, and a wide
                                                                           reduce-scatter per micro-batch
              stages 0 to 2 wait for it (zero.py); stage 3 fetches ahead, so that what is longer than the computation
              counts, and at least one block's share. Spread experts: the same over dp · cp / ep ranks

Links: ranks are numbered with tp innermost, then cp, shard, replicate, pp; an axis whose ranks are in one node has the
node's link. Else collectives over k ranks of each node use k network cards, as NCCL's rings do. Hops of a ring, and
tensor parallelism over more than one node, have one card.

Assumptions, none of them measured here: 50% utilisation of the peak where nothing is waited for; 80% of a link's rate;
20 µs per collective. It does not handle congestion, stragglers, or stages of unequal work: embedding and head count as
spread evenly.

Shapes: as memory.py.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from sekkei.core.errors import ConfigError
from sekkei.core.hardware import GIB, dense_bf16_flops
from sekkei.model.flops import flops_per_token
from sekkei.parallel.layout import Layout, Recompute
from sekkei.parallel.memory import Job, held_parameters, hidden_bytes, kv_width, layers_here, micro_tokens, routed_bytes

UTILISATION = 0.5
LINK_SHARE = 0.8
COLLECTIVE_SECONDS = 20e-6


@dataclass(frozen=True)
class Gpu:
    """Bytes of memory, and bytes per second to one side: `node` to GPUs of the node, `network` to others."""

    name: str
    memory: int
    node: float
    network: float

    @property
    def flops(self) -> float:
        """Dense bf16, from core/hardware.py."""
        found = dense_bf16_flops(self.name.upper())
        assert found is not None, self.name
        return found


# Memory and NVLink: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM, B200 (NVLink is quoted for both sides
# together: 600, 900, 900, 1800 GB/s). Network: one card per GPU, as in DGX A100 (ConnectX-6, 200 Gbit/s), DGX H100,
# H200 and B200 (ConnectX-7, 400 Gbit/s). The sheets' GB of memory are binary ones.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 80 * GIB, 300e9, 25e9),
        Gpu("h100", 80 * GIB, 450e9, 50e9),
        Gpu("h200", 141 * GIB, 450e9, 50e9),
        Gpu("b200", 180 * GIB, 900e9, 50e9),
    )
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines of equal GPUs.

    Args:
        gpus: all of them. network: bytes per second of a GPU's share of the network; None: its usual card's.
    """

    gpu: Gpu
    gpus: int
    gpus_per_node: int = 8
    network: float | None = None
    utilisation: float = UTILISATION

    def __post_init__(self) -> None:
        for key in ("gpus", "gpus_per_node"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ConfigError("gpus_per_node", f"gpus_per_node={self.gpus_per_node} must divide gpus={self.gpus}")
        if not 0 < self.utilisation <= 1:
            raise ConfigError("utilisation", f"got {self.utilisation}, must be in (0, 1]")
        if self.network is not None and self.network <= 0:
            raise ConfigError("interconnect", f"got {self.network / 1e9:g}, must be > 0 GB/s")

    def link(self, inner: int, size: int, one_card: bool = False) -> float:
        """Bytes per second for an axis of `size` ranks that are `inner` apart; `one_card`: only one crosses."""
        node = self.gpu.node * LINK_SHARE
        if inner * size <= self.gpus_per_node:
            return node
        cards = 1 if one_card else max(1, self.gpus_per_node // inner)
        return min(node, (self.network or self.gpu.network) * LINK_SHARE * cards)


def find_gpu(name: str) -> Gpu:
    """The table's GPU called `name`.

    Raises:
        ConfigError: unknown; names the nearest.
    """
    key = name.lower()
    if key not in GPUS:
        near = difflib.get_close_matches(key, GPUS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(GPUS)}"
        raise ConfigError("--gpu", f"got {name!r}, no such GPU in the table; {hint}")
    return GPUS[key]


def step_seconds(job: Job, layout: Layout, cluster: Cluster) -> dict[str, float]:
    """Seconds of one step by part; their sum is the estimate."""
    compute = step_flops(job, layout.recompute) / (cluster.gpus * cluster.gpu.flops * cluster.utilisation)
    passes = job.passes(layout)
    busy = {
        "compute": compute,
        "tp": passes * _tensor_seconds(job, layout, cluster),
        "ep": passes * _exchange_seconds(job, layout, cluster),
        "cp": passes * _ring_seconds(job, layout, cluster),
        "pp": passes * _stage_seconds(job, layout, cluster),
    }
    idle = bubble(layout, passes) * sum(busy.values())
    return {**busy, "bubble": idle, "data": _data_seconds(job, layout, cluster, compute)}


def bubble(layout: Layout, passes: int) -> float:
    """Idle time of a pipeline rank over its busy time."""
    share = {"gpipe": 1.0, "1f1b": 1.0, "interleaved": 1 / 2, "zero_bubble": 1 / 3}[layout.schedule]
    return share * (layout.pp - 1) / passes


def step_flops(job: Job, recompute: Recompute = "none") -> float:
    """Computed in one step by all GPUs: recomputation adds the forward third of all, or of attention's scores."""
    model = job.model
    scores = 12.0 * model.num_layers * job.context * model.num_heads * model.head_size
    plain = flops_per_token(model, job.context)
    again = {"none": 0.0, "selective": scores / 3, "full": plain / 3}[recompute]
    return job.rows * job.context * (plain + again)


def tensor_bytes(job: Job, layout: Layout) -> tuple[float, int]:
    """Bytes that a rank sends per micro-batch along tp, and in how many collectives."""
    if layout.tp == 1:
        return 0.0, 0
    sums = (6 if layout.recompute == "full" else 4) * job.model.num_layers // layout.pp + 2
    one = micro_tokens(job, layout) * job.model.hidden_size * job.compute
    return 2 * (layout.tp - 1) / layout.tp * one * sums, sums * (2 if layout.sequence_parallel else 1)


def exchange_bytes(job: Job, layout: Layout) -> tuple[float, int]:
    """Bytes that a rank sends per micro-batch to and from experts, and in how many collectives."""
    if layout.ep == 1:
        return 0.0, 0
    layers = sum(layer >= job.model.dense_layers for layer in layers_here(job.model, layout, layout.pp - 1))
    again = layout.recompute == "full"
    moved = (layout.ep - 1) / layout.ep * routed_bytes(job, layout)
    return layers * (6 if again else 4) * moved, layers * (8 if again else 5)  # counts go before rows


def ring_bytes(job: Job, layout: Layout) -> tuple[float, int]:
    """Bytes that a rank sends per micro-batch along cp, and in how many hops."""
    if layout.cp == 1:
        return 0.0, 0
    elements = micro_tokens(job, layout) * kv_width(job.model, layout)
    hops = layout.cp - 1
    keys = (2 if layout.recompute == "none" else 3) * hops
    gradients = layout.cp * max(4, job.compute)
    layers = job.model.num_layers // layout.pp
    return float(layers * elements * (keys * job.compute + gradients)), layers * (keys + layout.cp)


def data_bytes(job: Job, layout: Layout) -> dict[str, float]:
    """Bytes that a rank sends per step for gradients and weights: `shard` along the sharding ranks, `replicate`, and
    `experts` along those that hold the same ones.
    """
    held, passes, r = held_parameters(job.model, layout), job.passes(layout), layout.replicate
    n = layout.dp * layout.cp // r
    blocks = held.blocks - held.spread
    summed = passes * 2 * (r - 1) / r * job.wide * (held.root + blocks) / n if layout.zero == 3 else 0.0
    return {
        "shard": (n - 1) / n * _moved(job, layout, held.root, blocks),
        "replicate": summed,
        "experts": (1 - layout.ep / (n * r)) * _moved(job, layout, 0, held.spread),
    }


def _moved(job: Job, layout: Layout, root: int, blocks: int) -> float:
    """Bytes of gradients and weights per step that all but one of the sharding ranks send on."""
    w, wide, passes = job.weight, job.wide, job.passes(layout)
    if layout.zero == 3:
        again = blocks if layout.reshard else 0
        return passes * (w * (root + blocks + again) + wide * (root + blocks))
    if layout.zero == 0:
        return 2 * w * (root + blocks)
    return (root + blocks) * ((passes if layout.zero == 2 else 1) * wide + w)


def _tensor_seconds(job: Job, layout: Layout, cluster: Cluster) -> float:
    moved, calls = tensor_bytes(job, layout)
    return moved / cluster.link(1, layout.tp, one_card=True) + calls * COLLECTIVE_SECONDS


def _exchange_seconds(job: Job, layout: Layout, cluster: Cluster) -> float:
    moved, calls = exchange_bytes(job, layout)
    return moved / cluster.link(layout.tp, layout.ep) + calls * COLLECTIVE_SECONDS


def _ring_seconds(job: Job, layout: Layout, cluster: Cluster) -> float:
    moved, hops = ring_bytes(job, layout)
    if not hops:
        return 0.0
    if layout.context == "gather":
        return moved / cluster.link(layout.tp, layout.cp) + hops / layout.cp * COLLECTIVE_SECONDS
    model = job.model
    scores = (
        12.0
        * (model.num_layers // layout.pp)
        * job.context
        * model.num_heads
        * model.head_size
        * (1 if layout.recompute == "none" else 4 / 3)
    )
    rate = cluster.gpu.flops * cluster.utilisation
    attention = micro_tokens(job, layout) * scores / layout.tp / rate
    sent = moved / cluster.link(layout.tp, layout.cp, one_card=True)
    return max(sent - attention, sent / hops) + hops * COLLECTIVE_SECONDS


def _stage_seconds(job: Job, layout: Layout, cluster: Cluster) -> float:
    if layout.pp == 1:
        return 0.0
    inner, messages = layout.world // layout.pp, 2 * layout.stages // layout.pp
    sent = messages * hidden_bytes(job, layout)
    return sent / cluster.link(inner, layout.pp, one_card=True) + messages * COLLECTIVE_SECONDS


def _data_seconds(job: Job, layout: Layout, cluster: Cluster, compute: float) -> float:
    if layout.dp * layout.cp == 1:
        return 0.0
    moved = data_bytes(job, layout)
    shards = layout.dp * layout.cp // layout.replicate
    seconds = moved["shard"] / cluster.link(layout.tp, shards)
    seconds += moved["replicate"] / cluster.link(layout.tp * shards, layout.replicate)
    seconds += moved["experts"] / cluster.link(layout.tp * layout.ep, layout.dp * layout.cp // layout.ep)
    if layout.zero != 3:
        return seconds
    calls = job.passes(layout) * 3 * job.model.num_layers // layout.pp
    seconds += calls * COLLECTIVE_SECONDS
    return max(seconds - compute, seconds / calls)
