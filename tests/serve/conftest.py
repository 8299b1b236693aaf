"""Small models on the disk: a run of our own, and a Hugging Face folder that transformers wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.lora import LoRAConfig, add_lora, lora_layers, save_lora
from sekkei.serve.opened import open_model
from sekkei.stages.model_artifact import save_model
from sekkei.text.tokenizer import TokenizerConfig, train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from live import Live

TEXT = ['You say {"name": "Ada", "age": 36} and I say hello, hello; 12 + 30 = 42. こんにちは'] * 40
VOCABULARY, CONTEXT = 320, 1024

# the turns of Qwen's template, with tools and thinking, in our own words
TEMPLATE = """{%- if tools %}
{{- '<|im_start|>system\\nTools:' }}
{%- for tool in tools %}
{{- '\\n' + (tool | tojson) }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + (call.function.arguments | tojson) + '</tool_call>' }}
    {%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def write_run(folder: Path) -> Path:
    """A run with a chat model and a pretrained one, of random weights."""
    tokenizer = train_tokenizer(TEXT, TokenizerConfig(vocab_size=310))
    tokenizer.save(folder / "tokenizer")
    (folder / "recipe.yaml").write_text("name: tiny\npretrain: {general: {}}\nsft: {}\n")
    config = ModelConfig(
        hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64, vocab_size=VOCABULARY,
        max_context=CONTEXT, qk_norm=True,
    )  # fmt: skip
    for seed, stage in enumerate(("sft", "pretrain.general")):
        save_model(build(config, seed), folder / stage / "model")
        (folder / stage / "done.json").write_text(json.dumps({"key": "k"}))
    return folder


def write_foreign(folder: Path, family: str = "qwen3") -> Path:
    """What transformers saves: a random model, and a byte-level tokenizer with its own marks."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    marks = ["<|begin|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(TEXT, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    kind, settings = {
        "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
        "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
    }[family]
    torch.manual_seed(1)
    config = settings(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=CONTEXT, initializer_range=0.2,
        eos_token_id=[2, 3], bos_token_id=0, tie_word_embeddings=family == "qwen3",
    )  # fmt: skip
    kind(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_foreign(tmp_path_factory.mktemp("hf") / f"small-{request.param}", request.param)


@pytest.fixture(scope="session")
def adapter(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the run's chat model, of random matrices."""
    model, config = open_model(run_dir).model, LoRAConfig(rank=4, alpha=16)
    add_lora(model, config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_b.normal_(0, 0.2, generator=generator)
    folder = tmp_path_factory.mktemp("adapters") / "polite"
    save_lora(folder, model, config)
    return folder


@pytest.fixture(scope="session")
def live(run_dir: Path, adapter: Path) -> Iterator[Live]:
    server = Live(run_dir, "--max-batch", "16", "--lora", f"polite={adapter}")
    yield server
    server.kill()


@pytest.fixture(scope="session")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
