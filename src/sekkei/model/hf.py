"""Hugging Face checkpoints of dense Llama and Qwen3 models, read and written. Safetensors only.

    config.json, model.safetensors (or shards + index)  <──>  ModelConfig, {our name: tensor}

The two families differ in one thing here: Qwen3 normalises queries and keys per head (`qk_norm`). Tied
embeddings have no `lm_head.weight` on either side. Rotary settings are read in both spellings:
`rope_parameters` (transformers 5) and `rope_scaling` + `rope_theta` (before), types default, linear, llama3.
Whatever would change the numbers and is not handled is refused by key and value: biases, sliding windows,
partial rotation, quantised weights, other activations, other rope types. It does not handle tokenizers,
generation settings, other architectures, or pickled weights, which can run code when they are opened.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError
from sekkei.model.config import ModelConfig, RopeScaling
from sekkei.model.transformer import Transformer

Family = Literal["llama", "qwen3"]

ARCHITECTURES: dict[Family, str] = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SIZES = {  # ours -> theirs
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_context": "max_position_embeddings",
}
FIXED = {  # keys whose other values are another computation
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu", None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0, None),
}
TOP = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
PARTS = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "mlp_norm": "post_attention_layernorm",
    "mlp": "mlp",
}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAX_SHARD_BYTES = 5 * 10**9


def config_from_hf(data: Mapping[str, Any]) -> ModelConfig:
    """The model that a `config.json` describes.

    Raises:
        ConfigError: a key is missing, or has a value that this house's model cannot compute.
    """
    kind = data.get("model_type")
    if kind not in ARCHITECTURES:
        raise ConfigError("model_type", f"got {kind!r}, only {', '.join(ARCHITECTURES)} are handled")
    if data.get("architectures") not in (None, [], [ARCHITECTURES[kind]]):
        raise ConfigError("architectures", f"got {data['architectures']!r}, must be [{ARCHITECTURES[kind]!r}]")
    for key, allowed in FIXED.items():
        if data.get(key) not in allowed:
            raise ConfigError(key, f"got {data[key]!r}, only {allowed[0]!r} is handled")
    for layer in data.get("layer_types") or ():
        if layer != "full_attention":
            raise ConfigError("layer_types", f"got {layer!r}, only 'full_attention' is handled")
    for key in SIZES.values():
        if not isinstance(data.get(key), int):
            raise ConfigError(key, f"got {data.get(key)!r}, must be a whole number")
    theta, scaling = _rope(data)
    heads = data["num_attention_heads"]
    return ModelConfig(
        **{ours: data[theirs] for ours, theirs in SIZES.items()},
        num_kv_heads=data.get("num_key_value_heads") or heads,
        head_dim=data.get("head_dim") or (128 if kind == "qwen3" else None),  # Qwen3Config's default
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=kind == "qwen3",
        norm_eps=data.get("rms_norm_eps", 1e-6),
        tied_embeddings=bool(data.get("tie_word_embeddings", False)),
    )


def config_to_hf(config: ModelConfig, family: Family | None = None) -> dict[str, Any]:
    """The `config.json` of a model; None: qwen3 where it has `qk_norm`, else llama.

    Raises:
        ConfigError: the family cannot hold this model.
    """
    if config.moe is not None:
        raise ConfigError("moe", "models with experts are not written in Hugging Face's layout")
    family = family or _family(config)
    if family != _family(config):
        raise ConfigError("qk_norm", f"got {config.qk_norm}: family {family!r} cannot hold it, {_family(config)!r} can")
    if family == "llama" and config.hidden_size % config.num_heads:
        raise ConfigError(
            "num_heads",
            f"num_heads={config.num_heads} must divide hidden_size={config.hidden_size}: LlamaConfig insists on it",
        )
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
        if config.rope_scaling.kind == "llama3":
            rope["low_freq_factor"] = config.rope_scaling.low_freq_factor
            rope["high_freq_factor"] = config.rope_scaling.high_freq_factor
            rope["original_max_position_embeddings"] = config.rope_scaling.original_context
    return {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling is not None else None,
        "tie_word_embeddings": config.tied_embeddings,
    }


def load_hf(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a checkpoint folder.

    Returns:
        the config, and every parameter of `Transformer(config)` by our names, in the dtype of the file.
    Raises:
        UserError: files are missing, damaged or pickled; tensors are missing, left over or of another shape.
    """
    config = config_from_hf(_read_json(folder / "config.json"))
    names = {_name_to_hf(name): name for name in parameter_shapes(config)}
    state = {}
    for theirs, tensor in _read_tensors(folder).items():
        if theirs.endswith("rotary_emb.inv_freq") or (config.tied_embeddings and theirs == "lm_head.weight"):
            continue  # older exports carry a copy of what the config says
        if theirs not in names:
            raise UserError(f"{folder}: tensor {theirs} has no place in a {_family(config)} model of this config.json")
        state[names[theirs]] = tensor
    check_state(state, config, str(folder))
    return config, state


