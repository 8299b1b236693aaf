"""Multiple choice by log-likelihood: the option that the model finds most likely to follow counts as its answer.

    accuracy         argmax over options of log p(option | question)
    accuracy_norm    argmax of log p(option | question) / bytes of the option     Gao et al., lm-evaluation-harness

The second takes away that longer options are less likely because they are longer. Ties count as 1 / their number, so
that a model which finds all options equally likely scores chance. Needs a backend that can score (our own models).

What it does not handle: letters as answers with the options in the prompt (give the letters as options), calibration by
the option's likelihood without a question.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sekkei.core.errors import UserError
from sekkei.llm.face import LLM
from sekkei.llm.protocol import user
from sekkei.tools.statistics import wilson


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


def evaluate_choices(
    llm: LLM, items: Sequence[Choice], progress: Callable[[int], None] = lambda done: None
) -> dict[str, float]:
    """accuracy and accuracy_norm with Wilson's 95% intervals, and chance.

    Raises:
        UserError: no items. LLMError: the backend cannot score.
    """
    if not items:
        raise UserError("multiple choice: there are no items")
    plain, normed = [], []
    for number, item in enumerate(items, start=1):
        scores = [score.logprob for score in llm.loglikelihood([user(item.question)], list(item.options))]
        plain.append(share_right(scores, item.right))
        per_byte = [score / len(text.encode()) for score, text in zip(scores, item.options)]
        normed.append(share_right(per_byte, item.right))
        progress(number)
    found = {"items": float(len(items)), "chance": statistics.fmean([1 / len(item.options) for item in items])}
    for name, shares in (("accuracy", plain), ("accuracy_norm", normed)):
        low, high = wilson(round(sum(shares)), len(shares))
        found |= {name: statistics.fmean(shares), f"{name}.low": low, f"{name}.high": high}
    return found


def share_right(scores: Sequence[float], right: int) -> float:
    """1 if the right option alone scores best, 1/k if it is one of k best, else 0."""
    best = max(scores)
    winners = [place for place, score in enumerate(scores) if score == best]
    return 1 / len(winners) if right in winners else 0.0
