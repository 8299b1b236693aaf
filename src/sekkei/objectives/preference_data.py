"""Preference pairs from files: what raters preferred, as messages.

    hh_rlhf    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}      whole transcripts (Bai et al. 2022)
    explicit   {"prompt": "…" or messages, "chosen": "…" or messages, "rejected": …}, "margin" where it is known
    implicit   {"chosen": messages, "rejected": messages}                     the prompt is what both begin with
    unpaired   {"prompt": …, "completion": "…" or messages, "label": true}    one answer, liked or not (TRL's name)

The two sides of a pair have to answer the same prompt. What teaches nothing, or something else, is left out and counted
by reason: sides that answer different prompts (prompt), an empty side or turn (empty), equal sides (equal), and
what makes a prompt no conversation (role, system, no_question, media: conversations.py). It does not handle rankings of
more than two.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sekkei.core.errors import UserError
from sekkei.objectives.conversations import Unfit, check_conversation, records, text_of
from sekkei.objectives.kto import Feedback
from sekkei.objectives.preference import Pair
from sekkei.text.chat import encode_prompt
from sekkei.text.tokenizer import Tokenizer

Messages = tuple[dict[str, str], ...]
TURN = re.compile(r"\n\n(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class TextPair:
    """A prompt as messages, a better and a worse answer, and how much better a rater called it (0: not known)."""

    prompt: Messages
    chosen: str
    rejected: str
    margin: float = 0.0

    def encode(self, tokenizer: Tokenizer, kind: str = "") -> Pair:
        """As token ids; each answer with its stop token."""
        sides = [_answer_ids(tokenizer, text) for text in (self.chosen, self.rejected)]
        return Pair(tuple(encode_prompt(tokenizer, self.prompt)), sides[0], sides[1], kind)


@dataclass(frozen=True)
class TextFeedback:
    """A prompt as messages, one answer, and whether somebody liked it."""

    prompt: Messages
    answer: str
    liked: bool

    def encode(self, tokenizer: Tokenizer) -> Feedback:
        """As token ids; the answer with its stop token."""
        return Feedback(tuple(encode_prompt(tokenizer, self.prompt)), _answer_ids(tokenizer, self.answer), self.liked)


def _answer_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    assert tokenizer.end_id is not None
    return (*tokenizer.encode(text), tokenizer.end_id)


def read_preferences(path: str) -> tuple[list[TextPair], list[TextFeedback], dict[str, float]]:
    """All pairs, or all single answers, of a file that teach something; one of the two lists is empty.

    Args:
        path: as in `conversations.records`.
    Returns:
        pairs, answers, and counts: pairs or answers (read), and those left out by reason.
    Raises:
        UserError: a record is in no known format, the file holds both kinds, or nothing is left.
    """
    pairs: list[TextPair] = []
    feedback: list[TextFeedback] = []
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for where, record in records(path):
        kind = "answers" if "completion" in record and "label" in record else "pairs"
        if kind == "answers" and counts["pairs"]:
            raise UserError(f"{where}: has 'completion' and 'label', the records before it are pairs; use two files")
        if kind == "pairs" and counts["answers"]:
            raise UserError(f"{where}: is a pair, the records before it have 'completion' and 'label'; use two files")
        counts[kind] += 1
        try:
            if kind == "pairs":
                pairs.append(to_pair(record, where))
            else:
                feedback.append(to_feedback(record, where))
        except Unfit as reason:
            name = f"{kind}/dropped_{reason}"
            counts[name] += 1
            first.setdefault(name, where)
    if not pairs and not feedback:
        why = ", ".join(f"{counts[name]} {name.partition('_')[2]}, the first {where}" for name, where in first.items())
        what = "answer" if counts["answers"] else "preference pair"
        raise UserError(f"{path}: no {what} to learn from" + (f" (left out: {why})" if why else ""))
    return pairs, feedback, {name: float(n) for name, n in counts.items() if n}


def read_pairs(path: str) -> tuple[list[TextPair], dict[str, float]]:
    """All pairs of a file of pairs that teach something, and counts.

    Raises:
        UserError: as `read_preferences`, or it holds single answers.
    """
    pairs, feedback, counts = read_preferences(path)
    if feedback:
        raise UserError(f"{path}: holds answers that are liked or not, one by one; what reads it learns from pairs")
    return pairs, counts


def to_pair(record: Mapping[str, Any], where: str) -> TextPair:
    """The pair of a record.

    Raises:
        UserError: no known format. Unfit: it teaches nothing, or something else; the reasons are in the header.
    """
    chosen, rejected, prompt = (record.get(key) for key in ("chosen", "rejected", "prompt"))
    margin = record.get("margin")
    if margin is not None and not (isinstance(margin, int | float) and math.isfinite(margin)):
        raise UserError(f"{where}: 'margin' must be a finite number, got {margin!r:.80}")
    known = 0.0 if margin is None else float(margin)
    if prompt is not None:
        said = _prompt(prompt, where)
        better, worse = _answer(chosen, "chosen", where), _answer(rejected, "rejected", where)
        return _sound(TextPair(said, better, worse, known))
    if isinstance(chosen, str) and isinstance(rejected, str):
        talks = [transcript(chosen, f"{where}: 'chosen'"), transcript(rejected, f"{where}: 'rejected'")]
    else:
        talks = [_messages(chosen, "chosen", where), _messages(rejected, "rejected", where)]
    if talks[0][:-1] != talks[1][:-1]:
        raise Unfit("prompt")
    if any(talk[-1]["role"] != "assistant" for talk in talks):
        raise Unfit("no_answer")
    return _sound(TextPair(talks[0][:-1], talks[0][-1]["content"], talks[1][-1]["content"], known))


def _sound(pair: TextPair) -> TextPair:
    _check_talk(pair.prompt, pair.chosen)
    _check_talk(pair.prompt, pair.rejected)
    if pair.chosen == pair.rejected:
        raise Unfit("equal")
    return pair


def _check_talk(prompt: Messages, answer: str) -> None:
    """What holds for conversations to learn from holds for a prompt and its answer."""
    check_conversation([*prompt, {"role": "assistant", "content": answer}])


def to_feedback(record: Mapping[str, Any], where: str) -> TextFeedback:
    """The answer of a record with `prompt`, `completion` and `label`.

    Raises:
        UserError: one of the three is of another kind. Unfit: it teaches nothing, as in `to_pair`.
    """
    liked = record["label"]
    if not isinstance(liked, bool):
        raise UserError(f"{where}: 'label' must be true or false, got {liked!r:.80}")
    prompt, answer = _prompt(record.get("prompt"), where), _answer(record["completion"], "completion", where)
    _check_talk(prompt, answer)
    return TextFeedback(prompt, answer, liked)


def transcript(text: str, where: str) -> Messages:
    """Turns of a Human/Assistant transcript, the last of them the assistant's (perhaps empty).

    Raises:
        UserError: it does not begin with a turn, or ends with a human's.
    """
    parts = TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise UserError(f"{where} must begin with '\\n\\nHuman:' as a transcript does, got {text[:40]!r}")
    turns = tuple(
        {"role": SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    )
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise UserError(f"{where} must end with an answer after '\\n\\nAssistant:'")
    return turns


def _prompt(value: Any, where: str) -> Messages:
    return ({"role": "user", "content": value},) if isinstance(value, str) else _messages(value, "prompt", where)


def _messages(value: Any, key: str, where: str) -> Messages:
    sound = isinstance(value, list) and bool(value)
    if not sound or not all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str | list)
        for m in value
    ):
        raise UserError(f"{where}: {key!r} must be text or a list of messages, got {value!r:.80}")
    return tuple({"role": m["role"], "content": text_of(m["content"], where)} for m in value)


def _answer(value: Any, key: str, where: str) -> str:
    if isinstance(value, str):
        return value
    messages: Sequence[dict[str, str]] = _messages(value, key, where)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise UserError(f"{where}: {key!r} must be one assistant message beside 'prompt'")
    return messages[0]["content"]
