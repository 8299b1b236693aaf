"""Conversations and preference pairs from files in the ecosystem's formats, and what is left out of them."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sekkei.core.errors import UserError
from sekkei.objectives.conversations import Unfit, check_conversation, fitting, learned_turns, read_conversations
from sekkei.objectives.preference_data import TextFeedback, TextPair, read_pairs, read_preferences, transcript
from sekkei.text.chat import Rendered, encode_chat, encode_prompt
from sekkei.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

HH = Path(__file__).parents[2].parent / "shared" / "data" / "hh_rlhf_harmless_test.jsonl.gz"
ASKED, SAID = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["the quick brown fox said hello to 4 lazy dogs and was brief"] * 30
    return train_tokenizer(texts, TokenizerConfig(vocab_size=300))


def written(folder: Path, rows: Sequence[Any], name: str = "data.jsonl") -> str:
    path = folder / name
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.json", "data.parquet"])
def test_the_same_conversation_in_every_format(tmp_path: Path, name: str) -> None:
    formats = [
        {"messages": [SYSTEM, ASKED, SAID]},
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2 + 2?"},
                           {"from": "gpt", "value": "4"}]},
        {"conversations": [{"from": "user", "value": "2 + 2?"}, {"from": "assistant", "value": "4"}],
         "system": "Be brief."},
        {"instruction": "2 + 2?", "input": "", "output": "4", "system": "Be brief."},
    ]  # fmt: skip
    for row in formats:  # a Parquet file has one schema
        assert read_conversations(written(tmp_path, [row], name)) == ([[SYSTEM, ASKED, SAID]], {})


def test_an_alpaca_input_follows_its_instruction(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "hello", "output": "bonjour"}
    (found,), _ = read_conversations(written(tmp_path, [row]))
    assert found[0] == {"role": "user", "content": "Translate.\n\nhello"}


def test_tools_and_thoughts_are_kept(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "37 * 2?"}, {"from": "function_call", "value": "calc 37*2"},
                           {"from": "observation", "value": "74"}, {"from": "gpt", "value": "74"}]},
        {"messages": [ASKED, {**SAID, "reasoning_content": "two and two"}]},
    ]  # fmt: skip
    found, _ = read_conversations(written(tmp_path, rows))
    assert [message["role"] for message in found[0]] == ["user", "assistant", "tool", "assistant"]
    assert found[1][1]["reasoning_content"] == "two and two"


def parts(*texts: str, image: bool = False) -> list[dict[str, Any]]:
    """A turn's content as the chat API of OpenAI writes it."""
    found: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
    return [*found, {"type": "image_url", "image_url": {"url": "data:,"}}] if image else found


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_text_in_parts_is_read_and_other_parts_are_counted(tmp_path: Path, name: str) -> None:
    told = {"role": "assistant", "content": parts("4")}
    rows = [
        {"messages": [{"role": "user", "content": parts("2 +", " 2?")}, told]},
        {"messages": [{"role": "user", "content": parts("2 + 2?", image=True)}, told]},
        {"messages": [{"role": "user", "content": parts(image=True)}, told]},
        {"messages": [{"role": "user", "content": parts()}, told]},
    ]
    found, counts = read_conversations(written(tmp_path, rows, name))
    assert found == [[ASKED, SAID]]
    assert counts == {"conversations/dropped_media": 2.0, "conversations/dropped_empty": 1.0}
    pairs = [
        {"prompt": [row["messages"][0]], "chosen": [told], "rejected": [{**told, "content": parts("5")}]}
        for row in rows[:2]
    ]
    read, counts = read_pairs(written(tmp_path, pairs, f"pairs{Path(name).suffix}"))
    assert read == [TextPair((ASKED,), "4", "5")]
    assert counts == {"pairs": 2.0, "pairs/dropped_media": 1.0}


