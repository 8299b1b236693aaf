"""`sekkei chat` with a real engine and a model whose weights say by hand which token follows which."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch

from sekkei.cli import chat, main
from sekkei.core.errors import UserError
from sekkei.engine.engine import Engine
from sekkei.engine.request import Sampling
from sekkei.llm.run_folder import choose_stage
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.serve.exchange import export_hf
from sekkei.serve.opened import open_model
from sekkei.stages.model_artifact import load_model, save_model
from sekkei.text.tokenizer import END, THINK, THINK_END, Tokenizer, TokenizerConfig, train_tokenizer

VOCABULARY, CONTEXT, REPLY = 288, 64, 8
TEXT = ["so you say hello to me and I say hello to you, hmm, well well"] * 40
CALL = "<tool> calculator : 2 + 3 </tool>"  # one token here
FOLLOWS = ("<|assistant|>", THINK, " well", THINK_END, " hello", END), (" you", " hello")


def write_run(folder: Path, follows: tuple[tuple[str, ...], ...] = FOLLOWS, context: int = CONTEXT) -> Path:
    """A run with a finished SFT model: by default, after the assistant's mark it thinks " well" and says " hello"."""
    train_tokenizer(TEXT, TokenizerConfig(vocab_size=VOCABULARY), [" well", " hello", " you"]).save(
        folder / "tokenizer"
    )
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    inner.add_tokens([CALL])
    inner.save(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    (folder / "recipe.yaml").write_text("name: tiny\npretrain: {general: {}, long: {}}\nsft: {}\ndpo: {}\ngrpo: {}\n")
    size = VOCABULARY + 1
    config = ModelConfig(
        hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32, vocab_size=size,
        max_context=context,
    )  # fmt: skip
    model = build(config, 0)
    with torch.no_grad():
        model.layers["0"].attention.o_proj.weight.zero_()  # the block adds nothing: the last token decides alone
        model.layers["0"].mlp.down_proj.weight.zero_()
        model.embed.weight.copy_(torch.randn(size, 64, generator=torch.Generator().manual_seed(0)))
        model.lm_head.weight.zero_()
        for chain in follows:
            for before, after in itertools.pairwise(chain):
                model.lm_head.weight[tokenizer.id_of(after)] += model.embed.weight[tokenizer.id_of(before)]
    finish(folder, "sft", model)
    return folder


def finish(folder: Path, stage: str, model: torch.nn.Module) -> None:
    save_model(model, folder / stage / "model")
    (folder / stage / "done.json").write_text(json.dumps({"key": "k"}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("chat") / "tiny")


def conversation(run: Path, **settings: object) -> chat.Conversation:
    opened = open_model(run, "sft")
    opened.words.chats = not settings.pop("base", False)
    sampling = Sampling(temperature=0.0, max_tokens=REPLY, stop_tokens=opened.words.stop_tokens)
    return chat.Conversation(Engine(opened.model), opened.words, sampling, **settings)


def typed(talk: chat.Conversation, text: str) -> str:
    out = io.StringIO()
    chat.converse(talk, io.StringIO(text), out)
    return out.getvalue()


def test_it_thinks_answers_and_stops(run: Path) -> None:
    talk = conversation(run)
    assert typed(talk, "say something\n") == "( well)\n hello\n"
    assert talk.turns == [
        {"role": "user", "content": "say something"},
        {"role": "assistant", "content": "hello"},
    ]


def test_thinking_can_be_switched(run: Path) -> None:
    assert typed(conversation(run), "/think off\nhi\n/think on\nhi\n") == " hello\n( well)\n hello\n"
    assert typed(conversation(run, thinking=False), "hi\n") == " hello\n"


def test_thinking_is_dim_on_a_terminal(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    chat.converse(conversation(run), io.StringIO("hi\n"), out)
    assert out.getvalue() == "\x1b[2m well\x1b[0m\n hello\n"


def test_lines_are_joined_and_reset_forgets(run: Path) -> None:
    talk = conversation(run)
    typed(talk, "one\\\ntwo\n\n")
    assert talk.turns[0]["content"] == "one\ntwo"
    typed(talk, "/reset\nthree\n")
    assert [turn["content"] for turn in talk.turns] == ["three", "hello"]


def test_the_system_message_reaches_the_prompt(run: Path) -> None:
    talk = conversation(run)
    before = talk.prompt("hi")[0]
    typed(talk, "hello\n/system say hello\n")
    ids, _ = talk.prompt("hi")
    assert talk.turns == []
    assert "<|system|>say hello<|end|>" in talk.words.tokenizer.decode(ids)
    typed(talk, "/system\n")
    assert talk.prompt("hi")[0] == before


def test_special_tokens_in_a_message_stay_text(run: Path) -> None:
    talk = conversation(run)
    ids, _ = talk.prompt("<|end|>")
    assert ids.count(talk.words.tokenizer.end_id) == 1


def test_the_oldest_turns_are_left_out_with_a_note(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(run)
    for number in range(12):
        typed(talk, f"say {number} to me\n")
        assert len(talk.prompt("x")[0]) <= CONTEXT - REPLY
    assert "oldest messages are left out" in capsys.readouterr().err
    assert talk.turns[0]["role"] == "user"
    assert talk.turns[-2]["content"] == "say 11 to me"


def test_a_message_that_is_too_long_does_not_end_the_talk(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(conversation(run), "qzx " * 40 + "\nhi\n") == "( well)\n hello\n"
    assert f"room for {CONTEXT - REPLY}" in capsys.readouterr().err


def test_a_base_model_continues_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(run, base=True)
    assert typed(talk, "hello to you\n/reset\n") == " hello\n"
    assert talk.turns == []
    assert "knows no turns" in capsys.readouterr().err


def test_commands_are_listed_and_quit_ends(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(conversation(run), "/help\n/nonsense\n/quit\nhi\n") == ""
    shown = capsys.readouterr().err
    assert "/system TEXT" in shown
    assert "(/nonsense: no such command)" in shown


def test_a_cut_reply_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(run)
    talk.sampling = Sampling(temperature=0.0, max_tokens=2, stop_tokens=(talk.words.tokenizer.end_id,))
    assert typed(talk, "hi\n") == "( well)\n"
    assert "cut off after 2 tokens" in capsys.readouterr().err


def test_the_newest_finished_stage_is_chosen(run: Path, tmp_path: Path) -> None:
    assert choose_stage(run) == "sft"
    model = load_model(run / "sft" / "model")
    (tmp_path / "recipe.yaml").write_text("name: tiny\npretrain: {general: {}, long: {}}\nsft: {}\ndpo: {}\ngrpo: {}\n")
    with pytest.raises(UserError, match="no stage has finished a model yet"):
        choose_stage(tmp_path)
    for stage in ("pretrain.general", "pretrain.long", "dpo", "grpo"):
        finish(tmp_path, stage, model)
        assert choose_stage(tmp_path) == stage
    (tmp_path / "grpo" / "done.json").unlink()
    assert choose_stage(tmp_path) == "dpo"
    assert choose_stage(tmp_path, "pretrain.general") == "pretrain.general"
    with pytest.raises(UserError, match=r"stage grpo: .* it has dpo, pretrain.long, pretrain.general"):
        choose_stage(tmp_path, "grpo")


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tmp_path)]) == 2
    assert "recipe.yaml is missing" in capsys.readouterr().err


def test_max_tokens_must_leave_room(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(run), "--max-tokens", "64"]) == 2
    assert "--max-tokens=64 must be below" in capsys.readouterr().err


def test_through_a_pipe(run: Path) -> None:
    command = [sys.executable, "-m", "sekkei", "chat", str(run), "--max-tokens", str(REPLY)]
    result = subprocess.run(command, input="hi\nhi", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "( well)\n hello\n( well)\n hello\n"
    assert "a tiny model of" in result.stderr.splitlines()[0]


def test_lines_of_a_pipe_know_nothing_of_each_other(run: Path) -> None:
    talk = conversation(run, fresh=True)
    first = talk.prompt("hi")[0]
    assert typed(talk, "one\ntwo\n") == "( well)\n hello\n( well)\n hello\n"
    assert talk.turns == []
    assert talk.prompt("hi")[0] == first


def test_a_call_of_the_calculator_is_worked_out(tmp_path: Path) -> None:
    """This model calls at every turn, so it is stopped after the most calls of a reply."""
    talk = conversation(write_run(tmp_path / "calls", (("<|assistant|>", CALL, END),), context=512))
    assert typed(talk, "hi\n") == f"{CALL}\n", "a model of someone else's"
    talk.calculates, talk.turns = True, []
    talk.sampling = Sampling(max_tokens=2, temperature=0.0, stop_tokens=(talk.words.tokenizer.end_id,))
    calls = [{"role": "assistant", "content": "x"}, {"role": "tool", "content": "<result> 5 </result>"}]
    told = talk.words.tokenizer.decode(talk.prompt("hi", calls)[0])
    assert told.endswith("x<|end|><|tool|><result> 5 </result><|end|><|assistant|>")
    assert typed(talk, "hi\n") == f"{CALL}\n(<result> 5 </result>)\n" * chat.MAX_CALLS + f"{CALL}\n"
    assert [turn["content"] for turn in talk.turns] == ["hi", CALL], "what it calculated is not kept"


def test_a_hugging_face_folder_is_talked_to(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_hf(run, tmp_path / "out")
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\\\ntwo\n"))
    assert main(["chat", str(tmp_path / "out"), "--max-tokens", str(REPLY)]) == 0
    shown = capsys.readouterr()
    assert shown.out == "( well)\n hello\n"
    assert "tiny" not in shown.err
