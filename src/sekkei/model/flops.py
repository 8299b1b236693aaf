"""Counting: parameters, FLOPs and bytes of a model, from its config alone.

Training FLOPs per token follow the convention of the utilisation literature (PaLM, Chowdhery et al. 2022,
appendix B): 6 per parameter that multiplies (2 forward, 4 backward; the embedding is a look-up and does
not count, the head does), plus 12 · layers · T · (heads · H) for q kᵀ and weights · v, causality ignored.

Shapes: `B` rows, `T` tokens per row, `D` model width, `N` heads, `K` key/value heads, `H` head width,
`F` intermediate width, `V` vocabulary.
"""

from __future__ import annotations

from sekkei.model.config import ModelConfig

FLOAT32, BFLOAT16 = 4, 2


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by component; their sum is the model's (lm head only)."""
    d, h, f = config.hidden_size, config.head_size, config.intermediate_size
    attention = d * h * (2 * config.num_heads + 2 * config.num_kv_heads)
    norms = 2 * d + (2 * h if config.qk_norm else 0)
    return {
        "embedding": config.vocab_size * d,
        "attention": config.num_layers * attention,
        "mlp": config.num_layers * 3 * d * f,
        "norms": config.num_layers * norms + d,
        "head": 0 if config.tied_embeddings else config.vocab_size * d,
    }


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Training FLOPs (forward and backward) per token in rows of `context` tokens."""
    parts = count_parameters(config)
    multiplied = parts["attention"] + parts["mlp"] + config.vocab_size * config.hidden_size
    width = config.num_heads * config.head_size
    return 6.0 * multiplied + 12.0 * config.num_layers * context * width


def kv_bytes_per_token(config: ModelConfig, bytes_per_value: int = FLOAT32) -> int:
    """Keys and values of one token over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_size * bytes_per_value


def training_bytes(config: ModelConfig, rows: int, context: int, compute_bytes: int = BFLOAT16) -> dict[str, int]:
    """Bytes held while training on `rows` × `context` tokens per forward pass, by component.

    float32 weights, gradients and two AdamW moments: 16 per parameter. Activations that the backward pass
    needs, per token and layer: the block's tensors (about 8 D + 2 (N + 2 K) H + 4 F values in the compute
    dtype) and, where attention is explicit, the weights of every head (6 bytes per pair of tokens: float32
    and compute dtype). Logits: float32 and compute dtype of one pass.
    """
    parameters = sum(count_parameters(config).values())
    tokens = rows * context
    block = 8 * config.hidden_size + 2 * (config.num_heads + 2 * config.num_kv_heads) * config.head_size
    block += 4 * config.intermediate_size
    attention = config.num_heads * context * (FLOAT32 + compute_bytes)
    return {
        "weights": parameters * FLOAT32,
        "gradients": parameters * FLOAT32,
        "moments": 2 * parameters * FLOAT32,
        "activations": config.num_layers * tokens * (block * compute_bytes + attention),
        "logits": tokens * config.vocab_size * (FLOAT32 + compute_bytes),
    }