@pytest.mark.parametrize("part", ["text", {"text": "2 + 2?"}, {"type": "text"}, {"type": "text", "text": None}])
def test_a_part_that_is_none_is_named(tmp_path: Path, part: object) -> None:
    rows = [{"messages": [ASKED, SAID]}, {"messages": [{"role": "user", "content": [part]}, SAID]}]
    with pytest.raises(UserError, match=r"data\.jsonl:2: a part of a turn needs 'type'"):
        read_conversations(written(tmp_path, rows))


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    rows = [
        {"messages": [SYSTEM, SYSTEM, ASKED, SAID]},
        {"messages": [ASKED, SYSTEM, SAID]},
        {"messages": [ASKED, {"role": "narrator", "content": "…"}, SAID]},
        {"messages": [ASKED]},
        {"messages": []},
        {"messages": [SAID]},
        {"messages": [ASKED, {"role": "assistant", "content": "  "}]},
        {"messages": [ASKED, {"role": "assistant", "content": None}]},
        {"instruction": "", "input": "", "output": "4"},
        {"messages": [ASKED, SAID, ASKED]},
        {"messages": [ASKED, SAID]},
    ]
    found, counts = read_conversations(written(tmp_path, rows))
    assert found == [[ASKED, SAID]] * 2
    assert counts == {
        "conversations/dropped_system": 2.0,
        "conversations/dropped_role": 1.0,
        "conversations/dropped_no_answer": 2.0,
        "conversations/dropped_no_question": 1.0,
        "conversations/dropped_empty": 3.0,
        "conversations/trimmed": 1.0,
    }
    with pytest.raises(UserError, match=r"no conversation to learn from \(left out: 2 system"):
        read_conversations(written(tmp_path, rows[:3]))
    with pytest.raises(Unfit, match="system"):
        check_conversation([SYSTEM, ASKED, SYSTEM, SAID])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"messages": []}\n{"messages"', r"a\.jsonl:2: cannot be read"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: a record must be a JSON object, got list"),
        ("a.jsonl", '{"text": "x"}\n', "keys text are no known format"),
        ("a.jsonl", '{"messages": "x"}\n', "'messages' must be a list"),
        ("a.jsonl", '{"messages": [{"content": "x"}]}\n', "a turn needs 'role' and 'content'"),
        ("a.jsonl", "", "no conversation"),
        ("a.json", '{"messages": []}', r"must be a list of records; .* \.jsonl"),
        ("a.jsonl.gz", "not compressed", "cannot be read"),
        ("a.parquet", "not parquet", "cannot be read"),
        ("a.csv", "x", "name must end in"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        read_conversations(str(tmp_path / name))


def test_a_missing_file_and_a_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_conversations(str(tmp_path / "none.jsonl"))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"hub:someone/something.*datasets"):
        read_conversations("hub:someone/something")


def test_a_data_set_of_the_hub_by_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of this machine, which the library opens as it opens a repository."""
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "talks"
    folder.mkdir()
    written(folder, [{"messages": [ASKED, SAID]}] * 3, "train.jsonl")
    written(folder, [{"messages": [SYSTEM, ASKED, SAID]}], "test.jsonl")
    assert read_conversations(f"hub:{folder}") == ([[ASKED, SAID]] * 3, {})
    assert read_conversations(f"hub:{folder}:test")[0] == [[SYSTEM, ASKED, SAID]]
    with pytest.raises(UserError, match="cannot be opened"):
        read_conversations(f"hub:{folder}:validation")
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    written(pairs, [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}], "train.jsonl")
    assert len(read_pairs(f"hub:{pairs}")[0]) == 1


def test_the_last_turn_alone(tokenizer: Tokenizer) -> None:
    talk = [SYSTEM, ASKED, SAID, {"role": "user", "content": "and 3 + 3?"}, {"role": "assistant", "content": "6"}]
    whole = encode_chat(tokenizer, talk)
    assert learned_turns(whole, "all") == whole
    last = learned_turns(whole, "last")
    assert last.ids == whole.ids
    assert [i for i, on in zip(whole.ids, last.learned, strict=True) if on] == [
        *tokenizer.encode("6"),
        tokenizer.end_id,
    ]
    assert sum(whole.learned) == sum(last.learned) + len(tokenizer.encode("4")) + 1
    single = encode_chat(tokenizer, [ASKED, SAID])
    assert learned_turns(single, "last") == single


def test_long_conversations_are_left_out() -> None:
    short, long = Rendered([1] * 5, [True] * 5), Rendered([1] * 6, [True] * 6)
    assert fitting([short, long, long], 5) == ([short], {"conversations/dropped_long": 2.0})
    assert fitting([short], 5) == ([short], {})


def test_pairs_of_people_are_all_parsed() -> None:
    if not HH.exists():
        pytest.skip(f"{HH.name} is not in ../shared/data")
    pairs, counts = read_pairs(str(HH))
    assert counts == {"pairs": 2312.0, "pairs/dropped_empty": 4.0, "pairs/dropped_prompt": 5.0}
    assert len(pairs) == 2303
    for pair in pairs:
        assert pair.prompt[0]["role"] == pair.prompt[-1]["role"] == "user"
        assert "\n\nHuman:" not in pair.chosen + pair.rejected
    shorter = sum((len(p.chosen) < len(p.rejected)) + 0.5 * (len(p.chosen) == len(p.rejected)) for p in pairs)
    assert 0.53 < shorter / len(pairs) < 0.57  # the rule "shorter wins", about 55%


def test_pairs_in_every_format(tmp_path: Path, tokenizer: Tokenizer) -> None:
    worse = {"role": "assistant", "content": "5"}
    rows = [
        {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"},
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [ASKED], "chosen": [SAID], "rejected": [worse]},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, worse]},
    ]
    pairs, counts = read_pairs(written(tmp_path, rows))
    assert pairs == [TextPair((ASKED,), "4", "5")] * 4
    assert counts == {"pairs": 4.0}
    ((rated,), _) = read_pairs(written(tmp_path, [{**rows[1], "margin": 2}]))
    assert rated.margin == 2.0
    encoded = rated.encode(tokenizer)
    assert encoded.prompt == tuple(encode_prompt(tokenizer, [ASKED]))
    assert encoded.chosen == (*tokenizer.encode("4"), tokenizer.end_id)


def test_pairs_that_teach_nothing_are_counted(tmp_path: Path) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [
        good,
        {**good, "rejected": "b"},
        {**good, "chosen": " "},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: A\n\nAssistant: c"},
    ]
    pairs, counts = read_pairs(written(tmp_path, rows))
    assert len(pairs) == 1
    assert counts == {"pairs": 4.0, "pairs/dropped_equal": 1.0, "pairs/dropped_empty": 1.0, "pairs/dropped_prompt": 1.0}
    with pytest.raises(UserError, match=r"left out: 1 equal"):
        read_pairs(written(tmp_path, rows[1:2]))


def test_prompts_of_pairs_are_checked_as_conversations(tmp_path: Path) -> None:
    sides = {"chosen": [SAID], "rejected": [{"role": "assistant", "content": "5"}]}
    narrator = {"role": "narrator", "content": "…"}
    rows = [
        {"prompt": [SYSTEM, ASKED], **sides},
        {"prompt": [SYSTEM, SYSTEM, ASKED], **sides},
        {"prompt": [ASKED, SYSTEM], **sides},
        {"prompt": [narrator, ASKED], **sides},
        {"prompt": [SYSTEM], **sides},
        {"prompt": " ", **sides},
        {"chosen": [narrator, ASKED, SAID], "rejected": [narrator, ASKED, *sides["rejected"]]},
        {"chosen": [SYSTEM, SAID, SYSTEM, SAID], "rejected": [SYSTEM, SAID, SYSTEM, *sides["rejected"]]},
        {"chosen": [ASKED, ASKED], "rejected": [ASKED, {**ASKED, "content": "3 + 3?"}]},
        {"chosen": [SAID], "rejected": sides["rejected"]},
    ]
    pairs, counts = read_pairs(written(tmp_path, rows, "pairs.json"))
    assert pairs == [TextPair((SYSTEM, ASKED), "4", "5")]
    assert counts == {
        "pairs": 10.0,
        "pairs/dropped_system": 3.0,
        "pairs/dropped_role": 2.0,
        "pairs/dropped_no_question": 2.0,
        "pairs/dropped_empty": 1.0,
        "pairs/dropped_no_answer": 1.0,
    }
    with pytest.raises(UserError, match=r"\(left out: 2 system, the first \S+data\.jsonl:1, 1 role, the first \S+:3\)"):
        read_pairs(written(tmp_path, rows[1:4]))


LIKED = {"prompt": "2 + 2?", "completion": "4", "label": True}


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])
def test_answers_liked_or_not_in_every_format(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    texts = [LIKED, {**LIKED, "completion": "5", "label": False}]
    turns = [{"prompt": [ASKED], "completion": [{**SAID, "content": row["completion"]}], "label": row["label"]}
             for row in texts]  # fmt: skip
    for rows in (texts, turns):
        pairs, feedback, counts = read_preferences(written(tmp_path, rows, name))
        assert pairs == []
        assert feedback == [TextFeedback((ASKED,), "4", True), TextFeedback((ASKED,), "5", False)]
        assert counts == {"answers": 2.0}
    encoded = feedback[0].encode(tokenizer)
    assert encoded.prompt == tuple(encode_prompt(tokenizer, [ASKED]))
    assert encoded.answer == (*tokenizer.encode("4"), tokenizer.end_id)
    assert encoded.desirable


def test_answers_that_teach_nothing_are_counted(tmp_path: Path) -> None:
    rows = [
        LIKED,
        {**LIKED, "completion": " "},
        {**LIKED, "prompt": [SYSTEM, SYSTEM, ASKED]},
        {**LIKED, "prompt": [{"role": "user", "content": parts(image=True)}]},
    ]
    _, feedback, counts = read_preferences(written(tmp_path, rows))
    assert len(feedback) == 1
    assert counts == {
        "answers": 4.0, "answers/dropped_empty": 1.0, "answers/dropped_system": 1.0, "answers/dropped_media": 1.0
    }  # fmt: skip
    with pytest.raises(UserError, match=r"no answer to learn from \(left out: 1 empty, the first \S+:1\)"):
        read_preferences(written(tmp_path, rows[1:2]))


def test_pairs_and_single_answers_in_one_file_are_refused(tmp_path: Path) -> None:
    pair = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    with pytest.raises(UserError, match=r"data\.jsonl:2: has 'completion' and 'label', .* before it are pairs"):
        read_preferences(written(tmp_path, [pair, LIKED]))
    with pytest.raises(UserError, match=r"data\.jsonl:2: is a pair, the records before it have 'completion'"):
        read_preferences(written(tmp_path, [LIKED, pair]))
    with pytest.raises(UserError, match=r"answers that are liked or not, one by one; .* learns from pairs"):
        read_pairs(written(tmp_path, [LIKED]))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "just text", "rejected": "other"}, "must begin with"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "must end with an answer"),
        ({"chosen": 3, "rejected": 4}, "'chosen' must be text or a list of messages"),
        ({"prompt": "a", "chosen": [ASKED], "rejected": "b"}, "one assistant message"),
        ({"prompt": "a", "chosen": "b"}, "'rejected' must be"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": math.nan},
            "'margin' must be a finite .* nan",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "2"}, "'margin' must be a finite number, got '2'"),
        ({**LIKED, "label": 0.5}, "'label' must be true or false, got 0.5"),
        ({**LIKED, "prompt": None}, "'prompt' must be text or a list of messages"),
        ({**LIKED, "completion": [ASKED]}, "'completion' must be one assistant message"),
    ],
)
def test_broken_pairs_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"data\.jsonl:1: .*{words}"):
        read_preferences(written(tmp_path, [row]))


def test_a_transcript_may_end_with_an_empty_answer() -> None:
    turns = transcript("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "here")
    assert [turn["content"] for turn in turns] == ["a", "b", "c", ""]
