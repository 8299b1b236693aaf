"""The first block: bytes of a page become a document, whatever its encoding, or a ledger row says why not.

    bytes ──decode──> str ──too deep? control characters?──> main text ──tidy──> document

HTML goes through `resiliparse` (fast, the default) or `trafilatura` (`favor_precision`, Barbaresi 2021; its own
duplicate filter stays off, since it depends on the order of pages). The charset is the one of the HTTP header where
a crawl gives one that fits, else `text.extract.decode` finds it (UTF-8, <meta>, detection: Shift_JIS, EUC-JP, …).

Nesting is counted before parsing: time in HTML parsers grows with the square of the depth (10,000 nested <div>
take a second, 100,000 minutes), while browsers stop at 512 levels.

Not handled: pages that need JavaScript, PDF, office files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from sekkei.core.errors import ConfigError
from sekkei.text import extract
from sekkei.text.blocks.block import Result, Rewrites, need
from sekkei.text.document import EXCERPT_CHARS, Document, Dropped
from sekkei.text.page import Page

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)[^<>]*?(/?)>")
# Elements that have no end tag, or may leave it out: they do not stay open over what follows them
_FLAT = frozenset(
    name
    for names in (
        "area base br col embed hr img input link meta param source track wbr",
        "p li dt dd tr td th thead tbody tfoot option optgroup colgroup rp rt",
    )
    for name in names.split()
)
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Text from pages.

    Args:
        extractor: "resiliparse", or "trafilatura" for precision at a tenth of the speed.
        skip_elements: CSS selectors of elements that are no text (resiliparse only).
        max_bytes: a larger page is dropped unparsed.
        max_depth: a page nested deeper is dropped unparsed.
    """

    name: ClassVar[str] = "extract"
    version: ClassVar[int] = 3
    rewrites: ClassVar[Rewrites] = "text"

    extractor: Literal["resiliparse", "trafilatura"] = "resiliparse"
    skip_elements: tuple[str, ...] = ()
    max_bytes: int = 8_000_000
    max_depth: int = 512

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_depth < 1:
            raise ConfigError("max_bytes" if self.max_bytes < 1 else "max_depth", "must be at least 1")
        if self.skip_elements and self.extractor != "resiliparse":
            raise ConfigError("skip_elements", "works with extractor: resiliparse only")
        check_selectors(self.skip_elements)

    @property
    def libraries(self) -> tuple[str, ...]:
        """Packages whose version may change the outcome."""
        return ("Resiliparse", self.extractor)

    def build(self) -> Callable[[Page], Result]:
        """The function from a page to a document."""
        if self.extractor == "trafilatura":
            trafilatura = need("trafilatura", "trafilatura", "extract.extractor=trafilatura")

            def main_text(html: str) -> str:
                found = trafilatura.extract(html, favor_precision=True, include_comments=False, deduplicate=False)
                return extract.tidy(found or "")
        else:

            def main_text(html: str) -> str:
                return extract.extract_html(html, self.skip_elements)

        def apply(page: Page) -> Result:
            if len(page.content) > self.max_bytes:
                return None, [_row(page, "too_large", len(page.content), self.max_bytes)]
            raw = sound(page.content) if isinstance(page.content, str) else extract.decode(page.content, page.charset)
            share = extract.control_share(raw)
            if share > extract.MAX_CONTROL_SHARE:
                return None, [_row(page, "not_text", share, extract.MAX_CONTROL_SHARE)]
            if page.html:
                depth = nesting(raw, self.max_depth)
                if depth > self.max_depth:
                    return None, [_row(page, "nesting", depth, self.max_depth, raw)]
            text = main_text(raw) if page.html else extract.tidy(raw)
            if not text.strip():
                return None, [_row(page, "empty", 0, 1)]
            return Document(page.id, text, page.source, "", page.meta), []

        return apply


def sound(text: str) -> str:
    """The text with lone surrogates, which JSON can spell and no file can hold, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def nesting(html: str, limit: int) -> int:
    """Depth of open elements; exact only where it may exceed `limit`, else an upper bound.

    Most pages are settled by counting brackets chunk by chunk, which is a hundred times faster than reading tags.
    """
    bound = most = 0
    for start in range(0, len(html), _CHUNK):
        chunk = html[start : start + _CHUNK + 1]  # one more, so that "</" on the border is seen
        opened, closed = chunk.count("<", 0, _CHUNK), chunk.count("</")
        most = max(most, bound + opened)
        bound += opened - 2 * closed
    if most <= limit:
        return most
    depth = deepest = 0
    for match in _TAG.finditer(html):
        closing, name, empty = match.groups()
        if empty or name.lower() in _FLAT:
            continue
        depth = max(0, depth - 1) if closing else depth + 1
        deepest = max(deepest, depth)
    return deepest


def check_selectors(selectors: tuple[str, ...]) -> None:
    """Raise ConfigError where `skip_elements` is not CSS."""
    try:
        extract.extract_html("<p>a</p>", selectors)
    except ValueError as error:
        raise ConfigError("skip_elements", f"{list(selectors)} are not CSS selectors ({error})") from None


def _row(page: Page, rule: str, value: float, threshold: float, text: str = "") -> Dropped:
    excerpt = text[:EXCERPT_CHARS]
    return Dropped(page.id, rule, float(value), float(threshold), excerpt, 0, len(excerpt))
