"""The model: ids -> embedding -> blocks -> norm -> head. Plain single-device PyTorch that knows of no parallelism.

    x ─┬─ norm ─ attention ─(+)─┬─ norm ─ mlp, or experts (moe.py) ─(+)─
       └────────────────────────┘└──────────────────────────────────┘

What a layout needs from it is here: blocks in a `ModuleDict` keyed by layer index, embedding and heads
optional (a pipeline stage may lack them), positions passed in explicitly, attention injected, no buffers
(rotary tables are made from positions), so it can be built on the meta device. How a block is run is
injected too (`run_block`: activation checkpointing wraps it), and so is how labels are scored (`score_labels`: a cut
vocabulary has its own way).

Heads: `lm` scores tokens; `value` and `reward` give one scalar per token.

Shapes: `B` batch, `T` tokens, `D` model width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from sekkei.model.config import ModelConfig
from sekkei.model.layers import MLP, Attend, Attention, RMSNorm, Rope, compute_dtype, rope_tables
from sekkei.model.logprobs import label_logprobs
from sekkei.model.moe import MoE
from sekkei.model.output import Output

Head = Literal["lm", "value", "reward"]


class Block(nn.Module):
    """One pre-norm decoder layer.

    Args:
        layer: its index: the first ones of a model with experts have an MLP.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        dense = layer < config.dense_layers
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)

    def forward(self, x: Tensor, rope: Rope, attend: Attend, layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, attend, layer)
        h = self.mlp_norm(x)
        return x + (self.mlp(h, real_tokens(attend)) if isinstance(self.mlp, MoE) else self.mlp(h))


def real_tokens(attend: Attend) -> Tensor | None:
    """[B, T] bool, which tokens are no padding, as told by who attends; None: all."""
    segments = getattr(attend, "segments", None)
    return None if segments is None else segments >= 0


RunBlock = Callable[[Block, Tensor, Rope, Attend, int], Tensor]
ScoreLabels = Callable[[Tensor, Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]


def run_plainly(block: Block, x: Tensor, rope: Rope, attend: Attend, layer: int) -> Tensor:
    return block(x, rope, attend, layer)


def run_recomputed(block: Block, x: Tensor, rope: Rope, attend: Attend, layer: int) -> Tensor:
    """Keep only the block's input and recompute the rest in the backward pass (Chen et al. 2016)."""
    return torch.utils.checkpoint.checkpoint(block, x, rope, attend, layer, use_reentrant=False)


def run_scores_recomputed(block: Block, x: Tensor, rope: Rope, attend: Attend, layer: int) -> Tensor:
    """Keep queries, keys and values, and recompute how they meet: much memory where scores are written out, little work
    (Korthikanti et al. 2022, section 5).
    """

    return block(x, rope, _Again(attend), layer)


class _Again:
    """Attention whose scores are not kept."""

    def __init__(self, attend: Attend) -> None:
        self.attend, self.segments = attend, getattr(attend, "segments", None)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.attend, q, k, v, layer, use_reentrant=False)


RUN_BLOCK: dict[str, RunBlock] = {
    "none": run_plainly,
    "selective": run_scores_recomputed,
    "full": run_recomputed,
}
"""By what is recomputed in the backward pass."""


class Transformer(nn.Module):
    """Decoder-only language model.

    Args:
        config: sizes; `vocab_size` must be set.
        heads: which heads it carries.
        layers: indices of the blocks it holds (None: all).
        embedding: whether it holds the token embedding and therefore takes ids.
    """

    def __init__(
        self,
        config: ModelConfig,
        heads: Collection[Head] = ("lm",),
        layers: Collection[int] | None = None,
        embedding: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, width) if embedding else None
        held = range(config.num_layers) if layers is None else layers
        self.layers = nn.ModuleDict({str(i): Block(config, i) for i in held})
        self.norm = RMSNorm(width, config.norm_eps) if heads else None
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False) if "lm" in heads else None
        self.value_head = nn.Linear(width, 1, bias=False) if "value" in heads else None
        self.reward_head = nn.Linear(width, 1, bias=False) if "reward" in heads else None
        if config.tied_embeddings and self.lm_head is not None and self.embed is not None:
            self.lm_head.weight = self.embed.weight
        self.run_block: RunBlock = run_plainly
        self.score_labels: ScoreLabels = label_logprobs

    def hidden(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run the blocks.

        Args:
            x: ids [B, T] int64, or hidden states [B, T, D] where this part has no embedding.
            positions: [B, T] int64.
        Returns:
            [B, T, D], normalised where this part has a head.
        """
        if self.embed is not None:
            x = self.embed(x)
        rope = rope_tables(positions, self.config, compute_dtype(x))
        for index, block in self.layers.items():
            x = self.run_block(block, x, rope, attend, int(index))  # type: ignore[arg-type]
        return self.norm(x) if self.norm is not None else x

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] normalised hidden states -> [..., V] scores of the next token."""
        if self.lm_head is None:
            raise RuntimeError("this model has no lm head")
        return self.lm_head(hidden)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        attend: Attend,
        labels: Tensor | None = None,
        wants: Collection[str] = (),
        temperature: float = 1.0,
    ) -> Tensor | Output:
        """Hidden states where nothing is wanted (an inner pipeline stage), else the wanted per-token results.

        Args:
            labels: [B, T] int64, -100 = not scored; needed for `logprobs` and `entropy`.
            wants: any of "logprobs", "entropy", "values" (from the value head, else the reward head).
        """
        h = self.hidden(x, positions, attend)
        if not wants:
            return h
        logprobs = entropy = values = None
        if "logprobs" in wants or "entropy" in wants:
            if self.lm_head is None or labels is None:
                raise RuntimeError("log-probabilities need an lm head and labels")
            logprobs, entropy = self.score_labels(h, self.lm_head.weight, labels, temperature, "entropy" in wants)
        if "values" in wants:
            head = self.value_head if self.value_head is not None else self.reward_head
            if head is None:
                raise RuntimeError("values need a value or reward head")
            values = head(h).squeeze(-1).float() if h.dtype != torch.float64 else head(h).squeeze(-1)
        return Output(logprobs=logprobs, entropy=entropy if "entropy" in wants else None, values=values)
