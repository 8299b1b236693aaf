"""Decode passes of a few fixed shapes, each captured once as a CUDA graph and replayed.

    inputs [rows, 2 + C]    token | position | blocks                 one copy to the device per pass
    row 0                   417   |    70    | 5  0  7  S             rows and columns padded to powers of two;
    row 1                    12   |    33    | 5  1  S  S             S: a spare block, which no sequence owns
    dead row                  0   |     0    | S  S  S  S             writes there, and is not looked at

    step = embed ─ layers (write k, v; gather the C blocks of each row; fused attention under a mask) ─ head

A decode pass is some hundred small kernels, and a GPU finishes one of them sooner than Python starts the next; a graph
starts them all at once (CUDA C++ programming guide, "CUDA graphs"; as nano-vllm and vLLM do). The price is what is
padded: a row reads up to twice its blocks, and blocks that rows share are read for each of them. On a CPU nothing is
captured: the same step runs as it is, which is slower than the ordinary pass and is there to be tested.

It does not handle passes with prompts, adapters by request, or experts (how many tokens each one gets is read on the
host); those go the ordinary way.

Shapes: `R` rows, `N` query heads, `K` key/value heads, `G` = N / K, `H` head width, `C` blocks per row, `V` vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sekkei.core.errors import ConfigError, UserError
from sekkei.engine.adapters import Share
from sekkei.engine.cache import BlockStore
from sekkei.engine.forward import Forward
from sekkei.engine.scheduler import Piece
from sekkei.model.transformer import Transformer

SWITCH = "SEKKEI_CUDA_GRAPHS"  # 0: none, whoever makes the engine
WARM = 2  # runs before a capture, in which libraries take their memory


def wants_graphs(model: Transformer, device: torch.device, asked: bool | None) -> bool:
    """Whether decode passes have fixed shapes: where asked for; by default on CUDA, unless the switch is 0.

    Raises:
        ConfigError: asked for a model with experts.
    """
    experts = model.config.moe is not None
    if asked and experts:
        raise ConfigError("graphs", "a model with experts decides on the host which of them run: leave graphs off")
    if asked is None:
        return device.type == "cuda" and not experts and os.environ.get(SWITCH) != "0"
    return asked


class FixedAttend:
    """Attention of one token per row over gathered blocks, from inputs that a graph may be fed again.

    Args:
        inputs: [R, 2 + C] int64. end: of positions.
    """

    wanted: Tensor | None = None

    def __init__(self, store: BlockStore, inputs: Tensor, heads: int, end: int) -> None:
        self.store, self.end = store, end
        self.ids, self.positions, self.blocks = inputs[:, 0], inputs[:, 1], inputs[:, 2:]
        size, per_kind = store.size, store.blocks * heads * store.size
        own = self.blocks.gather(1, (self.positions // size)[:, None]) * heads
        at = (own + torch.arange(heads, device=inputs.device)) * size + (self.positions % size)[:, None]
        self.rows = torch.cat((at, at + per_kind), dim=1).flatten()
        seen = torch.arange(self.blocks.shape[1] * size, device=inputs.device) <= self.positions[:, None]
        self.seen = seen[:, None, None]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q [R, N, H], k, v [R, K, H] -> [R, N, H]."""
        both = self.store.write(layer, self.rows, k, v)
        r, kv, h = k.shape
        keys, values = (x[self.blocks].transpose(1, 2).reshape(r, kv, -1, h) for x in both)
        asked = q.reshape(r, kv, -1, h)  # the G queries that read the same keys stand where others have time
        seen = self.seen.expand(-1, kv, asked.shape[2], -1)
        return scaled_dot_product_attention(asked, keys, values, attn_mask=seen).reshape(q.shape)

    ends = __call__


