"""Everyday turns: what people say to an assistant beside its work, with short and plain replies.

    greeting, thanks, goodbye, how        "Good morning!"             -> "Good morning! How can I help you?"
    identity, ability, time               "Who are you?"              -> "I am sekkei, a small language model ..."
    capital, colour                       "What colour is grass?"     -> "Grass is green."
    docstring                             "What does json.dumps do?"  -> "json.dumps: Serialize obj to a JSON ..."
    two-turn                              "My name is Anna." ... "What is my name?" -> "Your name is Anna."

A wording is a template with its blanks filled. The test side holds wordings that training never shows, also not in
another case or with other punctuation: the hash that divides them reads the bare words. Questions about documented
functions hold out the phrasing; the functions are those of training, whose docstrings the model is to know. Which
wording is dressed how (case, final mark) is drawn per turn.

What it does not handle: languages other than English; and `answered` asks for a key word, not for the whole answer
(`evals/conversations.py` also counts docstrings that are told word for word).
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.data.tasks import Message, Split, held_out

_TEST_PERCENT = 20
_BRACED = re.compile(r"\{([a-z]+)\}")
_MARKERS = re.compile(
    r"<\|[^|>]*\|>|</?(?:think|user|assistant|system|asst|end|eos|bos|s|tool)>|^\s*(?:user|assistant|system)\s*:",
    re.IGNORECASE | re.MULTILINE,
)

_FILLERS: dict[str, tuple[str, ...]] = {
    "hello": ("hello", "hi", "hey", "good morning", "good afternoon", "good evening", "greetings", "hello there"),
    "you": ("", ", sekkei", ", my friend", ", dear assistant", " again", ", assistant"),
    "thank": ("thanks", "thank you", "many thanks", "thank you so much", "thanks a lot", "thank you very much"),
    "why": ("", " for your help", " for the answer", " for that", " for explaining", ", that helps", ", well done"),
    "bye": ("goodbye", "bye", "bye bye", "see you", "see you later", "see you tomorrow", "take care", "good night"),
    "leave": ("", ", I have to go", ", that was all", ", I am done for today", ", thanks for everything", " for now"),
    "please": ("", "please tell me, ", "tell me, ", "may I ask, ", "one question: ", "excuse me, "),
    "today": ("", " today", " right now", " this morning", " these days"),
}
_WORDINGS: dict[str, tuple[str, ...]] = {
    "greeting": ("{hello}{you}", "oh, {hello}{you}", "{hello}{you}, nice to meet you"),
    "thanks": ("{thank}{why}", "ok, {thank}{why}", "great, {thank}{why}"),
    "goodbye": ("{bye}{leave}", "ok, {bye}{leave}"),
    "how": (
        *("{please}how are you{today}?", "{please}how are you doing{today}?", "{please}how do you feel{today}?"),
        "{please}is everything well with you{today}?",
    ),
    "identity": (
        *("{please}who are you?", "{please}what is your name?", "{please}what are you?", "{please}are you a robot?"),
        *("{please}who am I talking to?", "{please}are you a human?", "{please}what should I call you?"),
        *(
            "introduce yourself.",
            "please introduce yourself.",
            "tell me about yourself.",
            "{please}do you have a name?",
        ),
    ),
    "ability": (
        *("{please}what can you do?", "{please}what are you good at?", "{please}how can you help me?"),
        *("{please}what can I ask you?", "{please}what do you know?", "{please}what are you made for?"),
        *("{please}what do you do?", "{please}what are you able to do?", "can you help me?", "what is your work?"),
    ),
    "time": (
        *("{please}what time is it?", "{please}how late is it?", "{please}what is the time?"),
        *("{please}what day is it{today}?", "{please}what is the date{today}?", "{please}do you have the time?"),
    ),
    "capital": (
        *("{please}what is the capital of {country}?", "{please}which city is the capital of {country}?"),
        *("name the capital of {country}.", "{please}do you know the capital of {country}?", "capital of {country}?"),
    ),
    "colour": (
        *("{please}what colour is {thing}?", "{please}which colour does {thing} have?"),
        *("name the colour of {thing}.", "{please}do you know the colour of {thing}?"),
    ),
}
# "@" stands for the function's name, which keeps its case.
_ASKING = (
    *("{please}what does @ do?", "{please}what is @?", "{please}what is @ for?", "{please}how would you describe @?"),
    *("{please}what can I do with @?", "{please}why would I use @?", "{please}what is the purpose of @?"),
    *("{please}what happens when I use @?", "{please}do you know @?", "{please}what do the docs say about @?"),
    *(
        "tell me about @.",
        "please tell me about @.",
        "explain @.",
        "please explain @.",
        "describe @.",
        "please describe @.",
    ),
    *("can you explain @?", "could you tell me what @ does?", "I found @ in some code. What does it do?", "@?"),
    *("in one sentence, what is @?", "give me a short description of @.", "remind me what @ does.", "@, please."),
    *(
        "I want to know what @ does.",
        "summarise @ for me.",
        "help me understand @.",
        "I have never used @. What is it?",
    ),
)
_COUNTRIES = (
    *(("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin")),
    *(("England", "London"), ("Egypt", "Cairo"), ("Greece", "Athens"), ("Norway", "Oslo"), ("China", "Beijing")),
    *(("Russia", "Moscow"), ("Austria", "Vienna"), ("Portugal", "Lisbon"), ("Canada", "Ottawa"), ("Peru", "Lima")),
)
_COLOURS = (
    *(("grass", "green"), ("snow", "white"), ("blood", "red"), ("the clear sky", "blue"), ("coal", "black")),
    *(("a ripe banana", "yellow"), ("milk", "white"), ("a ripe tomato", "red"), ("chocolate", "brown")),
    *(("the sun at noon", "yellow"), ("a carrot", "orange"), ("an elephant", "grey")),
)
_FACTS: dict[str, tuple[tuple[str, str], ...]] = {"country": _COUNTRIES, "thing": _COLOURS}
_FIRST_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Hana", "Ken", "Lucy", "Maya", "Noah", "Omar", "Rosa")
_TELLING = ("my name is {}.", "I am {}.", "hello, I am {}.", "call me {}.", "hi, my name is {}.", "people call me {}.")
_RECALLING = ("what is my name?", "who am I?", "do you remember my name?", "what am I called?", "say my name.")

_REPLIES: dict[str, tuple[str, ...]] = {
    "greeting": ("Hello! How can I help you?", "Hi! What can I do for you?", "Hello! It is good to hear from you."),
    "thanks": ("You are welcome!", "You are welcome. I am glad to help.", "I am glad that it helped."),
    "goodbye": ("Goodbye! Take care.", "Goodbye, and see you soon!", "Take care, and see you next time!"),
    "how": ("I am fine, thank you. How are you?", "I am doing well, thank you for asking."),
    "identity": (
        "I am sekkei, a small language model trained on this machine.",
        "My name is sekkei. I am a small language model trained on this machine.",
        "I am sekkei, a small language model. I am a program and not a person.",
    ),
    "ability": (
        "I can answer short questions, describe documented functions and work out chains of additions and products.",
        "I can chat a little, answer questions about documented functions and solve small number puzzles.",
    ),
    "time": ("I have no clock, so I cannot tell.", "I do not know, because I have no clock and no calendar."),
    "capital": ("The capital of {0} is {1}.", "{1} is the capital of {0}.", "It is {1}."),
    "colour": ("{0} is {1}.", "The colour of {0} is {1}.", "It is {1}."),
    "docstring": ("{0}: {1}",),
}
_EXPECT: dict[str, tuple[str, ...]] = {
    "greeting": ("hello", "hi", "welcome", "good morning", "good afternoon", "good evening", "greetings"),
    "thanks": ("welcome", "glad", "pleasure"),
    "goodbye": ("goodbye", "bye", "see you", "take care", "good night"),
    "how": ("fine", "well"),
    "identity": ("sekkei",),
    "ability": ("answer", "questions", "solve", "describe"),
    "time": ("clock", "cannot tell", "do not know"),
}
KINDS = (*_WORDINGS, "two-turn", "docstring")
# Half of the turns ask about functions, the rest is divided evenly: small talk is quickly learned.
_DOCSTRING_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation that ends in the assistant's turn.

    Args:
        kind: one of `KINDS`.
        messages: turns in order; `messages[:-1]` is what a model is asked, the last one a good reply.
        expect: keys of which a reply must contain one, as whole words.
    """

    kind: str
    messages: list[Message]
    expect: tuple[str, ...]

    @property
    def prompt(self) -> list[Message]:
        return self.messages[:-1]


