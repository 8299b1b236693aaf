"""Where in a step a rank holds most, and what it holds then: the planner's peak, in closed form.

    scores ──> loss ──> last block ──> … ──> first block ──> sums ──> update ──> publish
    │           │        │                                    │        │
    all activations,     one block's temporaries,   a bucket's copies  gradients in the masters' dtype
    a chunk of logits    all activations            no activations

Each instant is counted whole: `scores` and `loss` (forward and backward pass of the logits; until the forward pass
ends, autocast keeps its copies of all weights, also those of blocks that are recomputed), `block` (the backward pass of
the last block's MLP), `next` (that of the block before, recomputed under stage 3), `sums`
(gradients of the last bucket go to their ranks), `update` (moments and masters are written) and `publish` (weights go
to the other ranks). The largest is the peak; its parts are what is told. Gradients of the micro-batch before are there,
as if there always were one, and so are the moments.

Within 1% of the dry run (prove/trace.py), which counts what the code does: tests/prove/test_peak.py has the layouts.
What kernels hold inside themselves, fragments, and a GPU's own attention masks are not counted.

Shapes: as in memory.py.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Literal

from sekkei.model.flops import cast_weights, saved_by_mlp
from sekkei.model.logprobs import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, KEEP_ELEMENTS
from sekkei.parallel.experts import is_expert
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import (
    Job,
    Table,
    held_layers,
    held_parameters,
    hidden_bytes,
    kv_width,
    layers_here,
    local_table,
    micro_tokens,
    routed_bytes,
    state_bytes,
)
from sekkei.parallel.zero import BUCKET_ELEMENTS

Device = Literal["cpu", "cuda"]
PARTS = ("params", "grads", "master", "moments", "activations", "casts", "logits", "gathered", "buckets")


def activation_bytes(job: Job, layout: Layout, stage: int = 0) -> dict[str, int]:
    """What autograd saves on pipeline rank `stage`: the table of model/flops.py by what cuts each line.

        over tp                    s (A + F), s 3 F, s (A + 2 C), 4 · 2 (A + C), 4 N
        over tp with the sequence  4 · 4 D: the norms stand outside of `gather`
        not cut                    s c D: inputs of projections are gathered; the mask, s T (none with cp: the ring's
                                   blocks make theirs); all of experts, whose tokens are data ranks'

    With `full` recomputation: one block whole, and every block's input in the weights' dtype. With `selective`: neither
    the mask nor 4 N (the statistics of a fused kernel's softmax), but for one block.

    Returns:
        activations: of blocks. inputs: of these, what `full` keeps from the forward pass. end: of the last norm, and
        what the head reads. casts: of weights that autocast narrows. once: the same in one forward pass.
    """
    model, s, tp = job.model, job.compute, layout.tp
    d, h, here = model.hidden_size, model.head_size, layers_here(model, layout, stage)
    a, c = model.num_heads * h, model.num_kv_heads * h
    sequence = tp if layout.sequence_parallel else 1
    wide, stream = max(4, s), job.weight
    casting = s < stream  # every projection casts its input anew; narrow weights share one
    cut = s * a + s * (a + 2 * c) + (2 * wide * (a + c) if model.qk_norm else 0)
    counted = s * (2 if s < wide else 1) * d  # inputs of the MLP in `saved_by_mlp`
    projected = s * (5 if casting else 2) * d
    kinds = [(min(group), len(group)) for group in _kinds(here, model.dense_layers) if group]  # a layer of it, how many
    mlps = [saved_by_mlp(model, i, s) - counted for i, _ in kinds]
    each = [(cut + mlp) // tp + 4 * wide * d // sequence + projected for mlp in mlps]
    scores = wide * model.num_heads // tp + (s * job.context if layout.cp == 1 else 0)
    tokens, layers, last = micro_tokens(job, layout), held_layers(job, layout, stage), stage == layout.pp - 1
    if layout.cp > 1:
        each = [size + s * a // tp for size in each]  # what attention gives, before and after it is laid out anew
    held = layers * sum(size * count for size, (_, count) in zip(each, kinds, strict=True)) // len(here)
    if layout.pp > 1 and layout.schedule == "zero_bubble":  # projections' gradients, which their weights' wait for
        put_off = (stage + 1) * model.num_layers // layout.stages
        held += put_off * s * ((a + 2 * c + 2 * model.intermediate_size) // tp + 2 * d)
    inputs = layers * stream * d // sequence + (job.context if layout.cp == 1 else 0)  # and one mask, of truth values
    blocks = {
        "none": held + layers * scores,
        "selective": held + scores,
        "full": max(each) + scores + inputs - (stream * d // sequence if casting else 0),  # its input is one of them
    }[layout.recompute]
    end = 2 * wide * d // sequence + stream * d if last else 0
    cast = [cast_weights(model, i, layout.ep) for i, _ in kinds]
    whole = sum(size * count for size, (_, count) in zip(cast, kinds, strict=True))
    matrices = max(cast) if layout.recompute == "full" else layers * whole // len(here)
    once = s * whole // tp if casting else 0
    casts = s * matrices // tp if casting else 0  # autograd keeps each forward pass's own
    parts = {"activations": tokens * blocks, "inputs": tokens * inputs, "end": tokens * end}
    return {**parts, "casts": casts, "once": once}


def _kinds(here: list[int], dense: int) -> tuple[list[int], list[int]]:
    """Layers with an MLP, and those with experts."""
    return [i for i in here if i < dense], [i for i in here if i >= dense]


def logit_bytes(job: Job, layout: Layout, device: Device) -> tuple[int, int]:
    """The head's forward and backward pass: kept logits, a chunk's copies; and gradients of hidden states and of the
    head.

    Scored in chunks, and kept whole only where they are few (model/logprobs.py, vocab.py).
    """
    d, rows, tokens = job.model.hidden_size, job.model.vocab_size // layout.tp, micro_tokens(job, layout)
    logits, s, wide, w = tokens * rows, job.compute, max(4, job.compute), job.weight
    limit = CHUNK_ELEMENTS if device == "cpu" else GPU_CHUNK_ELEMENTS
    chunk = min(logits, max(1, limit // rows) * rows)
    copies = 4 if layout.tp > 1 else 3 if chunk < logits else 2
    kept = s * logits if logits <= KEEP_ELEMENTS else 0
    casts = s * d * (tokens + rows) if s < w else 0
    gradients = w * d * tokens + (wide if layout.tp > 1 else w) * d * rows
    forward = kept + copies * wide * chunk + casts + (0 if kept else s * chunk) + w * d * tokens  # the norm's result
    return forward, kept + copies * wide * chunk + (s * chunk if s < wide else 0) + casts + gradients


def instants(job: Job, layout: Layout, rank: int = 0, device: Device = "cuda") -> dict[str, dict[str, int]]:
    """Components of a rank's bytes (`PARTS`) at the instants; `scores` and `loss` on a pipeline's last rank only.

    Raises:
        ConfigError: the layout does not divide the model or the batch.
    """
    job.check(layout)
    stage = rank // (layout.world // layout.pp)
    state = state_bytes(job.model, layout, job.weights, rank)
    kept = {key: state[key] for key in ("params", "master", "moments")}
    always = _always(job, layout, stage)
    found = {**_backward(job, layout, stage, state["grads"], device), **_afterwards(job, layout, stage, state)}
    return {
        name: {part: kept.get(part, 0) + parts.get(part, 0) + (always if part == "buckets" else 0) for part in PARTS}
        for name, parts in found.items()
    }


def _backward(job: Job, layout: Layout, stage: int, reduced: int, device: Device) -> dict[str, dict[str, int]]:
    """`scores`, `loss`, `block` and `next`: what is there beside parameters, masters and moments.

    Gradients of the passes before are whole with zero 0 and 1, and reduced with 2 and 3. With 3 the root stays
    gathered, and so does one block, or two while the next one is fetched; the head's and a block's gradients are whole.
    """
    model, w, tokens = job.model, job.weight, micro_tokens(job, layout)
    held, last, found = (
        held_parameters(model, layout, stage),
        stage == layout.pp - 1,
        activation_bytes(job, layout, stage),
    )
    grads = w * (held.root + held.blocks) if layout.zero < 2 else reduced
    gathered, whole = [0, 0], 0
    if layout.zero == 3:
        blocks = [min(count * held.largest, held.blocks) if layout.reshard else held.blocks for count in (1, 2)]
        gathered = [w * (held.root + size) for size in blocks]
        whole = w * (held.largest + (model.vocab_size * model.hidden_size // layout.tp if last else 0))
    again = layout.recompute == "full"
    working = tokens * (w * model.hidden_size + 2 * job.compute * model.intermediate_size // layout.tp)
    block = {
        "grads": grads + whole,
        "activations": found["activations"] + working,
        "casts": found["casts"],
        "gathered": gathered[1],
        "buckets": _passing(job, layout),
    }
    found_at = {"block": block}
    if layout.zero == 3 and again and len(layers_here(model, layout, stage)) > 1:
        # `fully_shard` keeps what it sums of a block until the next block's sums, and that one begins with down_proj
        head = model.vocab_size // layout.tp if last else 0
        begun = w * model.hidden_size * (model.intermediate_size // layout.tp + head)
        inputs = tokens * w * model.hidden_size // (layout.tp if layout.sequence_parallel else 1)
        sums = job.wide if layout.reduce == "fp32" else w
        found_at["next"] = {
            **block,
            "grads": grads + begun,
            "activations": block["activations"] - inputs,
            "buckets": block["buckets"] + sums * held.largest,
        }
    if not last:
        return found_at
    forward, backward = logit_bytes(job, layout, device)
    loss = {
        "grads": grads,
        "activations": (found["inputs"] if again else found["activations"]) + found["end"],
        "casts": 0 if again else found["casts"],
        "logits": backward,
        "gathered": gathered[0],
    }
    scores = {**loss, "casts": max(found["once"], loss["casts"]), "logits": forward}
    return {"scores": scores, "loss": loss, **found_at}


def _afterwards(job: Job, layout: Layout, stage: int, state: dict[str, int]) -> dict[str, dict[str, int]]:
    """`sums` and `update`: gradients, and copies of the last bucket.

        zero 0    flat, and in the sums' dtype; sums take the gradients' places, or stand beside them if wider
        zero 1    padded, side by side, in the sums' dtype, and a rank's row of it; whole gradients stay till the end
        zero 2    the same, but whole gradients are those of the bucket
        zero 3    the root's whole gradients, flat once more in the sums' dtype

    The update wants gradients in the masters' dtype; publishing gathers a bucket of weights.
    """
    held, w, wide = held_parameters(job.model, layout, stage), job.weight, job.wide
    n, ranks, bucket = held.root + held.blocks, layout.dp * layout.cp, _bucket(job, layout, stage)
    sums = wide if layout.reduce == "fp32" else w
    own, copy = state["moments"] // (2 * wide), sums * bucket if sums > w else 0
    beside = sums * own if sums > w else 0
    if layout.zero == 3:
        return {
            "sums": {"grads": state["grads"], "buckets": (w + sums) * held.root},
            "update": {"grads": state["grads"]},
        }
    if layout.zero == 0:
        first, end = w * n + w * bucket + copy, sums * (n - bucket) + 2 * w * bucket + copy
        return {
            "sums": {"grads": w * n, "buckets": max(first, end) - w * n},
            "update": {"grads": wide * n},
        }
    row = sums * bucket // ranks
    early = n > BUCKET_ELEMENTS and layout.zero == 2  # in a block's backward pass: its gradient, norm and first casts
    first = micro_tokens(job, layout) * job.model.hidden_size * (w + 2 * max(4, job.compute) + job.compute)
    whole = w * n if layout.zero == 1 else 0
    published = w * bucket * (ranks + 1) // ranks
    return {
        "sums": {
            "grads": whole + (beside if layout.zero == 1 else sums * own + w * bucket),
            "buckets": 2 * w * bucket + copy + row,
            "activations": first if early else 0,
        },
        "update": {"grads": whole + (wide * own if w < wide or layout.zero == 2 else 0)},
        "publish": {"grads": whole, "buckets": published},
    }


def _always(job: Job, layout: Layout, stage: int) -> int:
    """Rotary tables of a forward pass; of a pipeline, its buffers for every micro-batch, and what it carries."""
    tokens = micro_tokens(job, layout)
    tables = 2 * job.compute * job.model.head_size * tokens
    if layout.pp == 1:
        return tables
    passes, each = job.passes(layout), layout.stages // layout.pp
    edges = 2 * each - (stage in (0, layout.pp - 1))
    flying = held_layers(job, layout, stage) * layout.stages // job.model.num_layers
    last = stage == layout.pp - 1
    sent = 0 if last and each == 1 else flying * hidden_bytes(job, layout)
    batch = passes * tokens * (4 * 8 + 4 + 8 * (4 if stage == 0 else 3))
    return flying * tables + edges * passes * hidden_bytes(job, layout) + sent + batch


def _passing(job: Job, layout: Layout) -> int:
    """What collectives inside a block are made from: keys and values in transit, sums over tp, rows for experts."""
    tokens, found = micro_tokens(job, layout), 0
    if layout.cp > 1:
        copies = 2 if layout.context == "ring" else layout.cp
        found += copies * tokens * kv_width(job.model, layout) * (job.compute + max(4, job.compute))
    if layout.tp > 1:
        found += tokens * job.model.hidden_size * job.compute
    return found + (2 * routed_bytes(job, layout) if layout.ep > 1 else 0)


def _bucket(job: Job, layout: Layout, stage: int) -> int:
    """Elements of the largest bucket of zero 0 to 2; spread experts have buckets of their own."""
    table = local_table(job.model, layout, stage)
    if layout.ep == 1:
        return _largest_bucket(table)
    parts = (tuple(row for row in table if is_expert(row[0]) is spread) for spread in (False, True))
    return max(_largest_bucket(part) for part in parts)


@lru_cache
def _largest_bucket(table: Table) -> int:
    """Filled as zero.py fills them: head first, then layers from the last one on, embedding last."""
    rows = [(name, prod(shape), times) for name, shape, times in table if not name.endswith(".router.bias")]
    layers = max((times for name, _, times in rows if name.startswith("layers.")), default=0)
    order = [size for name, size, _ in reversed(rows) if not name.startswith(("layers.", "embed."))]
    for above in range(layers):  # those with experts are above those without
        order += [size for name, size, times in reversed(rows) if _is_here(name, times, above, layers)]
    order += [size for name, size, _ in rows if name.startswith("embed.")]
    largest = bucket = 0
    for size in order:
        bucket = size if bucket and bucket + size > BUCKET_ELEMENTS else bucket + size
        largest = max(largest, bucket)
    return largest


def _is_here(name: str, times: int, above: int, layers: int) -> bool:
    """Whether the layer that has `above` others of this rank above it holds the parameter."""
    return name.startswith("layers.") and (above >= layers - times if name.startswith("layers.0.") else above < times)


def rank_bytes(job: Job, layout: Layout, rank: int = 0, device: Device = "cuda") -> dict[str, int]:
    """All components of a rank by name (`PARTS`) at the instant at which their sum, its peak, is largest.

    Raises:
        ConfigError: the layout does not divide the model or the batch.
    """
    return max(instants(job, layout, rank, device).values(), key=lambda parts: sum(parts.values()))


def heaviest_rank(job: Job, layout: Layout) -> tuple[int, dict[str, int]]:
    """The first rank of the first pipeline stage, or of the last, whichever holds more; and its bytes.

    Raises:
        ConfigError: as `rank_bytes`.
    """
    ends = sorted({0, layout.world - layout.world // layout.pp})
    return max(((rank, rank_bytes(job, layout, rank)) for rank in ends), key=lambda end: sum(end[1].values()))
