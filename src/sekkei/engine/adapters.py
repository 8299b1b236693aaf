"""LoRA adapters side by side: one base model, and for each token the adapter that its request named.

    tokens      base base | fr fr fr | base | sql sql          y = x Wᵀ for all of them in one matmul,
    Share        —         fr: 2 3 4   —      sql: 6 7          then y[tokens] += s (x[tokens] Aᵀ) Bᵀ for each adapter

as in Punica (Chen et al. 2023) and S-LoRA (Sheng et al. 2023), without their kernels. What is merged and what is added
differ by rounding only. Keys and values depend on the adapter, so only requests of one adapter share blocks.

It does not handle adapters of the head or the embedding, or loading while the server runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sekkei.core.errors import UserError
from sekkei.model.lora import load_lora, lora_layers
from sekkei.model.transformer import Transformer


class Adapter:
    """The matrices of one adapter.

    Attributes:
        pairs: by name of the layer, A [r, in] and s B [out, r].
    """

    def __init__(self, name: str, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.name, self.pairs = name, pairs


Route = Sequence[tuple[Adapter, Tensor]]
"""Adapters in use, each with the indices of its tokens."""


class Share:
    """Which adapter each token of a pass belongs to.

    Args:
        labels: [T], number of the token's adapter, -1 = the base model; None: all are the base model's.
    """

    def __init__(self, adapters: Sequence[Adapter], labels: np.ndarray | None, device: torch.device) -> None:
        self.adapters, self.device = adapters, device
        self.labels = labels

    def of(self, tokens: slice | Tensor) -> Route:
        """The adapters of some tokens, with indices among these."""
        if self.labels is None:
            return ()
        labels = self.labels[tokens if isinstance(tokens, slice) else tokens.cpu().numpy()]
        found = [(i, (labels == i).nonzero()[0]) for i in np.unique(labels) if i >= 0]
        return [(self.adapters[i], torch.from_numpy(at).to(self.device)) for i, at in found]


def read_adapter(name: str, folder: Path, model: Transformer) -> Adapter:
    """An adapter in PEFT's layout for this model, which is left as it is.

    Raises:
        UserError, ConfigError: see `load_lora`; or the model has an adapter of its own.
    """
    if lora_layers(model):
        raise UserError(f"adapter {name}: the model has one of its own, which must be merged first")
    with torch.device("meta"):
        shape = Transformer(model.config, ("lm",))
    shape.load_state_dict(model.state_dict(), strict=False, assign=True)  # the same storage, other modules
    load_lora(folder, shape)
    weight = next(model.parameters())
    pairs = {
        layer: (module.lora_a.detach().to(weight), (module.scale * module.lora_b.detach()).to(weight))
        for layer, module in lora_layers(shape).items()
    }
    return Adapter(name, pairs)