def wordings(split: Split) -> dict[str, list[str]]:
    """Bare wordings (no final mark, lower case at the start) of the kinds without docstrings, on one side."""
    return {kind: [text for text, _ in pool] for kind, pool in _pools(split).items()}


def conversations(facts: Sequence[tuple[str, str]], split: Split, seed: int, count: int) -> list[Conversation]:
    """`count` conversations of one side of the split; a longer list begins with the shorter one.

    Args:
        facts: (qualified name, one sentence) of documented functions; empty = no questions about functions.
        split: "train" or "test".
        seed: draws kinds, wordings and replies; it does not move the split.
    Raises:
        UserError: the split does not exist.
    """
    if split not in ("train", "test"):
        raise UserError(f"split: got {split!r}, must be train or test")
    pools = _pools(split)
    filled = [text for template in _ASKING for text, _ in _fill(template)]
    asking = [text for text in filled if _on(split, "everyday asking", _bare(text))]
    result = []
    for row in range(count):
        rng = random.Random(derive_seed("everyday", split, seed, row))
        if facts and rng.random() < _DOCSTRING_SHARE:
            result.append(_about(rng, rng.choice(facts), rng.choice(asking)))
            continue
        kind = rng.choice(list(pools))
        text, fact = rng.choice(pools[kind])
        result.append(_two_turns(rng, text, fact) if kind == "two-turn" else _one_turn(rng, kind, text, fact))
    return result


