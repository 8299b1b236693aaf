"""Models out and in, with transformers and gguf as the ones who open them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from sekkei.cli import main
from sekkei.core.errors import UserError
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig, RopeScaling
from sekkei.model.export_gguf import gguf_name, save_gguf
from sekkei.model.init import build
from sekkei.model.layers import rope_frequencies
from sekkei.model.transformer import Transformer
from sekkei.serve.exchange import export_hf, import_hf
from sekkei.serve.opened import Opened, open_model
from sekkei.serve.words import ForeignWords, OwnWords
from sekkei.text.chat import encode_chat
from sekkei.text.tokenizer import Tokenizer

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "say hello 12 + 30"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "こんにちは"},
]
TEXTS = ["say hello 12 + 30 = 42", "こんにちは", " leading space\n\n", ""]
TOLERANCE = 1e-4


@torch.no_grad()
def logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    return model.logits(model.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], DenseAttend(None)))


def greedy(opened: Opened, ids: list[int], tokens: int = 24) -> list[int]:
    sampling = Sampling(temperature=0.0, max_tokens=tokens, stop_tokens=opened.words.stop_tokens)
    ((completion,),) = Engine(opened.model).generate([Request(prompt_ids=tuple(ids), sampling=sampling)])
    return list(completion.token_ids)


@torch.no_grad()
def check_same(opened: Opened, folder: Path) -> None:
    """transformers says the same: ids of a conversation, scores, greedy text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for thinking in (True, False):
        theirs = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, enable_thinking=thinking)["input_ids"]
        ids = opened.words.chat(TALK, thinking=thinking)
        assert ids == list(theirs)
    difference = (logits(opened.model, ids) - model(torch.tensor([ids])).logits).abs().max()
    assert difference <= TOLERANCE
    out = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    assert greedy(opened, ids) == out[0, len(ids) :].tolist()


@pytest.mark.parametrize("shard", [10**9, 40_000])
def test_a_run_opens_in_transformers(run_dir: Path, tmp_path: Path, shard: int) -> None:
    done = export_hf(run_dir, tmp_path / "out", max_shard_bytes=shard)
    assert done.stage == "sft"
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (shard < 10**9)
    opened = open_model(run_dir)
    assert isinstance(opened.words, OwnWords)
    check_same(opened, tmp_path / "out")
    again = open_model(tmp_path / "out")
    assert isinstance(again.words, OwnWords)
    assert again.words.plain(TEXTS[0]) == opened.words.plain(TEXTS[0])
    assert torch.equal(logits(again.model, [1, 5, 9]), logits(opened.model, [1, 5, 9]))


@pytest.mark.parametrize("stage", ["sft", "pretrain.general"])
def test_others_encode_an_exported_model_s_texts_as_we_do(run_dir: Path, tmp_path: Path, stage: str) -> None:
    """One <|bos|>, before plain texts and chats alike; a pipeline of transformers says what we say."""
    export_hf(run_dir, tmp_path / "out", stage)
    tokenizer, opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), open_model(run_dir, stage)
    assert isinstance(opened.words, OwnWords)
    own, begin = opened.words.tokenizer, opened.words.tokenizer.bos_id
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == opened.words.plain(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text)
    first, second = (own.encode(text) for text in TEXTS[:2])
    assert tokenizer(*TEXTS[:2])["input_ids"] == [begin, *first, begin, *second]
    asked: list = [TEXTS[0]]
    prompts = [opened.words.plain(TEXTS[0])]
    if opened.words.chats:
        asked.append(TALK)
        prompts.append(opened.words.chat(TALK))
        whole = [*TALK, {"role": "assistant", "content": "hi", "reasoning_content": "a greeting"}]
        theirs = tokenizer.apply_chat_template(whole, return_dict=True, return_assistant_tokens_mask=True)
        ours = encode_chat(own, whole)
        assert theirs["input_ids"] == ours.ids
        assert theirs["assistant_masks"] == [int(flag) for flag in ours.learned]
    pipe = transformers.pipeline("text-generation", model=str(tmp_path / "out"), dtype=torch.float32)
    for what, ids in zip(asked, prompts, strict=True):
        (said,) = pipe(what, max_new_tokens=24, do_sample=False, return_tensors=True)
        assert said["generated_token_ids"] == [*ids, *greedy(opened, ids)]