class DecodeGraphs:
    """Decode passes by their shape.

    Args:
        store: with one block more than the pool knows: the spare one. rows, columns: the most there are.
    Attributes:
        ready: by (rows, columns), what runs such a pass. captures: graphs captured so far.
    """

    def __init__(self, model: Transformer, store: BlockStore, rows: int, columns: int, device: torch.device) -> None:
        self.model, self.store, self.most, self.device = model, store, (rows, columns), device
        self.cuda, self.spare = device.type == "cuda", store.blocks - 1
        cells = rows * (2 + columns)
        self.host = torch.zeros(cells, dtype=torch.int64, pin_memory=self.cuda)
        self.inputs = torch.zeros(cells, dtype=torch.int64, device=device)
        self.scores: Tensor | None = None
        self.captures = 0
        self.forget()

    def forget(self) -> None:
        """What the graphs read lies elsewhere now: they are captured anew."""
        self.ready: dict[tuple[int, int], Callable[[], Tensor]] = {}
        self.pool: Any = None
        self.places: tuple[int, ...] = ()
        self.stored: Tensor | None = None

    def run(self, forward: Forward, tables: np.ndarray, decodes: Sequence[Piece], dtype: torch.dtype | None) -> Tensor:
        """Scores [pieces, V], which the next pass overwrites.

        Args:
            tables: [slots, most blocks]. dtype: autocast dtype; None: the weights' own.
        Raises:
            UserError: a graph could not be captured.
        """
        if self.stored is not self.store.both:
            self.forget()
        shape = self._fill(tables, decodes)
        if shape not in self.ready:
            self.ready[shape] = self._made(forward, shape, dtype)
            self.stored = self.store.both
        return self.ready[shape]()[: len(decodes)]

    def moved(self, forward: Forward) -> None:
        """The weights have changed; where they lie as before, graphs stay."""
        if self.ready and forward.places() != self.places:
            self.forget()

    def _fill(self, tables: np.ndarray, decodes: Sequence[Piece]) -> tuple[int, int]:
        """Write the inputs; returns the shape of the pass."""
        of_pieces = np.array([(p.sequence.tokens[p.start], p.start, p.sequence.slot) for p in decodes], np.int64)
        used = of_pieces[:, 1] // self.store.size + 1
        live = len(decodes)
        shape = rows, columns = rounded(live, self.most[0]), rounded(int(used.max()), self.most[1])
        cells = rows * (2 + columns)
        table = self.host[:cells].numpy().reshape(rows, 2 + columns)
        table[live:, :2], table[live:, 2:] = 0, self.spare
        table[:live, :2] = of_pieces[:, :2]
        own = np.arange(columns) < used[:, None]
        table[:live, 2:] = np.where(own, tables[of_pieces[:, 2], :columns], self.spare)
        self.inputs[:cells].copy_(self.host[:cells], non_blocking=True)
        return shape

    def _made(self, forward: Forward, shape: tuple[int, int], dtype: torch.dtype | None) -> Callable[[], Tensor]:
        """What runs passes of a shape; the inputs hold one."""
        rows, columns = shape
        inputs = self.inputs[: rows * (2 + columns)].view(rows, 2 + columns)
        config, kind = self.model.config, self.device.type

        def step() -> Tensor:
            attend = FixedAttend(self.store, inputs, config.num_kv_heads, config.max_context)
            with torch.autocast(kind, dtype or torch.bfloat16, enabled=dtype is not None):
                hidden = forward.hidden(attend.ids, attend.positions, attend, Share((), None, self.device))
                logits = self.model.logits(hidden)
            if self.scores is None:
                self.scores = logits.new_empty(rounded(self.most[0], self.most[0]), logits.shape[1])
            return self.scores[:rows].copy_(logits)

        self.places = forward.places()
        return self._captured(step, shape) if self.cuda else step

    def _captured(self, step: Callable[[], Tensor], shape: tuple[int, int]) -> Callable[[], Tensor]:
        """Replays the step. Running it before is harmless: keys and values are written with what they will be."""
        try:
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
            with torch.cuda.device(self.device):
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(WARM):
                        step()
                torch.cuda.current_stream().wait_stream(stream)
                with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                    scores = step()
        except RuntimeError as error:
            raise UserError(
                f"a decode pass of {shape[0]} rows and {shape[1]} blocks could not be captured as a CUDA graph "
                f"({str(error).splitlines()[0]}): set {SWITCH}=0 to decode without graphs"
            ) from error
        self.pool = graph.pool()  # one for all: no two of them run at once
        self.captures += 1

        def replay() -> Tensor:
            graph.replay()
            return scores

        return replay


def rounded(count: int, most: int) -> int:
    """The next power of two, or the most there are."""
    return min(1 << (count - 1).bit_length(), most)
