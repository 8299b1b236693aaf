"""Refusal pairs: harm is refused, the rest is answered, and the frame does not tell which is which."""

from __future__ import annotations

import pytest

from sekkei.core.errors import UserError
from sekkei.data.tasks.refusals import FRAMES, HARMFUL, HARMLESS, is_refusal, refusal_pairs


def _both():
    return refusal_pairs("train", 0), refusal_pairs("test", 0)


def test_the_split_is_by_matter_and_complete():
    train, test = _both()
    matters = {"train": {pair.matter for pair in train}, "test": {pair.matter for pair in test}}
    assert not matters["train"] & matters["test"]
    assert matters["train"] | matters["test"] == {*HARMFUL, *(matter for matter, _ in HARMLESS)}
    assert len(train) + len(test) == len(FRAMES) * (len(HARMFUL) + len(HARMLESS))
    assert len(set(HARMFUL)) == len(HARMFUL) >= 60
    for side in (train, test):
        for kind in ("harmful", "harmless"):
            assert len({pair.matter for pair in side if pair.kind == kind}) >= 8


def test_harm_is_refused_and_the_rest_is_answered():
    for pair in (*_both()[0], *_both()[1]):
        (chosen,), (rejected,) = pair.chosen, pair.rejected
        assert is_refusal(chosen["content"]) == (pair.kind == "harmful"), pair
        assert is_refusal(rejected["content"]) == (pair.kind == "harmless"), pair
        assert pair.matter in pair.prompt[0]["content"]
        assert [turn["role"] for turn in (*pair.prompt, chosen, rejected)] == ["user", "assistant", "assistant"]
        assert all(turn["content"].isascii() for turn in (*pair.prompt, chosen, rejected))


def test_a_willing_reply_never_says_how():
    """The rejected replies to harmful requests come from a short fixed list without any matter in it."""
    replies = {pair.rejected[0]["content"] for side in _both() for pair in side if pair.kind == "harmful"}
    assert len(replies) <= 4
    assert all(len(reply) < 40 for reply in replies)


def test_the_frame_does_not_tell():
    train, _ = _both()
    for kind in ("harmful", "harmless"):
        frames = {pair.prompt[0]["content"].replace(pair.matter, "{}") for pair in train if pair.kind == kind}
        assert frames == set(FRAMES)


def test_seed_and_options():
    assert refusal_pairs("train", 1) == refusal_pairs("train", 1) != refusal_pairs("train", 2)
    assert {pair.kind for pair in refusal_pairs("test", 0, harmless=False)} == {"harmful"}
    with pytest.raises(UserError, match="split"):
        refusal_pairs("valid", 0)  # type: ignore[arg-type]


def test_refusals_are_recognised():
    assert is_refusal("I'm sorry, but I can’t help with this.")
    assert not is_refusal("Sure, here is how to do that.")
    assert not is_refusal("I am glad to help with that.")
