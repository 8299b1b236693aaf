"""A life that begins with a checkpoint that transformers wrote: its tokenizer, its weights, our turns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sekkei.core.config import read_yaml
from sekkei.core.errors import ConfigError
from sekkei.model.attention import DenseAttend
from sekkei.recipes.imported import read_imported
from sekkei.recipes.recipe import load
from sekkei.stages.model_artifact import load_model
from sekkei.text.tokenizer import Tokenizer

TEXT = ["def start(self): return start at 7, add 3, times 4; the answer is 12 + 30 = 42"] * 40
MARKS = ["<|begin|>", "<|stop|>", "<think>"]
SMALL = {"tokens": 500, "quick_tokens": 200, "long_windows": 1, "problems": 2, "conversations": 2, "requests": 2,
         "probes": 2, "shots": [1], "max_tokens": 16}  # fmt: skip
TUNED = {"extends": "smoke", "name": "smoke", "dpo": None, "grpo": None, "judge": None, "inference": {"last": None},
         "sft": {"steps": 3, "examples": 4}, "eval": SMALL}  # fmt: skip
NOTHING = dict.fromkeys(("general", "reasoning", "long"))
Call = Callable[..., tuple[int, str]]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, without a spare row in its embedding, and without a chat template."""
    folder = tmp_path_factory.mktemp("hf") / "tiny-llama"
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=280, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|stop|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=inner.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write(path: Path, **keys: object) -> Path:
    path.write_text(json.dumps({**TUNED, **keys}))  # JSON is YAML
    return path


def done(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "done.json").read_text())


def test_a_checkpoint_is_tuned_without_pretraining(llama: Path, copy: Path, tmp_path: Path, call: Call) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "checkpoint"))
    recipe = write(tmp_path / "r.yaml", imported=str(folder), pretrain=NOTHING)
    assert call("run", recipe, "--run-dir", copy)[0] == 0
    assert read_yaml(copy / "recipe.yaml")["model"]["hidden_size"] == 32

    # what the checkpoint computes is what it computed, with rows for the new tokens
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer, ours = Tokenizer.load(copy / "tokenizer"), load_model(copy / "imported" / "model")
    known = theirs.config.vocab_size
    assert ours.config.vocab_size == tokenizer.vocab_size == known + 8
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT[0])["input_ids"]
    assert tokenizer.encode(TEXT[0]) == ids[1:]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        got = ours.logits(ours.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], DenseAttend(None)))
        as_ours = torch.tensor([[tokenizer.bos_id, *ids[1:]]])
        begun = ours.logits(ours.hidden(as_ours, torch.arange(len(ids))[None], DenseAttend(None)))
    assert (got[..., :known] - expected).abs().max() <= 1e-4
    assert torch.equal(begun, got)  # <|bos|> begins as <|begin|> was
    assert torch.equal(got[..., tokenizer.end_id], got[..., 1])  # and <|end|> as <|stop|>
    assert ours.embed is not None
    assert torch.allclose(ours.embed.weight[tokenizer.id_of("<|user|>")], theirs.model.embed_tokens.weight.mean(0))

    tuned = load_model(copy / "sft" / "model")
    assert not torch.equal(tuned.get_parameter("norm.weight"), ours.get_parameter("norm.weight"))
    before = {stage: done(copy, stage)["digest"] for stage in ("tokenizer", "imported", "sft")}

    # keyed by what the folder holds: nothing changed, nothing is made again; other weights are
    assert "sft                            reused" in call("run", recipe, "--run-dir", copy)[1]
    theirs.model.norm.weight.data.mul_(0.5)
    theirs.save_pretrained(folder)
    assert call("run", recipe, "--run-dir", copy, "--until", "imported")[0] == 0
    assert done(copy, "tokenizer")["digest"] == before["tokenizer"]
    assert done(copy, "imported")["digest"] != before["imported"]


def test_pretraining_goes_on_from_a_checkpoint(llama: Path, copy: Path, tmp_path: Path, call: Call) -> None:
    """With steps of no length the stage ends where it began: with the checkpoint's weights, and its bits."""
    general = {"steps": 2, "opening_steps": 1, "optim": {"lr": 1e-12}}
    stages = {"general": general, "reasoning": None, "long": None}
    recipe = write(tmp_path / "r.yaml", imported=str(llama), pretrain=stages)
    assert call("run", recipe, "--run-dir", copy, "--until", "eval.pretrain.general")[0] == 0
    begun, ended = (load_model(copy / stage / "model") for stage in ("imported", "pretrain.general"))
    for name, parameter in ended.named_parameters():
        assert torch.allclose(parameter, begun.get_parameter(name), atol=1e-9)
    figures = json.loads((copy / "results.json").read_text())["figures"]
    for domain in ("docs", "code", "math"):
        bits = figures[f"pretrain.general.bpb.{domain}"]
        assert bits == pytest.approx(figures[f"pretrain.start.bpb.{domain}"], abs=1e-6)


def test_folders_that_cannot_be_taken_in(llama: Path, copy: Path, tmp_path: Path, refused: Refused) -> None:
    def spoiled(name: str, file: str, change: Callable[[dict], object]) -> Path:
        folder = Path(shutil.copytree(llama, tmp_path / name))
        data = json.loads((folder / file).read_text())
        change(data)
        (folder / file).write_text(json.dumps(data))
        return folder

    for folder, told in (
        (tmp_path / "nowhere", "config.json, *.safetensors and tokenizer.json"),
        (copy, "is a run: write its model with sekkei export"),
        (
            spoiled("gpt", "config.json", lambda data: data.update(model_type="gpt2")),
            "model_type: got 'gpt2', only llama",
        ),
        (spoiled("small", "config.json", lambda data: data.update(vocab_size=200)), "do not belong together"),
        (spoiled("words", "tokenizer.json", lambda data: data.update(decoder=None)), "no byte-level BPE"),
    ):
        error = refused("run", write(tmp_path / "r.yaml", imported=str(folder), pretrain=NOTHING), "--dry-run")
        assert error.startswith("error: imported: ")
        assert told in error
    (llama_without := Path(shutil.copytree(llama, tmp_path / "bare")) / "model.safetensors").unlink()
    recipe = write(tmp_path / "r.yaml", imported=str(llama_without.parent), pretrain=NOTHING)
    assert "no model.safetensors" in refused("run", recipe, "--run-dir", copy, "--until", "imported")
    with pytest.raises(ConfigError, match="pretrain: needs at least one stage; or name a checkpoint"):
        load(str(write(tmp_path / "r.yaml", pretrain=NOTHING)))


def test_an_exported_model_is_taken_in_as_it_is(copy: Path, tmp_path: Path, call: Call) -> None:
    assert call("export", copy, tmp_path / "out", "--stage", "pretrain.long")[0] == 0
    taken, own = read_imported(tmp_path / "out"), Tokenizer.load(copy / "tokenizer")
    assert not taken.added
    assert taken.tokenizer.encode(TEXT[0]) == own.encode(TEXT[0])
    assert taken.tokenizer.template == own.template