def test_a_pretrained_model_comes_back_as_it_was(run_dir: Path, tmp_path: Path) -> None:
    export_hf(run_dir, tmp_path / "out", "pretrain.general")
    assert import_hf(tmp_path / "out", tmp_path / "run").stage == "pretrain.imported"
    there, back = Tokenizer.load(run_dir / "tokenizer"), Tokenizer.load(tmp_path / "run" / "tokenizer")
    assert back.template == there.template
    words = open_model(run_dir, "pretrain.general").words
    for text in TEXTS:
        assert back.encode(text) == there.encode(text)
        for opened in (open_model(tmp_path / "out"), open_model(tmp_path / "run")):
            assert opened.words.plain(text) == words.plain(text)


def test_a_pretrained_model_has_no_turns(run_dir: Path, tmp_path: Path) -> None:
    export_hf(run_dir, tmp_path / "out", "pretrain.general")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template is None
    for opened in (open_model(tmp_path / "out"), open_model(run_dir, "pretrain.general")):
        assert not opened.words.chats
    assert greedy(open_model(tmp_path / "out"), [1, 40, 50]) == greedy(
        open_model(run_dir, "pretrain.general"), [1, 40, 50]
    )


def test_a_checkpoint_of_transformers_opens_here(foreign: Path, tmp_path: Path) -> None:
    opened = open_model(foreign)
    assert isinstance(opened.words, ForeignWords)
    assert opened.words.stop_tokens == (2, 3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(foreign)
    assert opened.words.plain("say hello 42") == tokenizer("say hello 42")["input_ids"]
    check_same(opened, foreign)
    done = import_hf(foreign, tmp_path / "run")
    assert done.stage == "sft"
    imported = open_model(tmp_path / "run")
    assert imported.words.chat(TALK) == opened.words.chat(TALK)
    assert imported.words.stop_tokens == (2, 3)
    export_hf(tmp_path / "run", tmp_path / "back")
    check_same(imported, tmp_path / "back")


def test_tools_and_calls_reach_a_foreign_template(foreign: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(foreign)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    talk = [*TALK, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "2"}]
    ids = open_model(foreign).words.chat(talk, tools)
    text = tokenizer.decode(ids)
    assert '{"name": "add"' in text
    assert '<tool_call>{"a": 1}</tool_call>' in text
    with pytest.raises(UserError, match="unknown role clown"):
        open_model(foreign).words.chat([{"role": "clown", "content": "x"}])


def test_bfloat16_is_written_and_stays_close(run_dir: Path, tmp_path: Path) -> None:
    export_hf(run_dir, tmp_path / "out", dtype=torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    opened = open_model(run_dir)
    for name, parameter in open_model(tmp_path / "out").model.named_parameters():
        assert torch.equal(parameter, opened.model.get_parameter(name).bfloat16().float())


def read_back(path: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of a GGUF file by our names, rows of q and k put back."""
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        data = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type))
        tensors[tensor.name] = torch.from_numpy(data.reshape([int(n) for n in reversed(tensor.shape)]).copy())
    found = {}
    with torch.device("meta"):
        names = [name for name, _ in Transformer(config).named_parameters()]
    for name in names:
        tensor = tensors.pop(gguf_name(name))
        if not config.qk_norm and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads, width = tensor.shape[0] // config.head_size, tensor.shape[1]
            tensor = tensor.view(heads, config.head_size // 2, 2, width).transpose(1, 2).reshape(-1, width)
        found[name] = tensor
    assert set(tensors) <= {"rope_freqs.weight"}
    return found


LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_context=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"qk_norm": True},
        {"tied_embeddings": True, "rope_scaling": LLAMA3},
        {"rope_scaling": RopeScaling(factor=2.0)},
    ],
)
def test_a_gguf_file_holds_the_model(change: dict, dtype: torch.dtype, tmp_path: Path) -> None:
    config = ModelConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, vocab_size=90, max_context=64,
        **change,
    )  # fmt: skip
    model = build(config, 0)
    state = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    save_gguf(tmp_path / "m.gguf", config, state, name="m")
    for name, tensor in read_back(tmp_path / "m.gguf", config).items():
        assert torch.equal(tensor, state[name].float()), name
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    kind = "qwen3" if config.qk_norm else "llama"
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == kind
    assert "tokenizer.ggml.add_bos_token" not in fields
    assert fields[f"{kind}.attention.head_count_kv"] == 2
    assert fields[f"{kind}.context_length"] == 64
    assert ("rope_freqs.weight" in {tensor.name for tensor in reader.tensors}) == (config.rope_scaling == LLAMA3)
    if config.rope_scaling == LLAMA3:
        factors = next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight").data
        plain = rope_frequencies(8, config.rope_theta, None)
        assert torch.allclose(plain / torch.tensor(factors), rope_frequencies(8, config.rope_theta, LLAMA3), rtol=1e-5)
    elif config.rope_scaling is not None:
        assert fields["llama.rope.scaling.factor"] == 2.0


def test_interleaved_rows_turn_as_halves_do() -> None:
    """A head turned in neighbouring pairs after the change of rows equals one turned in halves before it."""
    from sekkei.model.export_gguf import interleave
    from sekkei.model.layers import apply_rope

    x = torch.randn(3, 8, dtype=torch.float64)  # [T, H]
    angles = torch.arange(3)[:, None] * rope_frequencies(8, 100.0, None)
    both = torch.cat((angles, angles), -1)
    halves = apply_rope(x[None, None], (both.cos(), both.sin()))[0, 0]
    pairs = interleave(x.T, 8).T.reshape(3, 4, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = torch.stack((even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()), -1)
    assert torch.allclose(interleave(halves.T, 8).T, turned.reshape(3, 8))


def test_the_verbs(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(run_dir), str(tmp_path / "m.gguf")]) == 0
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    opened = open_model(run_dir)
    assert len(fields["tokenizer.ggml.tokens"]) == opened.model.config.vocab_size
    assert fields["tokenizer.ggml.tokens"][fields["tokenizer.ggml.eos_token_id"]] == "<|end|>"
    assert fields["tokenizer.ggml.tokens"][fields["tokenizer.ggml.bos_token_id"]] == "<|bos|>"
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert "<|assistant|>" in fields["tokenizer.chat_template"]
    assert main(["export", str(run_dir), str(tmp_path / "hf"), "--dtype", "bfloat16"]) == 0
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "run")]) == 0
    assert open_model(tmp_path / "run").words.chat(TALK) == opened.words.chat(TALK)
    for arguments, words in (
        (["export", str(run_dir), str(tmp_path / "hf")], "already holds something"),
        (["export", str(run_dir), str(tmp_path / "m.gguf")], "already exists"),
        (["export", str(tmp_path), str(tmp_path / "x")], "holds no run"),
        (["export", str(run_dir), str(tmp_path / "x"), "--dtype", "int8"], "--dtype=int8"),
        (["import", str(tmp_path), str(tmp_path / "x")], "config.json"),
        (["import", str(tmp_path / "hf"), str(tmp_path / "x"), "--stage", "nonsense"], "stage nonsense"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_without_an_end_is_refused(foreign: Path, tmp_path: Path) -> None:
    for file in foreign.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="ends an answer"):
        open_model(tmp_path)
