"""Retrieved text as data: fenced with a mark that it cannot contain, and quotes looked up in it again.

    <passage-5f2c9a1b n="1">
    … text of a document, whatever it says …
    </passage-5f2c9a1b>

The mark is a hash of the passages, and is drawn again while any of them contains it, so no document can close its fence
and speak outside of it. Spotlighting by delimiters (Hines et al. 2024, "Defending against indirect prompt injection
attacks with spotlighting") lowers the success of planted instructions and does not end it: what a model makes of what
it reads inside a fence is up to the model.

A quote is found as it stands, or with white space, and the kinds of quotation marks and dashes, taken as equal: models
copy those badly. The span that is returned is always exact.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

_SAME = {"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "‐": "-", "‑": "-", "−": "-"}


def mark_for(texts: Sequence[str]) -> str:
    """Eight hexadecimal digits that occur in none of the texts; the same texts give the same mark."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    while any(digest[:8] in text for text in texts):
        digest = hashlib.sha256(digest.encode()).hexdigest()
    return digest[:8]


def fenced(texts: Sequence[str], names: Sequence[str] | None = None) -> str:
    """The texts, numbered from 1, each inside a fence; `names` says where each is from."""
    mark = mark_for([*texts, *(names or ())])
    blocks = []
    for number, text in enumerate(texts, 1):
        name = f' from="{_attribute(names[number - 1])}"' if names else ""
        blocks.append(f'<passage-{mark} n="{number}"{name}>\n{text}\n</passage-{mark}>')
    return "\n".join(blocks)


def _attribute(text: str) -> str:
    return re.sub(r'[<>"\s]+', " ", text)


def find_quote(quote: str, text: str) -> tuple[int, int] | None:
    """The span of `text` that a quote stands for; None if it does not stand there."""
    if not quote.strip():
        return None
    at = text.find(quote)
    if at >= 0:
        return at, at + len(quote)
    wanted, _ = _squeezed(quote)
    have, places = _squeezed(text)
    at = have.find(wanted)
    if at < 0:
        return None
    return places[at], places[at + len(wanted) - 1] + 1


def _squeezed(text: str) -> tuple[str, list[int]]:
    """Text with runs of white space as one space and marks of one kind, and where each character stands in it."""
    kept: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if character.isspace():
            if kept and kept[-1] != " ":
                kept.append(" ")
                places.append(place)
        else:
            kept.append(_SAME.get(character, character))
            places.append(place)
    if kept and kept[-1] == " ":
        kept.pop()
        places.pop()
    return "".join(kept), places
