"""The tokenizer: any text survives it, special tokens never come out of plain text, `transformers` opens its folder."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.data.corpus import chain_document
from sekkei.data.tasks import chain, maths
from sekkei.data.tasks.chain import ChainConfig
from sekkei.text.tokenizer import (
    ALPHABET,
    BOS,
    END,
    PAD,
    SPECIAL,
    THINK,
    Tokenizer,
    TokenizerConfig,
    train_tokenizer,
)

CHAINS = ChainConfig()
LEAST = ALPHABET + len(SPECIAL)


def corpus() -> list[str]:
    texts = []
    for i in range(300):
        rng = random.Random(derive_seed("tokenizer", i))
        texts += [chain_document(rng, CHAINS), maths.maths_document(rng)]
    return texts


TEXTS = corpus()
TOKENIZER = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=600), whole=chain.words(CHAINS))
SPECIAL_IDS = {TOKENIZER.id_of(token) for token in SPECIAL}
LOOKALIKE = st.lists(st.sampled_from([*SPECIAL, "<", "|", ">", "end", "<|", "|>", " ", "a", "\n", "é"]), max_size=12)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text())
@example("x\x00y\r\n\t  \u3000z ")
@example("吾輩は猫である 🙂👩‍👩‍👧 مرحبا Ⅷ ½ ² 1234567")
@example("<|end|>")
def test_any_text_survives(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert sum(TOKENIZER.token_bytes()[token] for token in ids) == len(text.encode())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(LOOKALIKE.map("".join))
def test_special_tokens_never_come_out_of_plain_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert SPECIAL_IDS.isdisjoint(ids)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.encode_many([text]) == [ids]
    trusted = TOKENIZER.encode_trusted(text)
    assert TOKENIZER.encode_many([text], trusted=True) == [trusted]
    assert bool(SPECIAL_IDS.intersection(trusted)) == any(token in text for token in SPECIAL)
    assert TOKENIZER.decode(trusted) == text


def test_special_tokens_come_first_and_have_no_bytes() -> None:
    assert [TOKENIZER.id_of(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    assert (TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.end_id) == (
        TOKENIZER.id_of(PAD),
        TOKENIZER.id_of(BOS),
        TOKENIZER.id_of(END),
    )
    sizes = TOKENIZER.token_bytes()
    assert len(sizes) == TOKENIZER.vocab_size == 600
    assert sizes[: len(SPECIAL)] == [0] * len(SPECIAL)
    assert min(sizes[len(SPECIAL) :]) == 1


def test_numbers_and_words_of_the_task_are_single_tokens() -> None:
    pieces = chain.words(CHAINS)
    assert len(pieces) > 30
    ids = [TOKENIZER.id_of(piece) for piece in pieces]
    assert None not in ids
    assert len(set(ids)) == len(ids)
    assert TOKENIZER.id_of("start at") is None
    problem = chain.sample_problem(random.Random(0), 4, "train", CHAINS)
    question, thought, answer = chain.solved(problem, "every")
    for text in (question, thought, answer):
        assert {TOKENIZER.decode([token]) for token in TOKENIZER.encode(text)} <= set(pieces)


def test_numbers_are_cut_after_two_digits() -> None:
    cut = TOKENIZER._trusting.pre_tokenizer.pre_tokenize_str("x=1234567 890")
    assert [piece.replace("Ġ", " ") for piece, _ in cut] == ["x", "=", "12", "34", "56", "7", " 89", "0"]
    digits = [sum(c.isdigit() for c in TOKENIZER.decode([token])) for token in range(TOKENIZER.vocab_size)]
    assert max(digits) == 2


@pytest.mark.parametrize(
    ("most", "pieces"),
    [
        (1, ["x", "=", "1", "2", "3", "4", " 8", "9"]),
        (3, ["x", "=", "123", "4", " 89"]),
        (9, ["x", "=", "1234", " 89"]),
    ],
)
def test_numbers_are_cut_as_asked(most: int, pieces: list[str]) -> None:
    found = train_tokenizer(["7 1234 " * 50 + "abc"], TokenizerConfig(vocab_size=LEAST, max_digits=most))
    cut = found._trusting.pre_tokenizer.pre_tokenize_str("x=1234 89")
    assert [piece.replace("Ġ", " ") for piece, _ in cut] == pieces


def test_pieces_that_were_not_learned() -> None:
    with pytest.raises(UserError, match=r"'start' and [0-9]+ more pieces of the reasoning task") as caught:
        train_tokenizer(TEXTS, TokenizerConfig(vocab_size=LEAST + 5), whole=chain.words(CHAINS))
    assert f"tokenizer.vocab_size={LEAST + 5}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_little_text() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=4096: the text gives only"):
        train_tokenizer(["a few words"], TokenizerConfig(vocab_size=4096))


@pytest.mark.parametrize(
    ("key", "values"),
    [("vocab_size", {"vocab_size": LEAST - 1}), ("train_bytes", {"train_bytes": 0}), ("max_digits", {"max_digits": 0})],
)
def test_bad_settings(key: str, values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got"):
        TokenizerConfig(**values)


def test_the_smallest_vocabulary_is_bytes() -> None:
    tokenizer = train_tokenizer([], TokenizerConfig(vocab_size=LEAST))
    assert len(tokenizer.encode("häuser")) == 7
    assert tokenizer.decode(tokenizer.encode("häuser")) == "häuser"


def test_training_stops_at_its_bytes() -> None:
    config = TokenizerConfig(vocab_size=LEAST + 3, train_bytes=10)
    tokenizer = train_tokenizer(["aaaa aaaa aaaa", "qqqq qqqq qqqq" * 50], config)
    assert tokenizer.id_of("aaaa") is not None
    assert tokenizer.id_of("qq") is None


def test_training_is_deterministic(tmp_path: Path) -> None:
    again = train_tokenizer(corpus(), TokenizerConfig(vocab_size=600))
    for name, tokenizer in (("a", TOKENIZER), ("b", again)):
        tokenizer.save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_round_trip_through_a_folder(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = f"start at 7, {THINK} <|end|> 猫"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.encode_trusted(text) == TOKENIZER.encode_trusted(text)
    assert loaded.template == TOKENIZER.template
    assert loaded.token_bytes() == TOKENIZER.token_bytes()


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_unreadable_folders(tmp_path: Path, name: str) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="no readable tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_malformed_file_and_a_strangers_vocabulary(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no readable tokenizer"):
        Tokenizer.load(tmp_path)
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != END]
    del content["model"]["vocab"][END]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lacks the special tokens <\|end\|>"):
        Tokenizer.load(tmp_path)


def test_transformers_opens_the_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == TOKENIZER.vocab_size
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (BOS, END, PAD)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (TOKENIZER.bos_id, TOKENIZER.end_id)
    for text in (*TEXTS[:20], "é 🙂 猫\r\n\t x", f"{BOS}<|user|>a{END}<|assistant|>{THINK}</think>b{END}"):
        ids = TOKENIZER.encode_trusted(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs.decode(TOKENIZER.encode_trusted(f"<|user|>a{END}"), skip_special_tokens=True) == "a"


def test_transformers_renders_the_same_chat(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from sekkei.text.chat import encode_chat, encode_prompt

    TOKENIZER.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    problem = chain.sample_problem(random.Random(1), 3, "train", CHAINS)
    conversations = [
        chain.demonstration(problem, "every"),
        chain.demonstration(problem, "none"),
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": " hello\n"},
            {"role": "assistant", "content": "Hi 🙂"},
            {"role": "tool", "content": "42"},
            {"role": "user", "content": ""},
            {"role": "assistant", "content": "猫", "reasoning_content": "hm"},
        ],
    ]
    for messages in conversations:
        ours = encode_chat(TOKENIZER, messages)
        found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert found["input_ids"] == ours.ids
        assert found["assistant_masks"] == [int(flag) for flag in ours.learned]
        for thinking in (True, False):
            prompt = theirs.apply_chat_template(
                messages[:-1], add_generation_prompt=True, enable_thinking=thinking, return_dict=True
            )
            assert prompt["input_ids"] == encode_prompt(TOKENIZER, messages[:-1], thinking)
