"""Encoding repair: text that was decoded wrongly before it was saved is turned back, or dropped where it cannot be.

    "cafÃ©"            UTF-8 read as Windows-1252   -> ftfy (Speer 2019)           -> "café"
    "縺薙ｌ縺ｯ"          UTF-8 read as Shift_JIS      -> bytes in cp932, as UTF-8   -> "これは"
    "¤³¤ì¤Ï" "‚±‚ê‚Í"   EUC-JP, Shift_JIS as Latin   -> bytes in Latin, as those    -> "これは"

ftfy knows the Western mix-ups; the Japanese ones are undone line by line here, where the bytes decode without a
fault and give kana. What is left over is measured: the share of characters inside typical wrong pairs. Above the
limit the text has lost bytes for good, and goes (rule "mojibake").

Not handled: text that went wrong twice in different ways; Korean and Chinese legacy encodings read as Latin.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import ClassVar

from sekkei.core.errors import ConfigError
from sekkei.text.blocks.block import Apply, Result, Rewrites, need
from sekkei.text.document import Document, drop

_HIGH = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # bytes 80 … BF as Latin-1 and as Windows-1252
_WRONG = re.compile(
    f"[ÃÂâãäåæçèé][{_HIGH}]{{1,2}}"  # UTF-8 as Latin
    "|(?:[縺繧繝][^\\s、。])+"  # UTF-8 as Shift_JIS: the first bytes of kana give these three kanji
    "|(?:[‚ƒ][^\\s]){3,}"  # Shift_JIS as Windows-1252: first bytes of kana
    "|(?:[¤¥][\xa1-\xfe]){3,}"  # EUC-JP as Latin-1: first bytes of kana
    "|\ufffd+"
)
_KANA = re.compile("[\u3040-\u30ff]")
_MIXUPS = (("cp932", "utf-8"), ("latin-1", "euc_jp"), ("cp1252", "cp932"), ("latin-1", "cp932"))
_SUSPICIOUS = re.compile("[縺繧繝‚ƒ¤¥]")


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Undo mojibake, normalise to NFC, and drop what stays broken.

    Args:
        max_mojibake: share of characters in wrong pairs that a text may keep, in [0, 1].
    """

    name: ClassVar[str] = "repair"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("ftfy",)
    rewrites: ClassVar[Rewrites] = "text"

    max_mojibake: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.max_mojibake <= 1:
            raise ConfigError("max_mojibake", f"{self.max_mojibake} must lie in 0 … 1")

    def build(self) -> Apply:
        fix = need("ftfy", "ftfy", "the block repair").fix_encoding

        def apply(document: Document) -> Result:
            if document.text.isascii():
                return document, []
            text = document.text
            if _SUSPICIOUS.search(text):
                text = "\n".join(map(repair_japanese, text.split("\n")))
            text = unicodedata.normalize("NFC", fix(text))
            share = mojibake(text)
            if share > self.max_mojibake:
                return None, [drop(document, "mojibake", share, self.max_mojibake)]
            return (document if text == document.text else replace(document, text=text)), []

        return apply


def mojibake(text: str) -> float:
    """Share of characters inside pairs that wrong decoding leaves, in [0, 1]."""
    return sum(len(match.group()) for match in _WRONG.finditer(text)) / max(1, len(text))


def repair_japanese(line: str) -> str:
    """The line decoded again, if it is Japanese that was read in another encoding; else the line itself."""
    if not _SUSPICIOUS.search(line) or mojibake(line) < 0.2:
        return line
    for wrong, right in _MIXUPS:
        try:
            found = line.encode(wrong).decode(right)
        except UnicodeError:
            continue
        if len(_KANA.findall(found)) >= 0.2 * len(found):
            return found
    return line
