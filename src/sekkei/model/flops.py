"""What a model costs, counted from its config: parameters, FLOPs per token, bytes of a training step and of a cache.

    FLOPs per trained token = 6 P + 12 L T (N H)

the convention of model FLOP utilisation (PaLM, Chowdhery et al. 2022, appendix B): 2 per weight forward,
4 backward; attention scores and their use 4 L T N H forward, 8 backward, over the whole T × T square although
half of it is masked; recomputation does not count. `P` here is every weight that multiplies a token: attention and MLP
matrices of all layers and the output head, also where it is tied; not the embedding (a look-up), not norms.

It does not handle mixtures of experts, sharding, or the reserve of the allocator.

Shapes: `L` layers, `D` model width, `N` query heads, `K` key/value heads, `H` head width, `F` inner width of
the MLP, `V` vocabulary, `T` tokens of context.
"""

from __future__ import annotations

import torch

from sekkei.model.attention import choose_path
from sekkei.model.config import ModelConfig
from sekkei.model.logprobs import CHUNK_ELEMENTS, KEEP_ELEMENTS


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by component: embedding, attention, mlp, norms, lm_head (0 where tied); their sum is all."""
    d, h, layers = config.hidden_size, config.head_size, config.num_layers
    return {
        "embedding": config.vocab_size * d,
        "attention": layers * 2 * d * h * (config.num_heads + config.num_kv_heads),
        "mlp": layers * 3 * d * config.intermediate_size,
        "norms": layers * (2 * d + (2 * h if config.qk_norm else 0)) + d,
        "lm_head": 0 if config.tied_embeddings else config.vocab_size * d,
    }


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Forward and backward FLOPs of one token in a row of `context` tokens: 6 P + 12 L T N H (see above)."""
    counts = count_parameters(config)
    weights = counts["attention"] + counts["mlp"] + config.vocab_size * config.hidden_size
    return 6.0 * weights + 12.0 * config.num_layers * context * config.num_heads * config.head_size


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token in all layers: 2 L K H × bytes per element."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_size * dtype.itemsize


def training_bytes(config: ModelConfig, rows: int, tokens: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, int]:
    """Bytes that one training step of a micro-batch needs on one device: AdamW, float32 weights, no recomputation.

    weights 4 P, gradients 4 P, moments 8 P; casts: the copies of attention and MLP matrices that autocast
    keeps for the backward pass, 2 bytes each in bf16, none in float32. activations: what autograd saves, per token
    and layer, with `s` bytes per element of `dtype` and A = N H, C = K H:

        two norms, input and scaled input          4 · 4 D
        inputs of projections                      s · (c D + A + F), c = 2, or 5 where each one casts its own
        SwiGLU: gate, silu(gate), up               s · 3 F
        QK-norm, where it is on                    4 · 2 (A + C)
        q, k, v of attention                       s · (A + 2 C)
        fused path: the mask, log-sum-exp          s · T + 4 N
        explicit path: softmax, twice              (4 + s) · N T

    and 12 D per token for the last norm and its output. logits: kept in `dtype` where they are few
    (model/logprobs.py), plus three float32 copies of one chunk while it is worked on.

    Within 3% of what autograd was seen to save, in float32 and bf16 on both paths (tests/model/test_flops.py).
    The tensors that live for a moment only, and the allocator, come on top.

    Args:
        rows, tokens: shape of the micro-batch, with segments. dtype: float32, or the autocast dtype; the device is
            a CPU.
    Returns:
        bytes by name; their sum is what the step holds at its peak.
    """
    counts, s = count_parameters(config), dtype.itemsize
    parameters = sum(counts.values())
    d, f, heads = config.hidden_size, config.intermediate_size, config.num_heads
    a, c = heads * config.head_size, config.num_kv_heads * config.head_size
    autocast = dtype != torch.float32
    layer = 16 * d + s * ((5 if autocast else 2) * d + a + 4 * f) + s * (a + 2 * c)
    if config.qk_norm:
        layer += 8 * (a + c)
    explicit = choose_path(torch.device("cpu"), dtype, tokens) == "explicit"
    layer += (4 + s) * heads * tokens if explicit else s * tokens + 4 * heads
    logits = rows * tokens * config.vocab_size
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "moments": 8 * parameters,
        "casts": s * (counts["attention"] + counts["mlp"]) if autocast else 0,
        "activations": rows * tokens * (config.num_layers * layer + 12 * d),
        "logits": (s * logits if logits <= KEEP_ELEMENTS else 0) + 12 * min(logits, CHUNK_ELEMENTS),
    }
