"""The needle: prompts of the right length with the key at its depth, and scores that a known reader must get."""

from __future__ import annotations

import re

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.evals.needle import NeedleConfig, cell_name, evaluate_needle, grid
from sekkei.llm import LLM, Settings
from sekkei.llm.protocol import Call
from sekkei.llm.scripted import Scripted

CONFIG = NeedleConfig(lengths=(100, 200), depths=(0.0, 0.5, 1.0), trials=6, candidates=4)


def words(text: str) -> int:
    return len(text.split())


def asked(call: Call) -> str:
    return str(call.messages[-1]["content"])


def test_prompts_fill_their_length_and_hold_the_key_at_its_depth() -> None:
    scripted = Scripted([], scorer=lambda call, text: float(text.split()[-1] in asked(call)))
    found = evaluate_needle(LLM(scripted), CONFIG, Settings(), count=words)
    assert found.figures["found"].value == 1.0  # this reader looks the keys up
    assert found.figures["chance"].value == 0.25
    assert len(scripted.calls) == found.items == 2 * 3 * 6
    places = {0.0: (0.0, 0.1), 0.5: (0.4, 0.6), 1.0: (0.85, 1.0)}
    for number, call in enumerate(scripted.calls):
        text = asked(call)
        length, depth = CONFIG.lengths[number // 18], CONFIG.depths[number // 6 % 3]
        assert length - 12 <= words(text) + 6 <= length
        low, high = places[depth]
        assert low <= text.index("The pass key is") / text.index("What is") <= high


def test_a_reader_of_the_end_only_is_found_out() -> None:
    """It sees the last 60 words: the deepest row is found, the others are at chance (all keys equal: ties)."""

    def score(call: Call, text: str) -> float:
        return float(text.rsplit(maxsplit=1)[-1] in " ".join(asked(call).split()[-60:]))

    found = evaluate_needle(LLM(Scripted([], scorer=score)), CONFIG, Settings(), count=words)
    _, depths, cells = grid(found)
    rows = {depth: [cell.value for cell in row] for depth, row in zip(depths, cells)}
    assert rows[1.0] == [1.0, 1.0]
    assert rows[0.0] == [0.25, 0.25]
    assert found.figures[cell_name(200, 0.5)].value == 0.25


def test_an_endpoint_is_asked_to_write_the_key() -> None:
    def answer(call: Call) -> str:
        keys = re.findall(r"pass key is (\d+)", asked(call))
        return f"It is {keys[0]}." if len(asked(call)) < 500 else "No idea."

    found = evaluate_needle(LLM(Scripted(answer)), NeedleConfig(lengths=(100, 400), trials=2), Settings())
    assert found.settings["score"] == "recall"
    assert found.figures["length.100"].value == 1.0
    assert found.figures["length.400"].value == 0.0
    assert "characters / 4" in found.notes[0]


def test_impossible_grids_are_refused() -> None:
    llm = LLM(Scripted([], scorer=lambda call, text: 0.0))
    with pytest.raises(UserError, match="length 10 is too short"):
        evaluate_needle(llm, NeedleConfig(lengths=(10,)), Settings(), count=words)
    with pytest.raises(UserError, match="speaks of a pass key"):
        evaluate_needle(llm, CONFIG, Settings(), count=words, hay="A pass key opens doors. So what.")
    with pytest.raises(ConfigError, match="depths"):
        NeedleConfig(lengths=(10,), depths=(2.0,))
