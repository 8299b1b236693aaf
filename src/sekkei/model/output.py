"""What one forward pass gives to a loss. Shapes: `B` batch, `T` tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Output:
    """Per-token results; a field is None where the loss did not ask for it.

    logprobs: [B, T] float32, `logprobs[b, t] = log p(labels[b, t] | ids[b, :t+1])`; 0 where label = -100.
    entropy:  [B, T] float32, of the same distribution, in nats; 0 where label = -100.
    values:   [B, T] float32, one scalar per token (value or reward head).
    """

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
