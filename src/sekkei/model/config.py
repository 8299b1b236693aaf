"""What a model is, in numbers. Field names follow Hugging Face configs where both say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sekkei.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary positions are rescaled for a context longer than the one trained on.

    `linear`: positions are divided by `factor` (position interpolation, Chen et al. 2023, section 2.3).
    `llama3`: only slow frequencies are divided, with a smooth band between (Llama 3.1's `config.json`).
    """

    kind: Literal["linear", "llama3"] = "linear"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError("factor", f"got {self.factor}, must be >= 1")


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A mixture of experts in place of the MLP (moe.py).

    experts: of each layer. active: of them per token. intermediate_size: inner width of one expert. shared: experts
    that see every token. first_dense: layers at the beginning that keep their MLP (DeepSeek-V3: 3). score: of an expert
    for a token; DeepSeek-V3 takes the sigmoid, Qwen3-MoE the softmax over experts. normalize: the active experts'
    weights add up to `scale`. bias_rate: step of the balancing bias, per optimizer step; 0 = it stays.
    """

    experts: int
    active: int
    intermediate_size: int
    shared: int = 0
    first_dense: int = 0
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    normalize: bool = True
    scale: float = 1.0
    bias_rate: float = 1e-3  # DeepSeek-V3, section 4.2

    def __post_init__(self) -> None:
        for key, least in (("experts", 2), ("active", 1), ("intermediate_size", 1), ("shared", 0), ("first_dense", 0)):
            if getattr(self, key) < least:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= {least}")
        if self.active >= self.experts:
            raise ConfigError("active", f"active={self.active} must be less than experts={self.experts}")
        if self.active == 1 and self.normalize:
            raise ConfigError(
                "normalize", "of one active expert the weight is always 1, and no router learns: set false"
            )
        if self.scale <= 0:
            raise ConfigError("scale", f"got {self.scale}, must be > 0")
        if self.bias_rate < 0:
            raise ConfigError("bias_rate", f"got {self.bias_rate}, must be >= 0 (0 = the bias stays)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama/Qwen3-style decoder.

    `vocab_size` 0 means "take the tokenizer's". `head_dim` None means `hidden_size / num_heads`. `init`: random initial
    weights, or some of them near an induction circuit (induction.py), which forms sooner then. `moe`: experts in place
    of the MLP, whose `intermediate_size` then is that of the first, dense layers.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int = 0
    head_dim: int | None = None
    max_context: int = 1024
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = False
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    init: Literal["normal", "induction"] = "normal"
    moe: MoEConfig | None = None

    def __post_init__(self) -> None:
        for key in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "max_context"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                "num_heads",
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}",
            )
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ConfigError(
                "num_heads",
                f"num_heads={self.num_heads} must divide hidden_size={self.hidden_size} where head_dim is not given",
            )
        if self.head_size % 2:
            raise ConfigError("head_dim", f"got {self.head_size}, must be even: rotary positions turn pairs")
        fits = self.qk_norm and not self.tied_embeddings and self.head_size < self.hidden_size
        if self.init == "induction" and not fits:
            raise ConfigError("init", "'induction' needs qk_norm: true, tied_embeddings: false, head_dim < hidden_size")
        if self.moe is not None and self.moe.first_dense >= self.num_layers:
            raise ConfigError(
                "moe.first_dense",
                f"{self.moe.first_dense} leaves none of num_layers={self.num_layers} with experts",
            )

    @property
    def head_size(self) -> int:
        """Width of one head, `H` in shape legends."""
        return self.head_dim if self.head_dim is not None else self.hidden_size // self.num_heads

    @property
    def dense_layers(self) -> int:
        """How many layers, from the first, have an MLP; the others have experts."""
        return self.num_layers if self.moe is None else self.moe.first_dense
