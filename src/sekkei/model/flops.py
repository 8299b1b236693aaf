"""What a model costs, counted from its config: parameters, FLOPs per token, bytes of a training step and of a cache.

    FLOPs per trained token = 6 P + 12 L T (N H)

the convention of model FLOP utilisation (PaLM, Chowdhery et al. 2022, appendix B): 2 per weight forward,
4 backward; attention scores and their use 4 L T N H forward, 8 backward, over the whole T × T square although
half of it is masked; recomputation does not count. `P` here is every weight that multiplies a token: attention and MLP
matrices of all layers and the output head, also where it is tied; not the embedding (a look-up), not norms. Of experts
those that a token goes through count, with the shared ones and the router.

It does not handle sharding, or the reserve of the allocator.

Shapes: `L` layers, `D` model width, `N` query heads, `K` key/value heads, `H` head width, `F` inner width of
the MLP (or of one expert), `V` vocabulary, `T` tokens of context, `E` experts, `k` active and `S` shared ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sekkei.model.choices import CHUNK_ELEMENTS, KEEP_ELEMENTS, choose_path
from sekkei.model.config import ModelConfig

if TYPE_CHECKING:
    import torch


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by component: embedding, attention, mlp, norms, lm_head (0 where tied); their sum is all.

    `mlp` holds routers, their biases, and all experts: E of them and S shared ones per layer.
    """
    d, h, layers = config.hidden_size, config.head_size, config.num_layers
    experts = config.moe.experts if config.moe else 0
    return {
        "embedding": config.vocab_size * d,
        "attention": layers * 2 * d * h * (config.num_heads + config.num_kv_heads),
        "mlp": _mlp_weights(config, experts) + (layers - config.dense_layers) * experts,
        "norms": layers * (2 * d + (2 * h if config.qk_norm else 0)) + d,
        "lm_head": 0 if config.tied_embeddings else config.vocab_size * d,
    }


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Forward and backward FLOPs of one token in a row of `context` tokens: 6 P + 12 L T N H (see above)."""
    mlp = _mlp_weights(config, config.moe.active if config.moe else 0)
    weights = count_parameters(config)["attention"] + mlp + config.vocab_size * config.hidden_size
    return 6.0 * weights + 12.0 * config.num_layers * context * config.num_heads * config.head_size


def _mlp_weights(config: ModelConfig, experts: int) -> int:
    """Elements of the matrices of MLPs, routers and `experts` experts of each layer, with the shared ones."""
    d, dense, moe = config.hidden_size, config.dense_layers, config.moe
    weights = dense * 3 * d * config.intermediate_size
    if moe is not None:
        one = 3 * d * moe.intermediate_size
        weights += (config.num_layers - dense) * ((experts + moe.shared) * one + moe.experts * d)
    return weights


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token in all layers: 2 L K H × bytes per element."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_size * dtype.itemsize


def training_bytes(config: ModelConfig, rows: int, tokens: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that one training step of a micro-batch needs on one device: AdamW, float32 weights, no recomputation.

    weights 4 P, gradients 4 P, moments 8 P; casts: the copies of attention and MLP matrices that autocast
    keeps for the backward pass, 2 bytes each in bf16, none in float32. activations: what autograd saves, per token
    and layer, with `s` bytes per element of `dtype` and A = N H, C = K H:

        two norms, input and scaled input          4 · 4 D
        inputs of attention's projections          s · (c D + A), c = 1, or 3 where each one casts its own
        SwiGLU: inputs, gate, silu(gate), up       s · (c D + 4 F), c = 1, or 2
        experts instead: `saved_by_mlp`
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
    d, heads = config.hidden_size, config.num_heads
    a, c = heads * config.head_size, config.num_kv_heads * config.head_size
    autocast = s < 4
    layer = 16 * d + s * ((3 if autocast else 1) * d + a) + s * (a + 2 * c)
    if config.qk_norm:
        layer += 8 * (a + c)
    explicit = choose_path("cpu", s == 2, tokens) == "explicit"
    layer += (4 + s) * heads * tokens if explicit else s * tokens + 4 * heads
    mlps = sum(saved_by_mlp(config, i, s) for i in range(config.num_layers))
    logits = rows * tokens * config.vocab_size
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "moments": 8 * parameters,
        "casts": s * sum(cast_weights(config, i) for i in range(config.num_layers)) if autocast else 0,
        "activations": rows * tokens * (config.num_layers * layer + mlps + 12 * d),
        "logits": (s * logits if logits <= KEEP_ELEMENTS else 0) + 12 * min(logits, CHUNK_ELEMENTS),
    }


def saved_by_mlp(config: ModelConfig, layer: int, s: int) -> int:
    """Bytes that autograd saves per token in the MLP of a layer, or in its experts; `s` as in `training_bytes`.

    With experts, w = max(4, s) bytes per element of the router's, and whole numbers of 8:

        router: its input, scores, chosen weights   w · (D + E + 3 k + 1)
        chosen experts, two orders of sorting       8 · 3 k
        rows to experts and their results           s · k (2 D + 4 F)
        shared experts                              s · 4 S F, and 2 D where each projection casts its own input
    """
    d, moe, wide = config.hidden_size, config.moe, max(4, s)
    autocast = s < wide
    if moe is None or layer < config.dense_layers:
        return s * ((2 if autocast else 1) * d + 4 * config.intermediate_size)
    k, f = moe.active, moe.intermediate_size
    shared = s * (4 * moe.shared * f + (2 * d if autocast else 0)) if moe.shared else 0
    return wide * (d + moe.experts + 3 * k + 1) + 24 * k + s * k * (2 * d + 4 * f) + shared


def cast_weights(config: ModelConfig, layer: int, parts: int = 1) -> int:
    """Elements of the matrices that autocast casts in one layer, all but the router's, where a device holds one of
    `parts` of the experts.
    """
    d, moe = config.hidden_size, config.moe
    attention = 2 * d * config.head_size * (config.num_heads + config.num_kv_heads)
    if moe is None or layer < config.dense_layers:
        return attention + 3 * d * config.intermediate_size
    return attention + (moe.experts // parts + moe.shared) * 3 * d * moe.intermediate_size
