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

from sekkei.parallel.cuts import BUCKET_ELEMENTS, is_expert
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import (
    Job,
    Table,
    held_parameters,
    hidden_bytes,
    kv_width,
    local_table,
    micro_tokens,
    routed_bytes,
    stage_parameters,
    state_bytes,
)
from sekkei.parallel.order import State, states
from sekkei.parallel.saved import Device, activation_bytes, logit_bytes

PARTS = ("params", "grads", "master", "moments", "activations", "casts", "logits", "gathered", "buckets")


def instants(job: Job, layout: Layout, rank: int = 0, device: Device = "cuda") -> dict[str, dict[str, int]]:
    """Components of a rank's bytes (`PARTS`) at the instants; `scores` and `loss` on a pipeline's last rank only.

    Raises:
        ConfigError: the layout does not divide the model or the batch.
    """
    job.check(layout)
    stage = rank // (layout.world // layout.pp)
    state = state_bytes(job.model, layout, job.weights, rank)
    kept = {key: state[key] for key in ("params", "master", "moments")}
    always = standing_bytes(job, layout, stage)
    if layout.pp == 1:
        found = _backward(job, layout, state["grads"], device)
    else:
        found = _schedule(job, layout, stage, state["grads"], device)
    found |= _afterwards(job, layout, stage, state)
    return {
        name: {part: kept.get(part, 0) + parts.get(part, 0) + (always if part == "buckets" else 0) for part in PARTS}
        for name, parts in found.items()
    }


