"""In-context examples: which ones to show, in what order, and how many of each label.

    random      k drawn by seed
    nearest     the k most like the question, by BM25 or by an embedding                 (Liu et al. 2022)
    diverse     maximal marginal relevance: one by one, the pool's
                    argmax  λ · sim(example, question) - (1 - λ) · max over chosen sim(example, chosen)
                (Carbonell and Goldstein 1998)

Order matters because models lean towards what they read last (Zhao et al. 2021, Calibrate Before Use): "best_last" puts
the most similar example next to the question, "best_first" the other way round, "shuffled" by seed. `balance` gives
each label the same number of examples (a difference of one where k does not divide), so that their frequencies say
nothing. The question itself is never shown, should the pool hold it.

BM25 here is a small scorer of our own (Robertson and Zaragoza 2009, eq. 3.15, k1 = 1.2, b = 0.75, the idf that stays
positive): a pool of examples is small, and it must be comparable with cosines, so scores are divided by the query's
score against itself. Words of unspaced scripts are cut into character pairs. An index for documents is rag/'s.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.llm.protocol import Message, assistant, user

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]+")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A solved question. reasoning: what a chain of thought shows. label: what `balance` counts, "" = the answer."""

    question: str
    answer: str
    reasoning: str = ""
    label: str = ""

    @property
    def kind(self) -> str:
        return self.label or self.answer


class Similarity(Protocol):
    """How alike texts are; about 1 for equal ones, about 0 for strangers."""

    def matrix(self, queries: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        """[queries][texts]."""
        ...


class BM25:
    """Word overlap, weighted by rarity in the pool."""

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        self.k1, self.b = k1, b

    def matrix(self, queries: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        bags = [Counter(terms(text)) for text in texts]
        mean = sum(bag.total() for bag in bags) / max(len(bags), 1) or 1.0
        seen = Counter(term for bag in bags for term in bag)
        rows = []
        for query in queries:
            bag = Counter(terms(query))
            idf = {t: math.log(1 + (len(bags) - seen[t] + 0.5) / (seen[t] + 0.5)) for t in bag}
            own = self._score(bag, bag, idf, mean) or 1.0
            rows.append([self._score(bag, other, idf, mean) / own for other in bags])
        return rows

    def _score(self, query: Counter[str], text: Counter[str], idf: dict[str, float], mean: float) -> float:
        norm = self.k1 * (1 - self.b + self.b * text.total() / mean)
        return sum(idf[t] * text[t] * (self.k1 + 1) / (text[t] + norm) for t in query if text[t])


class Cosine:
    """Cosine of embeddings.

    Args:
        embed: texts -> vectors of one length.
    """

    def __init__(self, embed: Embed) -> None:
        self.embed = embed

    def matrix(self, queries: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        left, right = self._unit(queries), self._unit(texts)
        return [[sum(a * b for a, b in zip(x, y)) for y in right] for x in left]

    def _unit(self, texts: Sequence[str]) -> list[list[float]]:
        rows = []
        for vector in self.embed(texts):
            length = math.sqrt(sum(float(x) ** 2 for x in vector)) or 1.0
            rows.append([float(x) / length for x in vector])
        return rows


def terms(text: str) -> list[str]:
    """Lower-case words; runs of Japanese, Chinese and Thai as pairs of characters."""
    found: list[str] = []
    for word in re.findall(r"\w+", text.casefold()):
        place = 0
        for run in _UNSPACED.finditer(word):
            found += [word[place : run.start()]] if run.start() > place else []
            piece = run.group()
            found += [piece[i : i + 2] for i in range(len(piece) - 1)] or [piece]
            place = run.end()
        found += [word[place:]] if place < len(word) else []
    return found


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """How examples are chosen.

    Args:
        pool: to choose from. k: how many (fewer where the pool is smaller). select, order, balance: see the header.
        similarity: for "nearest", "diverse" and the orders by likeness.
        relevance: λ of "diverse"; 1 = nearest.
        seed: of every draw; the question is part of it, so each question has its own.
    """

    pool: tuple[Example, ...]
    k: int = 4
    select: Literal["random", "nearest", "diverse"] = "nearest"
    order: Literal["best_last", "best_first", "shuffled"] = "best_last"
    balance: bool = False
    similarity: Similarity = BM25()  # noqa: RUF009 (it holds two numbers and never changes)
    relevance: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ConfigError("k", f"got {self.k}, must be >= 0 examples")
        if not 0 <= self.relevance <= 1:
            raise ConfigError("relevance", f"got {self.relevance}, must be in [0, 1]")

    def choose(self, question: str) -> list[Example]:
        """The examples for one question, in the order in which they are shown."""
        pool = [example for example in self.pool if example.question.strip() != question.strip()]
        if not pool or not self.k:
            return []
        rng = random.Random(derive_seed("few-shot", self.seed, question))
        texts = [example.question for example in pool]
        likeness: list[float] = []
        if self.select != "random" or self.order != "shuffled":
            (likeness,) = self.similarity.matrix([question], texts)
        chosen = self._ranked(pool, texts, likeness, rng)
        if self.order == "shuffled":
            rng.shuffle(chosen)
        else:  # stable, so equally similar ones keep the order of selection
            chosen.sort(key=lambda i: likeness[i], reverse=self.order == "best_first")
        return [pool[i] for i in chosen]

    def _ranked(self, pool: list[Example], texts: list[str], likeness: list[float], rng: random.Random) -> list[int]:
        """Indices of the chosen, taken one by one; with `balance`, from the labels in turn."""
        left = set(range(len(pool)))
        tie = rng.sample(range(len(pool)), len(pool))  # a random order, and the tie-break of the others
        between = self.similarity.matrix(texts, texts) if self.select == "diverse" else []
        turns = sorted({example.kind for example in pool})
        rng.shuffle(turns)
        chosen: list[int] = []

        def worth(i: int) -> tuple[float, int]:
            if self.select == "random":
                return 0.0, tie[i]
            if self.select == "nearest":
                return likeness[i], tie[i]
            near = max((between[i][j] for j in chosen), default=0.0)
            return self.relevance * likeness[i] - (1 - self.relevance) * near, tie[i]

        while left and len(chosen) < self.k:
            allowed = left
            if self.balance:
                label = turns.pop(0)
                allowed = {i for i in left if pool[i].kind == label}
                if not allowed:  # this label has run out
                    continue
                turns.append(label)
            best = max(allowed, key=worth)
            chosen.append(best)
            left.remove(best)
        return chosen


def as_turns(
    examples: Sequence[Example], reasoning: Literal["no", "empty", "written", "think"] = "no"
) -> list[Message]:
    """Examples as turns of a conversation.

    Args:
        reasoning: leave it out, show an empty think block, write it before the answer (Wei et al. 2022), or put it
            into the think block.
    """
    turns: list[Message] = []
    for example in examples:
        answer = assistant(example.answer)
        if reasoning == "written" and example.reasoning:
            answer = assistant(f"{example.reasoning.rstrip()}\n{example.answer}")
        elif reasoning in ("think", "empty"):
            answer = {**answer, "reasoning_content": example.reasoning if reasoning == "think" else ""}
        turns += [user(example.question), answer]
    return turns


def as_text(examples: Sequence[Example], reasoning: bool) -> str:
    """Examples as one text, each as question, reasoning (where it is to be shown) and answer on lines of their own."""
    shown = []
    for example in examples:
        lines = [example.question, *([example.reasoning] if reasoning and example.reasoning else []), example.answer]
        shown.append("\n".join(line.strip() for line in lines))
    return "\n\n".join(shown)
