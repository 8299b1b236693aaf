"""Text as the tokens that full-text search counts: words where white space parts them, character bigrams where not.

    "The B-tree's 索引は速い"  ->  the b tree s 索引 引は は速 速い

Scripts that do not part words (kana, Han, Thai, Lao, Khmer, Burmese) are cut into overlapping pairs of characters. They
need no dictionary and find every substring of two characters or more (Kwok 1997, "Comparing representations in Chinese
information retrieval"; Foo and Li 2004); a run of one character is itself. The text is folded first: NFKC (full-width
forms, half-width kana), lower case.
Stemming and stop words of English are the store's (Snowball, in Lance): its own tokens are what this file gives it,
parted by spaces.

Not handled: compounds of other languages, spelling variants, synonyms.
"""

from __future__ import annotations

import re
import unicodedata

from sekkei.text.quality import UNSPACED

# Inside UNSPACED stand marks that are no letters: 。、「」 are below \u3040, ・ (30fb) is not; \u30fc (ー) is one
_RUN = re.compile(f"(?P<unspaced>[{UNSPACED}]+)|[^\\W_{UNSPACED}]+")
_HIRAGANA = re.compile("[\u3041-\u309f]+ー*")
MAX_TOKEN = 40  # characters; what is longer is a hash or a base64 line, and searched by nobody
# English words that say nothing about what a text or a question is about
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about an and are as at be by can did do does for from had has have he how i if in is it its many much of on
        or she so than that the their them there these they this to was we were what when where which who whom whose why
        will with would you your""",
    )
)


def tokens(text: str) -> list[str]:
    """The tokens of a text, in order, repeats included."""
    found: list[str] = []
    for match in _RUN.finditer(fold(text)):
        run = match.group()
        if match.lastgroup != "unspaced":
            found.append(run[:MAX_TOKEN])
            continue
        for piece in run.split("・"):
            found += [piece] if len(piece) == 1 else [piece[i : i + 2] for i in range(len(piece) - 1)]
    return found


def content(text: str) -> set[str]:
    """The tokens that carry meaning: no stop words, no hiragana (mostly grammar), English endings cut (`stem`).

    A text that has nothing else ("りんごとみかん") gives its plain tokens.
    """
    found = {stem(token) for token in tokens(_HIRAGANA.sub(" ", fold(text))) if token not in STOP_WORDS}
    return found or {token for token in tokens(text) if token not in STOP_WORDS}


def stem(token: str) -> str:
    """An English token without its ending, by rule: "crates" and "crated" meet, "ran" and "run" do not."""
    for ending in ("ing", "ed", "es", "s"):
        if token.isascii() and token.endswith(ending) and len(token) - len(ending) >= 3:
            return token.removesuffix(ending)
    return token


def fold(text: str) -> str:
    """Text in the one form that is compared: NFKC, lower case."""
    return unicodedata.normalize("NFKC", text).lower()
