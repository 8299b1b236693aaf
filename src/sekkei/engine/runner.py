"""One planned pass through the model: flat tokens in, the scores after each piece out.

    decodes   t t t t t                 one token of each running row
    prefills            p p p p p q q   then the pieces of prompts; all T of them go through the layers together

Everything but attention sees T independent tokens, so nothing is padded. Only the last token of each piece goes
through the last layer and the head, unless a request wants the log-probabilities of its prompt.

It does not handle more than one device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sekkei.engine.adapters import Adapter, Share
from sekkei.engine.cache import BlockStore, DecodeBlocks, PassAttend
from sekkei.engine.forward import Forward
from sekkei.engine.graphs import DecodeGraphs, wants_graphs
from sekkei.engine.request import Top
from sekkei.engine.scheduler import Piece, Plan
from sekkei.model.transformer import Transformer

HEAD_ROWS = 256  # prompt positions scored at a time, so that [rows, V] stays small


class Runner:
    """Runs plans on one model.

    Args:
        blocks, size: of the key/value store. rows: slots. dtype: autocast dtype; None: the weights' own.
        graphs: decode in fixed shapes (graphs.py); None: on CUDA.
    """

    def __init__(
        self,
        model: Transformer,
        blocks: int,
        size: int,
        rows: int,
        dtype: torch.dtype | None,
        graphs: bool | None = None,
    ) -> None:
        self.model, self.dtype, self.device = model, dtype, next(model.parameters()).device
        self.adapters: list[Adapter] = []
        self.forward = Forward(model, dtype)
        self.stale = False
        fixed = wants_graphs(model, self.device, graphs)
        self.store = BlockStore(model.config.num_layers, blocks + fixed, size)
        self.decode: DecodeBlocks | None = None
        self.tables = np.zeros((rows, -(-model.config.max_context // size)), np.int64)
        self.graphs = DecodeGraphs(model, self.store, *self.tables.shape, self.device) if fixed else None

    def refresh(self) -> None:
        """The weights have changed, or will have before the next pass, which reads them again."""
        self.stale = True

    def run(self, plan: Plan, scored: Sequence[Piece] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Compute a plan's tokens.

        Args:
            scored: pieces whose every token's hidden state is wanted.
        Returns:
            scores [pieces, V] after each piece, and by arrival the hidden states [count, D] of `scored`.
        """
        if self.stale:
            self._reread()
        self.store.copy(plan.copies, plan.copied)
        pieces = plan.pieces
        if self.graphs is not None and not plan.prefills and max(p.sequence.adapter for p in pieces) < 0:
            return self.graphs.run(self.forward, self.tables, pieces, self.dtype), {}
        heads, whole = self.model.config.num_kv_heads, bool(scored)
        attend = PassAttend(
            *(self.store, self.tables, plan.decodes, plan.prefills, self.device),
            heads=heads, whole=whole, before=self.decode,
        )  # fmt: skip
        self.decode = attend.decode
        ids: list[int] = [piece.sequence.tokens[piece.start] for piece in plan.decodes]
        for piece in plan.prefills:
            ids += piece.sequence.tokens[piece.start : piece.start + piece.count]
        ends = np.cumsum([piece.count for piece in pieces])
        kind = self.device.type
        with torch.autocast(kind, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            tokens = torch.tensor(ids, device=self.device)
            hidden = self.forward.hidden(tokens, attend.positions, attend, self._share(pieces))
            last = hidden if len(ends) == len(hidden) else hidden[torch.from_numpy(ends - 1).to(self.device)]
            logits = self.model.logits(last)
        wanted = {id(piece) for piece in scored}
        kept = {
            piece.sequence.arrival: hidden[end - piece.count : end]
            for piece, end in zip(pieces, ends, strict=True)
            if id(piece) in wanted
        }
        return logits, kept

    def _reread(self) -> None:
        self.forward.reread()
        if self.graphs is not None:
            self.graphs.moved(self.forward)
        self.stale = False

    def _share(self, pieces: Sequence[Piece]) -> Share:
        numbers = [piece.sequence.adapter for piece in pieces]
        if max(numbers) < 0:
            return Share((), None, self.device)
        return Share(self.adapters, np.repeat(numbers, [piece.count for piece in pieces]), self.device)

    def score(self, hidden: Tensor, labels: Sequence[int], top: int) -> tuple[list[float], list[Top]]:
        """Log-probability of each label after its hidden state [T, D], and the `top` best, at temperature 1."""
        found: list[float] = []
        best: list[Top] = []
        for start in range(0, len(labels), HEAD_ROWS):
            part = torch.tensor(labels[start : start + HEAD_ROWS], device=self.device)
            with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                logits = self.model.logits(hidden[start : start + len(part)])
            logprobs = logits.float().log_softmax(-1)
            found += logprobs.gather(-1, part[:, None]).squeeze(-1).tolist()
            if top:
                values, tokens = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
                best += as_tops(values, tokens)
        return found, best


def as_tops(values: Tensor, tokens: Tensor) -> list[Top]:
    """[R, n] log-probabilities and ids -> one tuple of (id, log-probability) per row."""
    return [tuple(zip(ids, row)) for ids, row in zip(tokens.tolist(), values.tolist())]