def save_hf(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    family: Family | None = None,
    bos_id: int | None = None,
    eos_id: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a checkpoint folder that transformers opens, atomically, replacing what stood there.

    Args:
        state: every parameter of `Transformer(config)` by our names; tied models without `lm_head.weight`.
        bos_id, eos_id: special tokens; None is written as null.
        max_shard_bytes: a file may grow to this; more files get an index.
    Raises:
        UserError: tensors are missing, left over or of another shape; ConfigError: see `config_to_hf`.
    """
    check_state(state, config, "state")
    data = config_to_hf(config, family) | {"bos_token_id": bos_id, "eos_token_id": eos_id}
    data["torch_dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][_name_to_hf(name)] = tensor.detach().cpu().contiguous()
        filled += size
    with atomic.new_folder(folder) as aside:
        (aside / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        where: dict[str, str] = {}
        for i, shard in enumerate(shards):
            file = SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            safetensors.torch.save_file(shard, aside / file, metadata={"format": "pt"})
            where |= dict.fromkeys(shard, file)
        if len(shards) > 1:
            total = sum(t.numel() * t.element_size() for t in state.values())
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (aside / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every parameter of the language model; a tied head counts as the embedding."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Transformer(config).named_parameters()}


def check_state(state: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    """Refuse a state that is not exactly the model's.

    Raises:
        UserError: naming the first tensor that is missing, left over, or of another shape.
    """
    shapes = parameter_shapes(config)
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"{source}: tensor {_name_to_hf(name)} is missing")
        if state[name].shape != shape:
            raise UserError(
                f"{source}: tensor {_name_to_hf(name)} is {list(state[name].shape)}, config.json says {list(shape)}"
            )
    for name in state:
        if name not in shapes:
            raise UserError(f"{source}: tensor {name} has no place in a {_family(config)} checkpoint; leave it out")


def _family(config: ModelConfig) -> Family:
    return "qwen3" if config.qk_norm else "llama"


def _name_to_hf(name: str) -> str:
    """`layers.3.attention.q_proj.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in TOP:
        return TOP[name]
    _, layer, part, rest = name.split(".", 3)
    return f"model.layers.{layer}.{PARTS[part]}.{rest}"


def _rope(data: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    key = "rope_parameters" if data.get("rope_parameters") else "rope_scaling"
    rope = data.get(key) or {}
    theta = rope.get("rope_theta", data.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"{key}.partial_rotary_factor", f"got {rope['partial_rotary_factor']!r}, only 1.0 is handled")
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ConfigError(f"{key}.rope_type", f"got {kind!r}, only default, linear and llama3 are handled")
    own = {"factor": "factor"}
    if kind == "llama3":
        own |= {
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_context": "original_max_position_embeddings",
        }
    _require(rope, own.values(), key)
    return theta, RopeScaling(kind=kind, **{ours: rope[theirs] for ours, theirs in own.items()})


def _require(rope: Mapping[str, Any], keys: Collection[str], path: str) -> None:
    for key in keys:
        if not isinstance(rope.get(key), int | float):
            raise ConfigError(f"{path}.{key}", f"got {rope.get(key)!r}, must be a number")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); a Hugging Face checkpoint needs it") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a JSON object")
    return data


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / INDEX).exists():
        where = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(f, str) and Path(f).name == f for f in where.values()):
            raise UserError(f"{folder / INDEX}: weight_map must map tensors to files of that folder")
        files = sorted(set(where.values()))
    elif (folder / SINGLE).exists():
        files = [SINGLE]
    else:
        pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
        if pickled:
            raise UserError(
                f"{folder}: only pickled weights ({pickled[0]}), which can run code when opened; "
                "save the model again with safetensors"
            )
        raise UserError(f"{folder}: no {SINGLE} and no {INDEX}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= safetensors.torch.load_file(folder / file)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{folder / file}: cannot be read ({error}); fetch it again") from None
    return tensors
