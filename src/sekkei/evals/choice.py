"""Multiple choice by log-likelihood: the option that the model finds most likely to follow counts as its answer.

    accuracy         argmax over options of log p(option | question)
    accuracy_norm    argmax of log p(option | question) / bytes of the option     Gao et al., lm-evaluation-harness

The second takes away that longer options are less likely because they are longer. Ties count as 1 / their number, so
that a model which finds all options equally likely scores chance. Needs a backend that can score (our own models).

    {"question": "…", "choices": ["…", "…"], "answer": 0}                                     index or letter
    {"question": "…", "choices": {"text": ["…"], "label": ["A"]}, "answerKey": "A"}           ARC's

"query" and "ctx" are read as the question, "options" and "endings" as the choices, "right", "gold" and "label" as the
answer. A space is put before an option that does not begin with white space; it does not count as one of its bytes.

What it does not handle: letters as answers with the options in the prompt (give the letters as options), calibration by
the option's likelihood without a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sekkei.core.errors import UserError
from sekkei.evals.ask import Progress, no_progress, score_all
from sekkei.evals.items import read_items
from sekkei.evals.outcome import Figure, Outcome, mean
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings, counted, user

PROMPT = "{question}"
NAMES = {
    "question": ("question", "query", "ctx"),
    "choices": ("choices", "options", "endings"),
    "answer": ("answer", "answerKey", "right", "gold", "label"),
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A question, its options as they would continue it, and which of them is right (from 0)."""

    question: str
    options: tuple[str, ...]
    right: int

    def __post_init__(self) -> None:
        if len(self.options) < 2 or not all(self.options) or not 0 <= self.right < len(self.options):
            raise UserError(
                f"choice {self.question[:40]!r}: needs two options or more, none empty, right={self.right} among them"
            )


def read_choices(path: Path) -> list[Choice]:
    """Questions of a JSON-lines file (see the header).

    Raises:
        UserError: the file cannot be read, or a line is no such question.
    """
    return read_items(path, _choice)


def _choice(data: Mapping[str, Any]) -> Choice:
    question, choices, answer = (_first(data, kind) for kind in NAMES)
    labels: Sequence[Any] = ()
    if isinstance(choices, Mapping):
        choices, labels = choices["text"], list(map(str, choices["label"]))
    labels = labels or [chr(ord("A") + place) for place in range(len(choices))]
    if isinstance(answer, str):
        if answer in labels:
            answer = labels.index(answer)
        elif not answer.isdigit():
            raise ValueError(f"answer {answer!r} is none of {', '.join(labels)}")
    options = tuple(text if text[:1].isspace() else f" {text}" for text in choices)
    return Choice(question=str(question), options=options, right=int(answer))


def _first(data: Mapping[str, Any], kind: str) -> Any:
    for name in NAMES[kind]:
        if name in data:
            return data[name]
    raise KeyError(kind)


def evaluate_choices(
    llm: LLM,
    items: Sequence[Choice],
    settings: Settings | None = None,
    prompt: str = PROMPT,
    progress: Progress = no_progress,
) -> Outcome:
    """accuracy and accuracy_norm with 95% intervals, and chance.

    Raises:
        UserError: no items, or a prompt without {question}. LLMError: the backend cannot score.
    """
    if not items:
        raise UserError("multiple choice: there are no items")
    if "{question}" not in prompt:
        raise UserError("multiple choice: the prompt template has no {question}")
    settings = settings or Settings()
    asked = [([user(prompt.replace("{question}", item.question))], list(item.options)) for item in items]
    found = score_all(llm, asked, settings, progress)
    scores: dict[str, list[float]] = {"accuracy": [], "accuracy_norm": []}
    rows = []
    for item, given in zip(items, found):
        values = [score.logprob for score in given]
        per_byte = [value / len(text.strip().encode()) for value, text in zip(values, item.options)]
        scores["accuracy"].append(share_right(values, item.right))
        scores["accuracy_norm"].append(share_right(per_byte, item.right))
        rows.append({"question": item.question, "right": item.right, "logprobs": values})
    chance = fmean([1 / len(item.options) for item in items])
    return Outcome(
        task="choice",
        items=len(items),
        prompt=prompt,
        scores=scores,
        figures={name: mean(values, settings.seed) for name, values in scores.items()}
        | {"chance": Figure(value=chance)},
        settings={"scored": "sum of log p(option's tokens)", "thinking": settings.thinking},
        usage=counted([score for given in found for score in given]),
        texts=[(item.question,) for item in items],
        rows=rows,
    )


def share_right(scores: Sequence[float], right: int) -> float:
    """1 if the right option alone scores best, 1/k if it is one of k best, else 0."""
    best = max(scores)
    winners = [place for place, score in enumerate(scores) if score == best]
    return 1 / len(winners) if right in winners else 0.0
