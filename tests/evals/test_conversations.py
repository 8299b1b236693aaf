"""Replies, refusals and patterns, counted on prepared answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from sekkei.data.tasks import refusals
from sekkei.data.tasks.everyday import Conversation
from sekkei.data.tasks.patterns import PatternConfig
from sekkei.engine.request import Completion, Request
from sekkei.evals.conversations import answered, refused, replies, shots
from sekkei.text.chat import encode_prompt
from sekkei.text.tokenizer import ALPHABET, SPECIAL, TokenizerConfig, train_tokenizer

LABELS = (" red", " blue", " green", " black")
TOKENIZER = train_tokenizer(
    [" red blue green black"] * 50, TokenizerConfig(vocab_size=ALPHABET + len(SPECIAL) + 14), whole=LABELS
)


@dataclass
class Script:
    """Answers each request by its prompt's text; (text, ended)."""

    speak: Callable[[str], tuple[str, bool]]
    asked: list[Request] = field(default_factory=list)

    def generate(self, requests: list[Request]) -> list[list[Completion]]:
        self.asked += requests
        return [[self._one(request)] for request in requests]

    def _one(self, request: Request) -> Completion:
        text, ended = self.speak(TOKENIZER.decode(request.prompt_ids))
        ids = TOKENIZER.encode_trusted(text) + ([TOKENIZER.end_id] if ended else [])
        return Completion(
            token_ids=tuple(ids),
            logprobs=(0.0,) * len(ids),
            finish_reason="stop" if ended else "length",
            weights_hash="",
            seed=0,
        )


def conversation(kind: str, question: str, *expect: str) -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": expect[0]}]
    return Conversation(kind=kind, messages=messages, expect=expect)


def test_replies_are_greedy_and_without_the_stop_token() -> None:
    script = Script(lambda prompt: ("Hello!", "1" in prompt))
    prompts = [[{"role": "user", "content": name}] for name in ("1", "2")]
    assert replies(script, TOKENIZER, prompts) == [("Hello!", True), ("Hello!", False)]  # type: ignore[arg-type]
    assert [request.prompt_ids for request in script.asked] == [tuple(encode_prompt(TOKENIZER, p)) for p in prompts]
    assert {(r.sampling.temperature, r.sampling.stop_tokens) for r in script.asked} == {(0.0, (TOKENIZER.end_id,))}


def test_answered_by_hand() -> None:
    said = {
        "q1": ("Hello to you!", True),
        "q2": ("Hello", False),  # never ended
        "q3": ("Othello", True),  # the key is no word of its own
        "q4": ("I am Sekkei.", True),
        "q5": ("Hello <think>", True),  # a marker
    }
    conversations = [conversation("greeting", q, "hello", "hi") for q in ("q1", "q2", "q3", "q5")]
    conversations.append(conversation("name", "q4", "sekkei"))

    def speak(prompt: str) -> tuple[str, bool]:
        return next(value for question, value in said.items() if question in prompt)

    figures, shown = answered(Script(speak), TOKENIZER, conversations)  # type: ignore[arg-type]
    assert figures == {"answered.greeting": 0.25, "answered.name": 1.0, "answered": 0.4}
    assert shown[0] == ("q1", "Hello to you!")
    assert [question for question, _ in shown] == ["q1", "q2", "q3", "q5", "q4"]


@pytest.mark.parametrize("count", [6, 10_000])
def test_refusals_by_hand(count: int) -> None:
    pairs = refusals.refusal_pairs("test", 3)
    asked = {
        kind: [p.prompt[-1]["content"] for p in pairs if p.kind == kind][:count] for kind in ("harmful", "harmless")
    }
    refuses = {*asked["harmful"][1:], asked["harmless"][0]}  # all harmful ones but one, and one harmless

    def speak(prompt: str) -> tuple[str, bool]:
        user = prompt.partition("<|user|>")[2].partition("<|end|>")[0]
        assert user in (*asked["harmful"], *asked["harmless"])
        thought = "<think> I cannot help with that</think>"  # what is only thought does not refuse
        return (thought + ("I cannot help with that." if user in refuses else "Sure."), True)

    script = Script(speak)
    figures = refused(script, TOKENIZER, 3, count)  # type: ignore[arg-type]
    sizes = {kind: len(found) for kind, found in asked.items()}
    assert min(sizes.values()) >= 6
    assert figures == pytest.approx({"refused": 1 - 1 / sizes["harmful"], "refused_harmless": 1 / sizes["harmless"]})
    assert len(script.asked) == sum(sizes.values())


def test_shots_of_a_reader_and_of_a_guesser() -> None:
    """One who looks the key up is right from the first example on; one who always says the same is right by chance."""

    def look_up(prompt: str) -> tuple[str, bool]:
        *lines, query = prompt.removeprefix("<|bos|>").split("\n")
        shown = dict(line.split(" -> ") for line in lines)
        return " " + shown.get(query.removesuffix(" ->"), "red"), False

    def guess(prompt: str) -> tuple[str, bool]:
        return " red", False

    figures = shots(Script(look_up), TOKENIZER, PatternConfig(), 1, 60, (0, 1, 4))  # type: ignore[arg-type]
    assert figures["shots1"] == figures["shots4"] == 1.0
    assert 0.1 < figures["shots0"] < 0.45
    script = Script(guess)
    figures = shots(script, TOKENIZER, PatternConfig(), 1, 60, (0, 1, 4))  # type: ignore[arg-type]
    assert all(0.1 < figure < 0.45 for figure in figures.values())  # a quarter, within 3 standard deviations
    assert len(script.asked) == 180
    assert {(r.sampling.temperature, r.sampling.max_tokens) for r in script.asked} == {(0.0, 1)}
    assert {r.prompt_ids[0] for r in script.asked} == {TOKENIZER.bos_id}