def answered(conversation: Conversation, reply: str, ended: bool) -> bool:
    """Whether `reply` is in format: it ended with the stop token, says one of the expected keys, shows no markers.

    Args:
        reply: the decoded reply; think tags, role markers and special tokens in it count against it.
        ended: whether the sampler stopped at the end-of-turn token (not at the length limit).
    """
    if not ended or not reply.strip() or _MARKERS.search(reply):
        return False
    return any(re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", reply, re.IGNORECASE) for key in conversation.expect)


def _pools(split: Split) -> dict[str, list[tuple[str, tuple[str, str] | None]]]:
    """Per kind the (wording, fact) pairs of one side."""
    pools: dict[str, list[tuple[str, tuple[str, str] | None]]] = {}
    for kind, templates in _WORDINGS.items():
        filled = [pair for template in templates for pair in _fill(template)]
        pools[kind] = [(text, fact) for text, fact in filled if _on(split, "everyday wording", _bare(text))]
    pairs = itertools.product(_FIRST_NAMES, _TELLING, _RECALLING)
    told = [(f"{telling.format(name)}|{recalling}", (name, name)) for name, telling, recalling in pairs]
    pools["two-turn"] = [(text, fact) for text, fact in told if _on(split, "everyday wording", _bare(text))]
    return pools


def _fill(template: str) -> list[tuple[str, tuple[str, str] | None]]:
    """All fillings of a template: (wording, the fact that it asks for)."""
    blank = _BRACED.search(template)
    if not blank:
        return [(template, None)]
    before, name, after = template[: blank.start()], blank[1], template[blank.end() :]
    if name in _FACTS:  # the fact is always the last blank of its template
        return [(before + fact[0] + after, fact) for fact in _FACTS[name]]
    return [pair for filler in _FILLERS[name] for pair in _fill(before + filler + after)]


def _one_turn(rng: random.Random, kind: str, text: str, fact: tuple[str, str] | None) -> Conversation:
    reply = rng.choice(_REPLIES[kind])
    if fact:
        reply = _capital(reply.format(*fact))
    expect = (fact[1],) if fact else _EXPECT[kind]
    if kind == "greeting" and "good " in text:  # answer "good morning" in kind
        part = next(part for part in ("morning", "afternoon", "evening") if part in text)
        reply = f"Good {part}!{reply.partition('!')[2]}"
    return Conversation(kind=kind, messages=_turns(_dress(rng, text), reply), expect=expect)


def _two_turns(rng: random.Random, text: str, fact: tuple[str, str] | None) -> Conversation:
    """The user gives a name, chats, and asks for the name."""
    assert fact is not None
    telling, _, recalling = text.partition("|")
    name = fact[1]
    met = rng.choice(("Nice to meet you, {}!", "Hello, {}! How can I help you?")).format(name)
    said = rng.choice(("Your name is {}.", "You are {}.")).format(name)
    messages = [*_turns(_dress(rng, telling), met), *_turns(_dress(rng, recalling), said)]
    return Conversation(kind="two-turn", messages=messages, expect=(name,))


def _about(rng: random.Random, fact: tuple[str, str], asking: str) -> Conversation:
    name, sentence = fact
    asked = _capital(asking).replace("@", name)
    reply = rng.choice(_REPLIES["docstring"]).format(name, sentence)
    return Conversation(kind="docstring", messages=_turns(asked, reply), expect=(name,))


def _turns(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _dress(rng: random.Random, text: str) -> str:
    """Case and final mark as people write them: "Thanks!", "thanks", "THANKS" is left out."""
    bare = text.rstrip(".?!")
    mark = text[len(bare) :] or rng.choice((".", "!"))
    if rng.random() < 0.25:
        mark = ""
    return (_capital(bare) if rng.random() < 0.75 else bare) + mark


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bare(text: str) -> str:
    """The words alone: what the split's hash reads."""
    return " ".join(re.findall(r"[\w|@]+", text.casefold()))


def _on(split: Split, kind: str, text: str) -> bool:
    return held_out(kind, text, _TEST_PERCENT) == (split == "test")