def _backward(job: Job, layout: Layout, reduced: int, device: Device) -> dict[str, dict[str, int]]:
    """`scores`, `loss`, `block` and `next` without a pipeline: what is there beside parameters, masters and moments.

    Gradients of the passes before are whole with zero 0 and 1, and reduced with 2 and 3. With 3 the root stays
    gathered, and so does one block, or two while the next one is fetched; the head's and a block's gradients are whole.
    """
    model, w = job.model, job.weight
    held, found = held_parameters(model, layout), activation_bytes(job, layout, 0, device)
    grads = w * (held.root + held.blocks) if layout.zero < 2 else reduced
    gathered, whole = [0, 0], 0
    if layout.zero == 3:
        blocks = [min(count * held.largest, held.blocks) if layout.reshard else held.blocks for count in (1, 2)]
        gathered = [w * (held.root + size) for size in blocks]
        whole = w * (held.largest + model.vocab_size * model.hidden_size // layout.tp)
    working, passing = _temporaries(job, layout, found)
    block = {
        "grads": grads + whole,
        "activations": found["activations"] + working,
        "casts": found["casts"],
        "gathered": gathered[1],
        "buckets": passing,
    }
    _, forward, backward = logit_bytes(job, layout, device)
    again = layout.recompute == "full"
    loss = {
        "grads": grads,
        "activations": found["kept"] + found["end"],
        "casts": 0 if again else found["casts"],
        "logits": backward,
        "gathered": gathered[0],
    }
    scores = {**loss, "casts": max(found["once"], loss["casts"]), "logits": forward}
    found_at = {"scores": scores, "loss": loss, "block": block, "early": _early(job, layout, {**loss, "logits": 0})}
    if layout.zero == 3 and again and model.num_layers > 1:
        # `fully_shard` keeps what it sums of a block until the next block's sums; that one begins with down_proj, and
        # when it comes to the norm before its MLP, all three matrices have their gradients
        matrices = 3 if working == found["norm"] else 1
        begun = w * model.hidden_size * ((matrices * model.intermediate_size + model.vocab_size) // layout.tp)
        inputs = micro_tokens(job, layout) * w * model.hidden_size // (layout.tp if layout.sequence_parallel else 1)
        sums = job.wide if layout.reduce == "fp32" else w
        found_at["next"] = {
            **block,
            "grads": grads + begun,
            "activations": block["activations"] - inputs,
            "buckets": block["buckets"] + sums * held.largest,
        }
    return found_at


def _early(job: Job, layout: Layout, loss: dict[str, int]) -> dict[str, int]:
    """After the loss, whose logits are gone: stage 2 reduces a bucket that the head fills at once."""
    head, w = job.model.vocab_size * job.model.hidden_size // layout.tp, job.weight
    if layout.zero != 2 or job.model.tied_embeddings or head < BUCKET_ELEMENTS:
        return loss
    sums = job.wide if layout.reduce == "fp32" else w
    return _plus(loss, grads=w * head, buckets=(sums + w) * head)


def _temporaries(job: Job, layout: Layout, saved: dict[str, int]) -> tuple[int, int]:
    """Of a block's backward pass, beside what the block keeps; and what its collectives are made from meanwhile: at its
    MLP or at its scores, or at the norm before the MLP, where nothing is in transit.
    """
    width = job.weight * job.model.hidden_size + 2 * job.compute * job.model.intermediate_size // layout.tp
    working = max(micro_tokens(job, layout) * width, saved["explicit"]), _passing(job, layout)
    return max(working, (saved["norm"], 0), key=sum)


def _schedule(job: Job, layout: Layout, stage: int, reduced: int, device: Device) -> dict[str, dict[str, int]]:
    """The same of a pipeline rank: the instants at which a state of its schedule (order.py) has most."""
    rank = _Stages(job, layout, stage, reduced, device)
    most: dict[object, tuple[int, State]] = {}  # by what an action adds to it
    for state in states(layout.schedule, layout.pp, stage, job.passes(layout)):
        key = (state.kind, state.chunk, state.begun[state.chunk])
        weight = rank.weight(state)
        if key not in most or weight > most[key][0]:
            most[key] = weight, state
    found: dict[str, dict[str, int]] = {}
    for _, state in most.values():
        for name, parts in rank.at(state).items():
            if name not in found or sum(parts.values()) > sum(found[name].values()):
                found[name] = parts
    return found


class _Stages:
    """Bytes of a pipeline rank's stages, each with what it saves of a forward pass.

    A pass keeps its activations, casts and rotary tables, the last stage's its logits too. Its first input is a buffer
    that is there for every micro-batch (`standing_bytes`), its result is kept until its backward pass, or with two
    stages per rank until the step ends, as are gradients that were sent: torch drops those transfers then. Gradients of
    weights exist from a stage's first backward pass on. With ZeRO-3 they are whole until the step ends, blocks stay
    gathered after a backward pass until the next forward pass: so torch's schedules have it.
    """

    def __init__(self, job: Job, layout: Layout, rank: int, reduced: int, device: Device) -> None:
        self.job, self.layout = job, layout
        self.numbers = range(rank, layout.stages, layout.pp)
        self.saved = [activation_bytes(job, layout, number, device) for number in self.numbers]
        self.last = [number == layout.stages - 1 for number in self.numbers]
        self.logits, self.forward, self.backward = logit_bytes(job, layout, device)
        self.hidden = hidden_bytes(job, layout)
        self.tables = 2 * job.compute * job.model.head_size * micro_tokens(job, layout)
        self.held = [stage_parameters(job.model, layout, number) for number in self.numbers]
        # a block's input, which the buffers of all micro-batches hold, where its norm does not keep a wide copy instead
        self.received = self.hidden if layout.recompute == "full" or job.weight >= 4 else 0
        self.reduced = reduced
        self.again = layout.recompute == "full"
        self.gradients = [self._gradients(chunk) for chunk in range(len(self.numbers))]
        self.weights = [self._weights(chunk) for chunk in range(len(self.numbers))]

    def at(self, state: State) -> dict[str, dict[str, int]]:
        """Instants of a state: `pass`, the end of a forward pass, and `scores` of the last stage; `loss` and `block` of
        a backward pass.

        Input gradients alone are most at their end, in the first norm: a gradient and four temporaries. The weight
        gradients that were put off begin with all that was kept for them, and with one matrix.
        """
        job, chunk, saved = self.job, state.chunk, self.saved[state.chunk]
        waiting, first, last = self._waiting(state), self.numbers[chunk] == 0, self.last[chunk]
        if state.kind == "F":
            fetched = job.weight * self.held[chunk].largest if self.layout.zero == 3 else 0  # and what it came in
            found = {"pass": _plus(waiting, buckets=0 if last else self.hidden, gathered=fetched)}
            if last:
                casts = saved["once"] - (0 if self.again else saved["casts"])
                found["scores"] = _plus(waiting, logits=self.forward - self.logits, casts=max(0, casts))
            elif self.again:
                found["pass"]["casts"] += saved["once"]
            return found
        if state.kind == "I" and first:
            return {}
        if state.kind == "W" and not first:
            matrix = job.model.hidden_size * job.model.intermediate_size // self.layout.tp
            return {"block": _plus(waiting, grads=(job.compute + job.weight) * matrix)}
        (working, passing), done = _temporaries(job, self.layout, saved), self.logits + saved["end"] if last else 0
        again = saved["activations"] - saved["kept"]  # a block, or its scores
        if state.kind == "I":
            width = job.model.hidden_size // (self.layout.tp if self.layout.sequence_parallel else 1)
            norm, done = 5 * job.wide * width * micro_tokens(job, self.layout), 0
            working, again = max(norm, working, again + saved["split"]), 0
        block = _plus(
            waiting,
            activations=again + working - (saved["end"] if done else 0),
            logits=-self.logits if done else 0,
            casts=saved["casts"] if self.again else 0,
            grads=0 if state.begun[chunk] or state.kind == "I" else self._head(chunk),
            gathered=self._fetched(chunk),
            buckets=passing,
        )
        own = saved["owed"] if state.kind == "I" else 0  # comes with the blocks
        loss = _plus(waiting, logits=self.backward - self.logits, activations=-own)
        early = _early(job, self.layout, _plus(loss, logits=-self.backward))
        return {"block": block, "loss": loss, "early": early} if last else {"block": block}

    def _waiting(self, state: State) -> dict[str, int]:
        """What is there whatever the action does at the moment."""
        parts = dict.fromkeys(("grads", "activations", "casts", "logits", "gathered", "buckets"), 0)
        for chunk, number in enumerate(self.numbers):
            passes, saved, last = state.held[chunk], self.saved[chunk], self.last[chunk]
            received = self.received if number else 0
            parts["activations"] += passes * (saved["kept"] + saved["end"] - received)
            parts["activations"] += state.owed[chunk] * saved["owed"]
            parts["casts"] += 0 if self.again else passes * saved["casts"]
            parts["logits"] += passes * self.logits if last else 0
            carried = (0 if last else state.outs[chunk]) + (state.backs[chunk] if number else 0)
            parts["buckets"] += passes * self.tables + carried * self.hidden
            parts["grads"] += self.gradients[chunk] if state.begun[chunk] else 0
            if self.layout.zero == 3:
                held = self.held[chunk]
                blocks = held.blocks if state.whole[chunk] or not self.layout.reshard else 0
                if chunk == state.chunk and self.layout.reshard:
                    blocks = min(held.largest, held.blocks)  # of the next one to come
                parts["gathered"] += self.job.weight * (held.root + blocks)
        return parts

    def weight(self, state: State) -> int:
        """The sum of `_waiting`, up to what states of one action share."""
        total = 0
        for chunk, (each, owed, out, back, grads, whole) in enumerate(self.weights):
            total += state.held[chunk] * each + state.owed[chunk] * owed + state.outs[chunk] * out
            total += state.backs[chunk] * back + state.begun[chunk] * grads
            total += whole if state.whole[chunk] and chunk != state.chunk else 0
        return total

    def _weights(self, chunk: int) -> tuple[int, ...]:
        """Bytes of a pass that is kept, one owed, a result, an input gradient; all gradients, gathered blocks."""
        saved, number, last = self.saved[chunk], self.numbers[chunk], self.last[chunk]
        each = saved["kept"] + saved["end"] - (self.received if number else 0) + self.tables
        each += (0 if self.again else saved["casts"]) + (self.logits if last else 0)
        whole = self.job.weight * self.held[chunk].blocks if self.layout.zero == 3 and self.layout.reshard else 0
        sent, back = 0 if last else self.hidden, self.hidden if number else 0
        return each, saved["owed"], sent, back, self.gradients[chunk], whole

    def _fetched(self, chunk: int) -> int:
        """Of ZeRO-3: the block after the one that is computed."""
        held = self.held[chunk]
        more = self.layout.zero == 3 and self.layout.reshard
        return self.job.weight * min(held.largest, held.blocks - held.largest) if more else 0

    def _gradients(self, chunk: int) -> int:
        count = self.held[chunk].root + self.held[chunk].blocks
        if self.layout.zero < 2:
            return self.job.weight * count
        if self.layout.zero == 2:
            return self.reduced * count // sum(held.root + held.blocks for held in self.held)
        return (self.job.wide if self.layout.reduce == "fp32" else self.job.weight) * count

    def _head(self, chunk: int) -> int:
        """Gradients that a stage's first backward pass has when it comes to its first block."""
        head = self.job.model.vocab_size * self.job.model.hidden_size // self.layout.tp
        return self.job.weight * head if self.last[chunk] else 0


def _plus(parts: dict[str, int], **more: int) -> dict[str, int]:
    return {name: parts.get(name, 0) + more.get(name, 0) for name in {**parts, **more}}


def _afterwards(job: Job, layout: Layout, stage: int, state: dict[str, int]) -> dict[str, dict[str, int]]:
    """`sums` and `update`: gradients, and copies of the last bucket.

        zero 0    flat, and in the sums' dtype; sums take the gradients' places, or stand beside them if wider
        zero 1    side by side in the sums' dtype, with one parameter's padded gradient, or a rank's row of it; whole
                  gradients stay till the end
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
    padded = max(prod(shape) for _, shape, _ in local_table(job.model, layout, stage))
    return {
        "sums": {
            "grads": whole + (beside if layout.zero == 1 else sums * own + w * bucket),
            "buckets": sums * bucket + max(w * padded, row),
            "activations": first if early else 0,
        },
        "update": {"grads": whole + (wide * own if w < wide or layout.zero == 2 else 0)},
        "publish": {"grads": whole, "buckets": published},
    }


def standing_bytes(job: Job, layout: Layout, stage: int) -> int:
    """What is there all through a step, beside state: rotary tables while passes run; of a pipeline, the batch and
    buffers for every micro-batch instead, until the step ends.
    """
    tokens = micro_tokens(job, layout)
    if layout.pp == 1:
        return 2 * job.compute * job.model.head_size * tokens
    passes, each = job.passes(layout), layout.stages // layout.pp
    edges = 2 * each - (stage in (0, layout.pp - 1))
    batch = passes * tokens * (4 * 8 + 4 + 8 * (4 if stage == 0 else 3))
    return edges * passes * hidden_bytes(job, layout) + batch


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
