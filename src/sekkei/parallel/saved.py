"""What a forward pass leaves behind for its backward pass on one rank, in closed form: blocks, and logits.

Tables of model/flops.py, cut by the layout. It is what a CPU or a GPU under autocast saves; what kernels hold inside
themselves is not counted. When how much of it is there at once: peak.py, order.py.

Shapes: as in memory.py.
"""

from __future__ import annotations

from typing import Literal

from sekkei.model.choices import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, KEEP_ELEMENTS, choose_path
from sekkei.model.flops import cast_weights, saved_by_mlp
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job, micro_tokens

Device = Literal["cpu", "cuda"]


def activation_bytes(job: Job, layout: Layout, number: int = 0, device: Device = "cuda") -> dict[str, int]:
    """What autograd saves of one forward pass of stage `number`: the table of model/flops.py by what cuts each line.

        over tp                    s (A + F), s 3 F, s (A + 2 C), 4 · 2 (A + C), 4 N
        over tp with the sequence  4 · 4 D: the norms stand outside of `gather`
        not cut                    s c D: inputs of projections are gathered; the mask, s T (none with cp: the ring's
                                   blocks make theirs); all of experts, whose tokens are data ranks'

    A CPU writes short rows' scores out in bf16 (model/attention.py): (4 + s) N T instead of mask and statistics, 4 N.
    With `full` recomputation: one block whole, and every block's input in the weights' dtype. With `selective`: neither
    scores nor mask nor statistics, but for one block and what the mask is made from.

    Returns:
        activations: of blocks. kept: of these, what is there between the forward and the backward pass; the rest is
        recomputed. end: of the last norm, and what the head reads. casts: of weights that autocast narrows. once: the
        same while a forward pass runs. owed: gradients that postponed weight gradients wait with. explicit, norm: by
        how much the backward pass of written-out scores, and that of the norm before the MLP, hold more than a block
        keeps: a CPU computes a norm step by step, with five wide temporaries of the stream's width. split: as explicit,
        where the MLP's are kept for postponed weight gradients.
    """
    model, s, tp = job.model, job.compute, layout.tp
    count = model.num_layers // layout.stages
    d, h, here = model.hidden_size, model.head_size, list(range(number * count, (number + 1) * count))
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
    scores, mask, explicit = (
        wide * model.num_heads // tp,
        job.context if layout.cp == 1 else 0,
        writes_scores(job, layout, device),
    )
    scores = (wide + s) * job.context * model.num_heads // tp if explicit else scores + s * mask
    tokens, layers, last = micro_tokens(job, layout), len(here), number == layout.stages - 1
    if layout.cp > 1:
        each = [size + s * a // tp for size in each]  # what attention gives, before and after it is laid out anew
    held = sum(size * times for size, (_, times) in zip(each, kinds, strict=True))
    allowed = (1 + (s if explicit else 0)) * mask  # one mask, of truth values
    inputs = layers * stream * d // sequence + allowed
    kept, blocks = {
        "none": (held + layers * scores, held + layers * scores),
        "selective": (held + allowed, held + allowed + scores),
        "full": (inputs, max(each) + scores + inputs - (stream * d // sequence if casting else 0)),  # one is its input
    }[layout.recompute]
    end = 2 * wide * d // sequence + stream * d if last else 0
    cast = [cast_weights(model, i, layout.ep) for i, _ in kinds]
    whole = sum(size * times for size, (_, times) in zip(cast, kinds, strict=True))
    matrices = max(cast) if layout.recompute == "full" else whole
    once = s * whole // tp if casting else 0
    casts = s * matrices // tp if casting else 0  # autograd keeps each forward pass's own
    products = s * ((a + 2 * c + 2 * model.intermediate_size) // tp + 2 * d)
    norms = wide * (2 * d // sequence + ((a + c) // tp if model.qk_norm else 0))
    owed = layers * (products + norms) + (wide * d // sequence if last else 0)
    norm = (4 * wide + stream) * d // sequence - max(mlps) // tp - s * (2 if casting else 1) * d
    norm = norm if device == "cpu" else 0
    softmax = 2 * wide * job.context * model.num_heads // tp - 2 * wide * d // sequence if explicit else 0
    parts = {"activations": blocks, "kept": kept, "end": end, "owed": owed, "norm": norm}
    parts |= {"split": softmax, "explicit": softmax - max(mlps) // tp if explicit else 0}
    return {**{name: tokens * size for name, size in parts.items()}, "casts": casts, "once": once}


def writes_scores(job: Job, layout: Layout, device: Device) -> bool:
    """Whether attention takes the explicit path."""
    return layout.cp == 1 and choose_path(device, job.compute == 2, job.context) == "explicit"


def _kinds(here: list[int], dense: int) -> tuple[list[int], list[int]]:
    """Layers with an MLP, and those with experts."""
    return [i for i in here if i < dense], [i for i in here if i >= dense]


def logit_bytes(job: Job, layout: Layout, device: Device) -> tuple[int, int, int]:
    """Kept logits; and with them the head's forward and backward pass: a chunk's copies, gradients of hidden states
    and of the head.

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
    cast = s * chunk if s < wide else 0
    parts = copies * wide * chunk + (cast if chunk < logits else 0)  # one of the chunk before
    if layout.tp == 1:  # a chunk's part of the head's gradient, narrow and wide
        parts = max(parts, wide * chunk + cast + (s + (w if s < w else 0)) * d * rows)
    if layout.tp > 1:  # or at the end: the sum over ranks, the head's gradient narrowed, the last chunk not yet gone
        over = (tokens - 1) % max(1, limit // rows) + 1
        end = w * d * tokens + (w * d * rows if w < wide else 0) + (2 * wide + s) * over * rows
        parts = max(parts, end)
    return kept, forward, kept + parts + casts + gradients
