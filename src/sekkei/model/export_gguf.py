"""A model as one GGUF file, which llama.cpp and what is built on it open.

    general.architecture llama | qwen3, sizes, rope, tokenizer, then the tensors under llama.cpp's names

Two things differ from our checkpoints. llama.cpp's `llama` turns neighbouring pairs (2i, 2i+1) where we turn halves
(i, i + H/2), so rows of q_proj and k_proj change places there; its `qwen3` turns halves. And Llama 3's rope scaling is
a tensor, `rope_freqs.weight` [H/2]: what each frequency is divided by.

The vocabulary is written as byte-level BPE with its merges (`tokenizer.ggml.model` gpt2). llama.cpp cuts text into
pieces by patterns that it knows by name and `pre` names one of them; our own tokenizer's pattern (at most two digits
to a piece) is none of them, so numbers may be cut differently there. Token ids given directly are exact.

It does not handle quantised types: llama.cpp's own `llama-quantize` makes them from this file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.model.config import ModelConfig
from sekkei.model.hf import check_state
from sekkei.model.layers import rope_frequencies

TOP = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
PARTS = {
    "attention_norm": "attn_norm",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMAL, CONTROL = 1, 3  # llama.cpp's token types


def save_gguf(
    path: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    name: str,
    tokenizer_json: str | None = None,
    template: str | None = None,
    bos_id: int | None = None,
    eos_id: int | None = None,
    bos_first: bool = False,
    pre: str = "gpt-2",
) -> None:
    """Write a GGUF file, whole or not at all. Matrices keep their dtype (float32 or bfloat16), norms are float32.

    Args:
        state: every parameter of `Transformer(config)` by our names. tokenizer_json: None leaves the vocabulary out.
        bos_first: whoever tokenizes a text is to put `bos_id` before it.
        pre: name of llama.cpp's pattern that is nearest to the tokenizer's.
    Raises:
        UserError: `gguf` is not installed; tensors are missing, left over or of another shape; the tokenizer is no
            byte-level BPE.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the gguf package: pip install 'sekkei[gguf]'") from None
    if config.moe is not None:
        raise UserError("models with experts are not written as GGUF")
    check_state(state, config, "state")
    kind = "qwen3" if config.qk_norm else "llama"
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(aside), kind)
    try:
        writer.add_name(name)
        _add_sizes(writer, config)
        if tokenizer_json is not None:
            _add_tokenizer(writer, json.loads(tokenizer_json), config.vocab_size, bos_id, eos_id, pre)
            if bos_first:
                writer.add_add_bos_token(True)
        if template is not None:
            writer.add_chat_template(template)
        bf16 = any(tensor.dtype == torch.bfloat16 for tensor in state.values())
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
        for own, tensor in state.items():
            _add_tensor(writer, gguf, gguf_name(own), as_gguf(own, tensor, config))
        if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
            writer.add_tensor("rope_freqs.weight", rope_factors(config))
        with atomic.disk_errors(path):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            atomic.sync_file(aside)
            os.replace(aside, path)
    finally:
        writer.close()
        aside.unlink(missing_ok=True)


def gguf_name(own: str) -> str:
    """`layers.3.attention.q_proj.weight` -> `blk.3.attn_q.weight`."""
    if own in TOP:
        return TOP[own]
    _, layer, rest = own.split(".", 2)
    return f"blk.{layer}.{PARTS[rest.removesuffix('.weight')]}.weight"


def as_gguf(own: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """A tensor as llama.cpp wants it: rows of q and k interleaved for `llama`, norms in float32."""
    tensor = tensor.detach().cpu()
    if tensor.ndim == 1:
        return tensor.float()
    if not config.qk_norm and own.endswith(("q_proj.weight", "k_proj.weight")):
        tensor = interleave(tensor, config.head_size)
    return tensor.contiguous()


def interleave(weight: Tensor, head: int) -> Tensor:
    """Rows [heads · H, D]: (i, i + H/2) become neighbours (2i, 2i + 1)."""
    rows, width = weight.shape
    return weight.view(rows // head, 2, head // 2, width).transpose(1, 2).reshape(rows, width)


def rope_factors(config: ModelConfig) -> np.ndarray:
    """What each frequency is divided by, [H/2] float32."""
    plain = rope_frequencies(config.head_size, config.rope_theta, None)
    return (plain / rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)).float().numpy()


def _add_sizes(writer: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def _add_tokenizer(
    writer: Any, data: Mapping[str, Any], vocab_size: int, bos_id: int | None, eos_id: int | None, pre: str
) -> None:
    model = data["model"]
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(data.get("decoder")):
        raise UserError(f"the tokenizer is a {model.get('type')}: only byte-level BPE is written to GGUF files")
    pieces = {token: piece for piece, token in model["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in data.get("added_tokens", [])}
    pieces |= special
    tokens = [pieces.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    kinds = [CONTROL if i in special or i not in pieces else NORMAL for i in range(vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    if bos_id is not None:
        writer.add_bos_token_id(bos_id)
    if eos_id is not None:
        writer.add_eos_token_id(eos_id)


def _add_tensor(writer: Any, gguf: Any, name: str, tensor: Tensor) -> None:
    if tensor.dtype == torch.bfloat16:
        raw = tensor.view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_shape=raw.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, tensor.float().numpy())
