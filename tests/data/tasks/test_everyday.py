"""Everyday turns: the test side's wordings are new, the replies fit their kind, the judge rejects others."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from sekkei.core.errors import UserError
from sekkei.data.tasks.everyday import KINDS, Conversation, answered, conversations, wordings

FACTS = [(f"package.module.function{n}", f"Return the item number {n}.") for n in range(120)]


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _asked(conversation: Conversation) -> str:
    return " ".join(_bare(turn["content"]) for turn in conversation.messages if turn["role"] == "user")


@pytest.fixture(scope="module")
def sides() -> dict[str, list[Conversation]]:
    return {split: conversations(FACTS, split, 0, 1500) for split in ("train", "test")}  # type: ignore[arg-type]


def test_there_is_enough_variety():
    for split, least in (("train", 300), ("test", 200)):
        pools = wordings(split)  # type: ignore[arg-type]
        flat = [_bare(text) for pool in pools.values() for text in pool]
        assert len(set(flat)) == len(flat) >= least
        assert all(len(pool) >= 5 for pool in pools.values())


def test_test_wordings_are_new(sides: dict[str, list[Conversation]]):
    train, test = ({_asked(c) for c in sides[split]} for split in ("train", "test"))
    assert not train & test
    # Of questions about functions the phrasing is new, not the function.
    phrasings = [
        {_asked(c).replace(_bare(c.expect[0]), "@") for c in sides[split] if c.kind == "docstring"} for split in sides
    ]
    assert not phrasings[0] & phrasings[1]


def test_all_kinds_occur_and_every_reply_is_accepted(sides: dict[str, list[Conversation]]):
    for side in sides.values():
        kinds = Counter(c.kind for c in side)
        assert set(kinds) == set(KINDS)
        assert 0.4 < kinds["docstring"] / len(side) < 0.6
        for c in side:
            roles = [turn["role"] for turn in c.messages]
            assert roles == ["user", "assistant"] * (2 if c.kind == "two-turn" else 1)
            assert c.prompt == c.messages[:-1]
            assert all(turn["content"].isascii() and turn["content"].strip() for turn in c.messages)
            assert not any(mark in turn["content"] for turn in c.messages for mark in "{}@|")
            assert "reasoning_content" not in c.messages[-1]
            assert answered(c, c.messages[-1]["content"], ended=True), c


def test_the_judge_tells_kinds_apart(sides: dict[str, list[Conversation]]):
    """The reply of another kind is rejected nearly always, so that one fixed reply cannot pass."""
    first = {c.kind: c for c in reversed(sides["test"])}
    for fixed in ("Hello! How can I help you?", "You are welcome!", "It is red.", "I am sekkei."):
        assert sum(answered(c, fixed, ended=True) for c in first.values()) <= 2


def test_format_is_judged():
    c = Conversation(
        kind="docstring", messages=[{"role": "user", "content": "What is json.dumps?"}], expect=("json.dumps",)
    )
    good = "json.dumps: Serialize obj to a JSON formatted str."
    assert answered(c, good, ended=True)
    assert answered(c, good.upper(), ended=True)
    for bad in (
        "",
        "  ",
        "Serialize obj.",
        "json.dumpsx: no",
        "os.json.dumps: no",
        f"<think></think>{good}",
        f"{good}</think>",
        f"{good}<|user|>",
        f"{good}\nuser: and then?",
        f"Assistant: {good}",
    ):
        assert not answered(c, bad, ended=True), bad
    assert not answered(c, good, ended=False)


def test_the_list_is_a_function_of_its_arguments():
    assert conversations(FACTS, "train", 3, 40)[:20] == conversations(FACTS, "train", 3, 20)
    assert conversations(FACTS, "train", 3, 20) != conversations(FACTS, "train", 4, 20)
    assert not any(c.kind == "docstring" for c in conversations([], "test", 0, 50))


def test_facts_keep_their_name_and_sentence():
    facts = [(f"json.dumps{n}", "Serialize obj to a JSON formatted str.") for n in range(30)]
    found = [c for c in conversations(facts, "train", 0, 80) if c.kind == "docstring"]
    assert all(c.expect[0] in c.messages[0]["content"] for c in found)
    assert all(c.expect[0] in c.messages[1]["content"] for c in found)
    assert all("Serialize obj to a JSON formatted str." in c.messages[1]["content"] for c in found)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="split"):
        conversations(FACTS, "valid", 0, 1)  # type: ignore[arg-type]
