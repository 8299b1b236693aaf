"""Answers that win without answering: one text for every prompt, text that talks to the judge, nothing, half a text.

    constant     the same answer (case, digits and spaces aside) to a tenth or more of different instructions; of short
                 texts to half of them, since many questions may have "Yes." or a refusal as their answer
    addresses    words that only a judge could heed: its output format, its instructions, chat-template tokens
    empty        no letter and no digit
    truncated    the reply ended at its token limit, or a code fence or a sentence of a long text is left open

A constant text won 86% of AlpacaEval 2 against GPT-4 Turbo (Zheng et al. 2024, arXiv:2410.07137), so this is looked at
before any win rate is believed. Words that the instruction itself holds do not count against an answer. Constant and
addressing answers are grounds for suspicion, the other two for a look at how the answers were made.

What it does not handle: answers learnt from the test set (contamination is measured on training data), styles that
please without content (bias.py measures length, the rest needs people), other languages than English in `addresses`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONSTANT_SHARE = 0.1  # of instructions that get one text; no honest one of 57 published models reaches it
SHORT, SHORT_SHARE = 100, 0.5  # characters below which a text may be right for many instructions, and for how many
FEW_LETTERS = 20  # below that many, digits are what an answer says
ADDRESSING_SHARE = 0.01
ENOUGH = 10  # different instructions below which a share says nothing
LONG = 400  # characters from which an open sentence at the end looks like a cut

_ADDRESSES = re.compile(
    r"<\|(?:im_start|im_end|system|assistant|eot_id|start_header_id|endoftext)\|>"
    r"|\[/?INST\]|<<SYS>>"
    r"|\[(?:The )?(?:Start|End) of (?:the )?Assistant"
    r"|\b(?:ignore|disregard|forget) (?:all |any |the )?(?:previous|prior|above|earlier|preceding) "
    r"(?:instructions?|prompts?|text)"
    r"|\b(?:dear|attention|note to(?: the)?|as (?:a|the)|hello,?) (?:judge|evaluator|grader|annotator|rater)\b"
    r"|\b(?:rate|score|rank|grade|evaluate|choose|prefer|select) (?:this|my|the above) (?:answer|response|output|reply)"
    r"(?: as)?(?: the)? (?:best|better|highest|first|10\b|5\b)"
    r"|\bmy (?:answer|response|output) is (?:the best|better than|superior)"
    r"|['\"](?:rank|model_identifier|preference|verdict|winner|score)['\"]\s*:"
    r"|\b(?:output|answer|response|model|assistant) \(?[abmM12]\)? is (?:the )?(?:better|best|winner|preferred)\b"
    r"|\[\[[ABC]\]\]",
    re.IGNORECASE,
)
_OPEN_END = re.compile(r"[\w,;(\[{–-]$")
_FINISHED_LINE = re.compile(
    r"^\s*(?:[-*•#|>]|\d+[.)]|[A-Z]{2,}\b)|https?://\S+$|:\s"
)  # lists, tables, headings, signatures


@dataclass(frozen=True, kw_only=True)
class Cheats:
    """What was found in one model's answers.

    Attributes:
        answers: how many were looked at.
        constant: items that share the most frequent text, where that is suspicious.
        addresses, empty, truncated: items, numbered as they came.
        suspicious: what makes the model's scores worthless, in words; empty = nothing.
        most_frequent: the text that repeats, its beginning.
    """

    answers: int
    constant: list[int]
    addresses: list[int]
    empty: list[int]
    truncated: list[int]
    suspicious: list[str]
    most_frequent: str

    def as_json(self) -> dict[str, Any]:
        return {
            "answers": self.answers,
            "constant": len(self.constant),
            "addresses_the_judge": len(self.addresses),
            "empty": len(self.empty),
            "truncated": len(self.truncated),
            "suspicious": self.suspicious,
            "most_frequent": self.most_frequent,
            "items": {
                "addresses_the_judge": self.addresses[:50],
                "empty": self.empty[:50],
                "truncated": self.truncated[:50],
            },
        }


def find_cheats(
    instructions: Sequence[str], answers: Sequence[str], finish_reasons: Sequence[str | None] | None = None
) -> Cheats:
    """Look at all answers of one model.

    Args:
        instructions, answers: [N] texts. finish_reasons: [N] "length" marks a reply that hit its limit, None = unknown.
    """
    reasons = finish_reasons if finish_reasons is not None else [None] * len(answers)
    constant = _constant(instructions, answers) if len(set(instructions)) >= ENOUGH else []
    addresses = [
        n for n, (asked, said) in enumerate(zip(instructions, answers, strict=True)) if addresses_judge(asked, said)
    ]
    suspicious = []
    if constant:
        suspicious.append(f"one text answers {len(constant)} of {len(answers)} prompts")
    if addresses and len(addresses) >= ADDRESSING_SHARE * len(answers):
        suspicious.append(f"{len(addresses)} of {len(answers)} answers address the judge")
    return Cheats(
        answers=len(answers),
        constant=constant,
        addresses=addresses,
        empty=[n for n, said in enumerate(answers) if is_empty(said)],
        truncated=[
            n for n, (said, reason) in enumerate(zip(answers, reasons, strict=True)) if is_truncated(said, reason)
        ],
        suspicious=suspicious,
        most_frequent=answers[constant[0]][:200] if constant else "",
    )


def addresses_judge(instruction: str, answer: str) -> bool:
    """Whether the answer holds words for a judge that the instruction does not bring up itself."""
    asked = instruction.casefold()
    return any(found[0].casefold() not in asked for found in _ADDRESSES.finditer(answer))


def is_empty(answer: str) -> bool:
    return not any(character.isalnum() for character in answer)


def is_truncated(answer: str, finish_reason: str | None = None) -> bool:
    """Whether the text breaks off: by its finish reason where that is known, else by how it ends."""
    if finish_reason is not None:
        return finish_reason == "length"
    text = answer.rstrip()
    if len(re.findall(r"^\s*```", text, re.MULTILINE)) % 2:
        return True
    last = text.rpartition("\n")[2]
    return len(text) >= LONG and len(last) > 60 and bool(_OPEN_END.search(last)) and not _FINISHED_LINE.search(last)


def _constant(instructions: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Items of the text that most different instructions got, if these are suspiciously many; empty ones aside."""
    keys = [_bare(answer) for answer in answers]
    distinct = Counter(key for key, _ in {(key, asked) for key, asked in zip(keys, instructions, strict=True)} if key)
    asked = len(set(instructions))
    suspects = [
        key
        for key, count in sorted(distinct.items())
        if count >= max(2, (SHORT_SHARE if len(key) < SHORT else CONSTANT_SHARE) * asked)
    ]
    if not suspects:
        return []
    most = max(suspects, key=distinct.__getitem__)
    return [n for n, key in enumerate(keys) if key == most]


def _bare(answer: str) -> str:
    """Letters alone; digits too where there is hardly a letter, as in "answer: 12"."""
    text = re.sub(r"[\W\d_]+", " ", answer.casefold()).strip()
    return text if len(text) >= FEW_LETTERS else re.sub(r"[\W_]+", " ", answer.casefold()).strip()
