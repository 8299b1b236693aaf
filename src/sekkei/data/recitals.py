"""Recitals: passages of real text, said two to four times. The densest food of copying from the context.

    " returns the name of the returns the name of the returns the name of the"
      passage             again: every token can be looked up

From the second time on only what stands before tells the next token, so half to three quarters of a recital pay an
induction head and nothing else. Read alone at the beginning of pretraining, they make such heads form within 75 steps
of 4,096 tokens; in a mixture with other text they do not form in ten times as many, because bigrams pay sooner
(docs/log.md). Passages are of varied length, or a head learns a distance instead of looking.

It does not handle passages that are said again in other words, or with other text in between.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.text.document import Document

SHORTEST, LONGEST = 24, 200  # characters of a passage: some 8 to 64 tokens
TIMES = (2, 3, 4)
_BREAK = re.compile(r"(?=\s\S)")


def recitals(documents: Sequence[Document], count: int, seed: int) -> list[Document]:
    """`count` recitals of passages of `documents` (training text only: a passage is learned by heart).

    Raises:
        UserError: no document is as long as a passage.
    """
    long_enough = [document for document in documents if len(document.text) > LONGEST]
    if not long_enough:
        raise UserError(f"data: recitals need a document of more than {LONGEST} characters, none was kept")
    found: dict[str, None] = {}
    for index in range(count):
        rng = random.Random(derive_seed("recital", seed, index))
        found.setdefault(recital(rng, rng.choice(long_enough).text))
    return [Document(id=f"recitals/{i}", text=text, source="recitals", lang="en") for i, text in enumerate(found)]


def recital(rng: random.Random, text: str) -> str:
    """A passage of `text`, cut between words, two to four times.

    Each time begins with the white space that stood before its first word, so that it becomes the same tokens.
    """
    length = round(math.exp(rng.uniform(math.log(SHORTEST), math.log(LONGEST))))
    start = rng.randrange(len(text) - length)
    breaks = [match.start() for match in _BREAK.finditer(text, start, start + length)]
    passage = text[breaks[0] : breaks[-1]] if len(breaks) > 1 else " " + text[start : start + length].strip()
    return passage * rng.choice(TIMES)
