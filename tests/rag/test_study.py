"""The study counts what was refused, made up, supported and right; another behaviour gives other figures."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.data import code
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Call
from sekkei.llm.scripted import Scripted
from sekkei.rag import study as study_module
from sekkei.rag.index import Index
from sekkei.rag.study import (
    Question,
    StudyConfig,
    docstring_questions,
    docstring_study,
    figures,
    flat_figures,
    read_questions,
    refuses,
    stands,
    study,
    trade_off,
)

QUESTIONS = [
    Question("How tall is the tower?", "answerable", "324 metres tall"),
    Question("How many arches has the bridge?", "answerable", "twelve arches"),
    Question("When was the tower struck by lightning?", "left out", "in 1902"),
    Question("Who is the mayor of Atlantis?", "invented"),
]


def careful(call: Call) -> str:
    """Quotes the first sentence with a word of the question from the passages; alone it makes something up."""
    told = call.messages[-1]["content"]
    if "<passage-" not in told:
        return "I do not know." if "Atlantis" in told else "The tower of 1902 was struck, and is 12 metres tall."
    wanted = {"tall": "stands 324 metres tall", "arches": "has twelve arches of stone"}
    question = told.rpartition("Question: ")[2]
    for word, quote in wanted.items():
        number = re.search(rf'n="(\d+)"[^>]*>\n(?:(?!</passage).)*{quote}', told, re.DOTALL)
        if word in question and number:
            at = told[: number.end()].count("<passage-")
            return f'It {quote} [{at}: "{quote}"].'
    return "NOT IN THE DOCUMENTS" if "Atlantis" in question else "Lightning struck the tower in 1950."


def test_every_share_is_counted_by_hand(library: Index) -> None:
    outcomes = study(library, QUESTIONS, LLM(Scripted(careful)))
    assert [outcome.arm for outcome in outcomes] == ["retrieval"] * 4 + ["alone"] * 4
    found = figures(outcomes)
    assert found["retrieval"] == {
        "questions": 4,
        "refused": {"answerable": 0, "left out": 0, "invented": 1},
        "unfounded": 0.5,
        "correct": 1,
        "supported": 1,
        "cited": 1,
    }
    assert found["alone"] == {
        "questions": 4,
        "refused": {"answerable": 0, "left out": 0, "invented": 1},
        "unfounded": 0.5,
        "correct": 0,
        "supported": 0,
        "cited": None,
    }
    lightning = outcomes[6]
    assert lightning.correct, "1902 is right although no document says so"
    assert lightning.supported == (False,)


def test_the_limit_of_evidence_trades_answers_for_refusals(library: Index) -> None:
    rows = trade_off(study(library, QUESTIONS, LLM(Scripted(careful))), limits=(0.0, 0.6, 1.01), min_similarity=0.99)
    assert [row["refused"]["left out"] for row in rows] == [0, 1, 1]
    assert [row["correct"] for row in rows] == [1, 1, 0]
    assert [row["unfounded"] for row in rows] == [0.5, 0, 0]
    assert rows[-1]["supported"] is None, "nothing said is not everything supported"


def test_without_a_model_there_is_one_arm(library: Index) -> None:
    outcomes = study(library, QUESTIONS, None)
    assert {outcome.arm for outcome in outcomes} == {"retrieval"}
    assert figures(outcomes)["retrieval"]["cited"] == 1
    assert outcomes[0].correct


def test_plain_prompts_are_one_message(library: Index) -> None:
    backend = Scripted(lambda call: "It is painted brown.")
    study(library, QUESTIONS[:1], LLM(backend), StudyConfig(plain=True))
    first, second = (call.messages for call in backend.calls)
    assert [message["role"] for message in first] == ["user"]
    assert first[0]["content"].endswith("\n\nHow tall is the tower?")
    assert second[0]["content"] == "How tall is the tower?"


@pytest.mark.parametrize(
    ("sentence", "good"),
    [
        ("The tower stands 324 metres tall.", True),
        ("The tower stands 325 metres tall.", False),
        ("The bridge stands 324 metres tall.", False),
        ("Bananas are yellow.", False),
    ],
)
def test_words_stand_in_one_passage(library: Index, sentence: str, good: bool) -> None:
    assert stands(library, "How tall is the bridge or the tower?", sentence) is good


def test_refusals_are_known_by_the_words_that_were_given() -> None:
    for reply in ("I do not know", "I don't know.", "NOT IN THE DOCUMENTS", ""):
        assert refuses(reply)
    assert not refuses("I do note that it is tall.")


def test_docstring_questions_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    known = code.docstring_facts(600)
    monkeypatch.setattr(code, "docstring_facts", lambda count: known[:count])  # it reads the whole library
    documents, questions = docstring_questions(12, seed=3)
    assert docstring_questions(12, seed=3) == (documents, questions)
    assert docstring_questions(12, seed=4)[1] != questions
    names = {name.removesuffix(".txt") for name in documents}
    for question in questions:
        name = question.text.removeprefix("What does ").removesuffix(" do?")
        module, _, function = name.partition(".")
        assert (name in names) == (question.kind == "answerable")
        if question.kind == "invented":
            assert not hasattr(importlib.import_module(module), function)
        else:
            assert question.gold
    assert [question.kind for question in questions] == ["answerable"] * 12 + ["left out"] * 12 + ["invented"] * 12
    with pytest.raises(ConfigError, match="count"):
        docstring_questions(400)


FACTS = [
    (f"tool{n}.do{word}{n}", f"Return the {word} of part {n}.") for n in range(6) for word in ("size", "name", "age")
]


def knowing_all(call: Call) -> str:
    """Tells every documented function from memory, makes up the rest; with a passage it copies its last line."""
    assert call.settings.thinking, "a model of ours decides itself whether it thinks"
    told = call.messages[-1]["content"]
    if "\n" in told:
        return told.partition("\n\nWhat does")[0].splitlines()[-1]
    name = told.removeprefix("What does ").removesuffix(" do?")
    return dict(FACTS).get(name, "Return the moon of all parts.")


def test_the_study_of_a_model_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "_mentions", lambda module, word: False)  # there are no such modules to look into
    found = flat_figures(docstring_study(LLM(Scripted(knowing_all)), tmp_path, FACTS, count=4))
    assert found == flat_figures(docstring_study(LLM(Scripted(knowing_all)), tmp_path, FACTS, count=4))
    assert (found["rag.alone.correct"], found["rag.alone.supported"], found["rag.alone.unfounded"]) == (1, 1, 1)
    assert (found["rag.retrieval.correct"], found["rag.retrieval.refused.answerable"]) == (1, 0)
    assert found["rag.limited.refused.answerable"] == 0
    assert found["rag.limited.unfounded"] < found["rag.retrieval.unfounded"] == 1
    assert not any(name.startswith("rag.alone.cited") for name in found), "nobody is asked for quotes there"
    assert len(list((tmp_path / "documents").iterdir())) == len(FACTS) - 4
    with pytest.raises(ConfigError, match="4 names that no module has are not to be found among 18 functions"):
        docstring_questions(4, facts=[(f"tool{n}.do{word}", "Return it.") for n in range(6) for word in "abc"])


def test_questions_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a?", "kind": "invented"}\n\n{"question": "b?", "kind": "answerable", "gold": "c"}\n')
    assert read_questions(path) == [Question("a?", "invented"), Question("b?", "answerable", "c")]
    for line in ("{", "[]", '{"question": "a?"}', '{"question": "a?", "kind": "hard"}'):
        path.write_text(line)
        with pytest.raises(UserError, match=r"q\.jsonl:1: "):
            read_questions(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path / "none")
