"""Preference pairs from files: what raters preferred, as messages.

    hh_rlhf    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}      whole transcripts (Bai et al. 2022)
    explicit   {"prompt": "…" or messages, "chosen": "…" or messages, "rejected": …}, "margin" where it is known
    implicit   {"chosen": messages, "rejected": messages}                     the prompt is what both begin with

The two sides of a pair have to answer the same prompt. Pairs whose prompts differ, with an empty side, or with equal
sides teach nothing, or something else: they are left out and counted by reason. It does not handle rankings of more
than two, or unpaired feedback.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sekkei.core.errors import UserError
from sekkei.objectives.conversations import records
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
        end = tokenizer.end_id
        assert end is not None
        sides = [(*tokenizer.encode(text), end) for text in (self.chosen, self.rejected)]
        return Pair(tuple(encode_prompt(tokenizer, self.prompt)), sides[0], sides[1], kind)


def read_pairs(path: str) -> tuple[list[TextPair], dict[str, float]]:
    """All pairs of a file that teach something, and counts: pairs (read), and those left out by reason.

    Args:
        path: as in `conversations.records`.
    Raises:
        UserError: a record is in no known format, or no pair is left.
    """
    kept: list[TextPair] = []
    counts: Counter[str] = Counter()
    for where, record in records(path):
        counts["pairs"] += 1
        pair = to_pair(record, where)
        if pair is None:
            counts["pairs/dropped_prompt"] += 1
        elif not pair.chosen.strip() or not pair.rejected.strip():
            counts["pairs/dropped_empty"] += 1
        elif pair.chosen == pair.rejected:
            counts["pairs/dropped_equal"] += 1
        else:
            kept.append(pair)
    if not kept:
        why = ", ".join(f"{n} {name.partition('_')[2]}" for name, n in counts.items() if name != "pairs")
        raise UserError(f"{path}: no preference pair to learn from" + (f" (left out: {why})" if why else ""))
    return kept, {name: float(n) for name, n in counts.items()}


def to_pair(record: Mapping[str, Any], where: str) -> TextPair | None:
    """The pair of a record; None where its sides answer different prompts.

    Raises:
        UserError: no known format.
    """
    chosen, rejected, prompt = (record.get(key) for key in ("chosen", "rejected", "prompt"))
    margin = record.get("margin")
    known = float(margin) if isinstance(margin, int | float) else 0.0
    if prompt is not None:
        said = (
            _messages(prompt, "prompt", where)
            if not isinstance(prompt, str)
            else ({"role": "user", "content": prompt},)
        )
        return TextPair(said, _answer(chosen, "chosen", where), _answer(rejected, "rejected", where), known)
    if isinstance(chosen, str) and isinstance(rejected, str):
        better, worse = transcript(chosen, f"{where}: 'chosen'"), transcript(rejected, f"{where}: 'rejected'")
    else:
        better, worse = _messages(chosen, "chosen", where), _messages(rejected, "rejected", where)
    if better[:-1] != worse[:-1]:
        return None
    return TextPair(better[:-1], better[-1]["content"], worse[-1]["content"], known)


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


def _messages(value: Any, key: str, where: str) -> Messages:
    sound = isinstance(value, list) and bool(value)
    if not sound or not all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        raise UserError(f"{where}: {key!r} must be text or a list of messages, got {value!r:.80}")
    return tuple({"role": m["role"], "content": m["content"]} for m in value)


def _answer(value: Any, key: str, where: str) -> str:
    if isinstance(value, str):
        return value
    messages: Sequence[dict[str, str]] = _messages(value, key, where)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise UserError(f"{where}: {key!r} must be one assistant message beside 'prompt'")
    return messages[0]["content"]
