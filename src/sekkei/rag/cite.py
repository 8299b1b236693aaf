"""A written answer taken apart into sentences and citations, and each citation checked against the documents.

    The tower is 324 metres tall [2: "it stands 324 metres tall"]. It is green.
    '------------- sentence ------------' '---- citation -----------'  '- unsupported -'

A sentence is supported if each of its quotes stands in the passage that it names (quote.py), and in the file today, if
at least one is long enough to say something, if every number of the sentence is in its quotes, and if it shares a word
with them. What is not supported is flagged, never dropped: the reader sees both.

This proves that the words stand there. It does not prove that they mean what the sentence says: "he did not win
[1: "he did not say that he did win"]" passes. That needs a reader, or a model that judges entailment.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sekkei.core.errors import UserError
from sekkei.rag.index import Index
from sekkei.rag.quote import find_quote
from sekkei.rag.retrieve import Hit
from sekkei.rag.tokens import content, tokens

MIN_QUOTE = 3  # tokens: a quoted "the" stands in every passage

_QUOTED = r"\"(?P<straight>[^\"]*)\"|“(?P<curly>[^”]*)”|「(?P<corner>[^」]*)」|«(?P<angle>[^»]*)»"
_CITATION = re.compile(rf"\[\s*(?:passage\s*)?(?P<number>\d+)\s*(?:[:：,]\s*(?:{_QUOTED})\s*)?\]", re.IGNORECASE)
_SENTENCE = re.compile(
    r"\s*(?:[。！？]+|[.!?]+(?=\s|$))|.+?(?:[。！？]+[」』）]*|[.!?]+[\"')\]]*(?=\s|$)|\n\s*\n|$)", re.DOTALL
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Citation:
    """A quote, and where it stands.

    Args:
        passage: number that the answer gave, from 1. quote: as the answer wrote it.
        path: the file, "" if there is no such passage. start, end: characters of the text that is read from the file.
        place, source_start, source_end: page or cell, and characters of the file or place (read.py).
        problem: why it does not count; "" where it does.
    """

    passage: int
    quote: str
    path: str = ""
    start: int = 0
    end: int = 0
    place: str = ""
    source_start: int = 0
    source_end: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Sentence:
    """A sentence of an answer, with its citations. `problems` is empty where they support it."""

    text: str
    citations: tuple[Citation, ...]
    problems: tuple[str, ...]

    @property
    def supported(self) -> bool:
        return not self.problems


def sentences(answer: str, hits: Sequence[Hit], index: Index) -> list[Sentence]:
    """Every sentence of `answer`, checked against the passages `hits` that the model was given as 1, 2, …"""
    return [checked(text, cited, hits, index) for text, cited in taken_apart(answer)]


def checked(text: str, cited: Sequence[tuple[int, str]], hits: Sequence[Hit], index: Index) -> Sentence:
    """A sentence with its (passage, quote) pairs, each looked up."""
    citations = tuple(_looked_up(number, quote, hits, index) for number, quote in cited)
    return Sentence(text, citations, tuple(_problems(text, citations)))


def taken_apart(answer: str) -> list[tuple[str, list[tuple[int, str]]]]:
    """[(sentence, [(passage, quote), …]), …]: citations belong to the sentence before or around them."""
    pieces: list[tuple[str, list[tuple[int, str]]]] = []
    fresh = True  # whether the next text begins a sentence
    at = 0
    for match in [*_CITATION.finditer(answer), None]:
        text = answer[at : match.start() if match else len(answer)]
        if at and (text.lstrip()[:1].isupper() or text[:1] == "\n"):
            fresh = True  # what follows a citation with a capital must not ride on it
        for sentence in (part.group() for part in _SENTENCE.finditer(text)):
            if not any(character.isalnum() for character in sentence):
                if pieces and sentence.strip():  # the full stop behind a citation
                    pieces[-1] = (pieces[-1][0].rstrip() + sentence.strip(), pieces[-1][1])
                    fresh = True
                continue
            if fresh or not pieces:
                pieces.append((sentence, []))
            else:  # a citation stood inside the sentence
                pieces[-1] = (pieces[-1][0] + sentence, pieces[-1][1])
            fresh = bool(re.search(r"[.!?。！？][\"'」』）)]*\s*$|\n\s*\n\s*$", sentence))
        if match:
            at = match.end()
            quote = next((match[name] for name in ("straight", "curly", "corner", "angle") if match[name]), "")
            if not pieces:
                pieces.append(("", []))
            pieces[-1][1].append((int(match["number"]), quote))
    return [(" ".join(text.split()), cited) for text, cited in pieces]


def _looked_up(number: int, quote: str, hits: Sequence[Hit], index: Index) -> Citation:
    if not 1 <= number <= len(hits):
        return Citation(number, quote, problem=f"there is no passage {number}")
    chunk = hits[number - 1].chunk
    if not quote:
        return Citation(number, quote, chunk.path, problem="quotes nothing")
    span = find_quote(quote, chunk.text)
    if span is None:
        return Citation(number, quote, chunk.path, problem=f"the quote does not stand in passage {number}")
    start, end = chunk.start + span[0], chunk.start + span[1]
    try:
        place, source_start, source_end = index.document_of(chunk).locate(start, end)
    except UserError as error:
        return Citation(number, quote, chunk.path, start, end, problem=str(error))
    return Citation(number, quote, chunk.path, start, end, place, source_start, source_end)


def _problems(text: str, citations: Sequence[Citation]) -> list[str]:
    if not citations:
        return ["cites nothing"]
    found = [citation.problem for citation in citations if citation.problem]
    quotes = [citation.quote for citation in citations if not citation.problem]
    if not quotes:
        return found
    if not any(len(tokens(quote)) >= MIN_QUOTE for quote in quotes):
        found.append(f"quotes fewer than {MIN_QUOTE} words")
    missing = numbers(text) - set().union(*map(numbers, quotes))
    if missing:
        found.append(f"its quotes lack the number {', '.join(sorted(missing))}")
    if content(text) and not content(text) & set().union(*map(content, quotes)):
        found.append("shares no word with its quotes")
    return found


def numbers(text: str) -> set[str]:
    """Numbers, without the commas that part thousands; full-width digits as plain ones."""
    return {number.replace(",", "") for number in _NUMBER.findall(unicodedata.normalize("NFKC", text))}
