"""Checkpoints both ways against transformers, which is the reference here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from sekkei.core.errors import ConfigError, UserError
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig, RopeScaling
from sekkei.model.hf import config_from_hf, config_to_hf, load_hf, save_hf
from sekkei.model.init import build
from sekkei.model.transformer import Transformer

SIZES = {
    "vocab_size": 130,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("llama", {"rms_norm_eps": 1e-5}),
    "llama, tied, llama3 rope": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0}, "num_key_value_heads": 6},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, tied": (
        "qwen3",
        {
            "head_dim": 8,
            "tie_word_embeddings": True,
            "num_attention_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
}


def reference(case: str) -> transformers.PreTrainedModel:
    """A random model of transformers; norms are random too, so that a swapped one is noticed."""
    family, extra = CASES[case]
    torch.manual_seed(0)
    kind = {"llama": transformers.LlamaForCausalLM, "qwen3": transformers.Qwen3ForCausalLM}[family]
    config = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}[family](**{**SIZES, **extra})
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def random_ids() -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, 90), generator=torch.Generator().manual_seed(1))


def ours(config: ModelConfig, state: dict[str, Tensor]) -> Transformer:
    model = build(config, seed=99)
    own = dict(model.named_parameters())
    assert own.keys() == state.keys()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return model


@torch.no_grad()
def logits(model: Transformer, ids: Tensor) -> Tensor:
    return model.logits(model.hidden(ids, torch.arange(ids.shape[1]).expand_as(ids), DenseAttend(None)))


@pytest.mark.parametrize("case", CASES)
def test_import_gives_the_same_scores_and_the_same_greedy_text(case: str, tmp_path: Path) -> None:
    theirs = reference(case)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB" if case == "qwen3" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (case == "qwen3")
    model = ours(*load_hf(tmp_path))
    ids = random_ids()
    with torch.no_grad():
        expected = theirs(ids).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-4)
    prompt = ids[:1, :7]
    answer = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False)
    request = Request(prompt_ids=tuple(prompt[0].tolist()), sampling=Sampling(temperature=0.0, max_tokens=30))
    ((completion,),) = Engine(model).generate([request])
    assert list(completion.token_ids) == answer[0, 7:].tolist()
    assert len(set(completion.token_ids)) > 5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard", [10**9, 50_000])
def test_export_gives_the_same_scores(case: str, shard: int, tmp_path: Path) -> None:
    reference(case).save_pretrained(tmp_path / "theirs")
    config, state = load_hf(tmp_path / "theirs")
    save_hf(tmp_path / "ours", config, state, eos_id=3, max_shard_bytes=shard)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1 or shard == 10**9
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert (theirs.config.eos_token_id, theirs.config.bos_token_id) == (3, None)
    assert theirs.dtype == torch.float32
    ids = random_ids()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, logits(ours(config, state), ids), rtol=0, atol=1e-4)
    config_again, state_again = load_hf(tmp_path / "ours")
    assert config_again == config
    assert state_again.keys() == state.keys()
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def test_an_own_model_is_exported(tmp_path: Path) -> None:
    config = ModelConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        vocab_size=70,
        rope_scaling=RopeScaling(factor=4.0),
        qk_norm=True,
    )
    model = build(config, 0, dtype=torch.bfloat16)
    save_hf(tmp_path / "m", config, dict(model.named_parameters()))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert theirs.dtype == torch.bfloat16
    assert isinstance(theirs, transformers.Qwen3ForCausalLM)
    ids = random_ids() % 70
    with torch.no_grad():
        torch.testing.assert_close(theirs.float()(ids).logits, logits(model.float(), ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 1e4, RopeScaling(factor=2.0)),
        (
            {"rope_theta": 500.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
            500.0,
            RopeScaling(kind="llama3", factor=4.0, original_context=64),
        ),
        ({"rope_parameters": LLAMA3}, 500.0, RopeScaling(kind="llama3", factor=4.0, original_context=64)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 8.0}, 7.0, None),
    ],
)
def test_both_spellings_of_rope_are_read(rope: dict[str, object], theta: float, scaling: RopeScaling | None) -> None:
    config = config_from_hf({"model_type": "llama", **SIZES, **rope})
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)
    written = config_to_hf(config)
    older = {key: value for key, value in written.items() if key != "rope_parameters"}
    assert config_from_hf(written) == config_from_hf(older)
    assert (config_from_hf(older).rope_theta, config_from_hf(older).rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "model_type: got 'mistral', only llama, qwen3"),
        ({"model_type": None}, "model_type: got None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures: got .*LlamaForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias: got True"),
        ({"mlp_bias": True}, "mlp_bias: got True"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window: got True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: got 'sliding_attention'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: got"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type: got 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters.rope_type: got 'dynamic'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor: got 0.5"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor: got None"),
        ({"hidden_size": None}, "hidden_size: got None, must be a whole number"),
        ({"num_key_value_heads": 4}, "num_heads=6 must be a multiple of num_kv_heads=4"),
    ],
)
def test_what_is_not_handled_is_refused_by_key_and_value(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_hf({"model_type": "llama", **SIZES, **change})


def test_a_family_that_cannot_hold_the_model_is_refused() -> None:
    config = config_from_hf({"model_type": "qwen3", **SIZES, "head_dim": 10, "hidden_size": 47})
    assert config_to_hf(config)["model_type"] == "qwen3"
    with pytest.raises(ConfigError, match="qk_norm: got True"):
        config_to_hf(config, "llama")
    without = config_from_hf({"model_type": "llama", **SIZES, "head_dim": 10, "hidden_size": 47})
    with pytest.raises(ConfigError, match="num_heads=6 must divide hidden_size=47"):
        config_to_hf(without)


def small_checkpoint(folder: Path) -> dict[str, Tensor]:
    config = ModelConfig(
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=8,
        vocab_size=9,
        tied_embeddings=True,
    )
    save_hf(folder, config, dict(build(config, 0).named_parameters()))
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\).*safetensors"):
        load_hf(tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_hf(tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load_hf(tmp_path / "m")


def test_tensors_must_be_exactly_the_models(tmp_path: Path) -> None:
    tensors = small_checkpoint(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    norm = "model.layers.0.input_layernorm.weight"
    for change, words in (
        ({norm: None}, f"tensor {norm} is missing"),
        ({norm: torch.ones(7)}, f"tensor {norm} is \\[7\\], config.json says \\[8\\]"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(8)}, "q_proj.bias has no place"),
        ({"model.layers.1.input_layernorm.weight": torch.ones(8)}, "layers.1.input_layernorm.weight has no place"),
    ):
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        safetensors.torch.save_file(changed, file)
        with pytest.raises(UserError, match=words):
            load_hf(tmp_path / "m")
    copies = {"lm_head.weight": torch.ones(9, 8), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    safetensors.torch.save_file({**tensors, **copies}, file)
    assert "lm_head.weight" not in load_hf(tmp_path / "m")[1]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        load_hf(tmp_path / "m")


def test_an_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    tensors = small_checkpoint(tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../elsewhere.safetensors")}))
    with pytest.raises(UserError, match="files of that folder"):
        load_hf(tmp_path / "m")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "absent.safetensors")}))
    with pytest.raises(UserError, match=r"absent\.safetensors: cannot be read"):
        load_hf(tmp_path / "m")


def test_a_state_with_more_than_a_language_model_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=8, vocab_size=9)
    state = dict(build(config, 0, heads=("lm", "value")).named_parameters())
    with pytest.raises(UserError, match=r"value_head\.weight has no place"):
        save_hf(tmp_path / "m", config, state)
    assert not (tmp_path / "m").exists()
