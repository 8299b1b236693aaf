"""From the bytes of a page to the text that a person reads on it.

    bytes --decode--> str --resiliparse--> visible text --tidy--> lines without layout

Decoding: what is valid UTF-8 is UTF-8; else the charset that the page declares, else the one that
uchardet detects (both through resiliparse, WHATWG names). Extraction: resiliparse's rule-based
main-content extraction (Bevendorff et al. 2018, "Elastic ChatNoir"; the extractor that DCLM found best
at a tenth of the cost, Li et al. 2024, section 4.2), which keeps `<pre>` as it stands. Then layout is undone:
non-breaking spaces become spaces, table cells are parted by two spaces, spacer cells vanish, runs of
blank lines become one.

Before it reads a page, three things are changed in its HTML. Definition lists get a blank line before each term: a
browser sets a term off by its font; in bare text nothing would part a function from the description of the one before
it. And two of resiliparse's rules are kept from content: it drops every <figure>, so one around code or a table
(Jekyll, WordPress) is taken away; it takes a <ul> for a menu that lies less than four levels below <body> or whose text
is links to a good part, so one that follows a paragraph ("What I do:" …) and is no mere list of links is put deeper and
loses its <a> tags.

Not handled: pages that draw their text with JavaScript, PDF, text inside images, repair of text that
was decoded wrongly before it was saved (mojibake).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

# More than this share of control characters means the bytes were never text. Random bytes read as
# Windows-1252 have 0.11 of them; the worst real page of the embedded set has 0.
MAX_CONTROL_SHARE = 0.01
# A list behind a paragraph whose text is links up to this share is content: menus are links throughout.
MAX_LINK_SHARE = 0.6

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
_TERM = re.compile(r"<dt\b", re.IGNORECASE)
_FIGURE_TAG = re.compile(r"<(/?)figure\b[^<>]*>", re.IGNORECASE)
_NO_PICTURE = re.compile(r"<(?:pre|table|blockquote)\b", re.IGNORECASE)
_AFTER_PARAGRAPH = re.compile(r"</p>\s*(?=<ul\b)", re.IGNORECASE)
_LINK_TAG = re.compile(r"</?a\b[^<>]*>", re.IGNORECASE)
_ANY_TAG = re.compile(r"(<[^<>]*>)")
_LIST_TAG = re.compile(r"<(/?)ul\b[^<>]*>", re.IGNORECASE)
_SPACER_CELL = re.compile(r"^(?: +\t+)+", re.MULTILINE)
_CELLS = re.compile(r"(?<=\S) *\t\t+ *")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_RUN = re.compile(r"\n{3,}")


def decode(data: bytes, charset: str = "") -> str:
    """Decode a page; never raises. What cannot be decoded becomes U+FFFD (see `control_share`).

    Args:
        charset: what an HTTP header declares; believed where the bytes are valid in it.
    """
    if b"\x1b" not in data:  # ISO-2022 encodings are ASCII bytes with escapes: valid UTF-8, and wrong
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
    if charset:
        try:
            return data.decode(charset)
        except (ValueError, LookupError):
            pass
    try:
        return bytes_to_str(data, detect_encoding(data, from_html_meta=True) or "utf-8")
    except LookupError:  # the page declares a charset that Python does not have
        return bytes_to_str(data, detect_encoding(data, from_html_meta=False) or "utf-8")


def control_share(text: str) -> float:
    """Share of characters that no text has: control characters and replacement characters, in [0, 1]."""
    return len(_CONTROL.findall(text)) / max(1, len(text))


def extract_html(html: str, skip_elements: Sequence[str] = ()) -> str:
    """The readable text of a decoded HTML page.

    Args:
        html: the page.
        skip_elements: CSS selectors of elements to leave out, on top of what main-content extraction drops.
    Raises:
        ValueError: one of the selectors is not CSS.
    """
    text = extract_plain_text(
        _lists_kept(_figures_opened(_TERM.sub("<br><br><dt", html))),
        preserve_formatting=True,
        main_content=True,
        alt_texts=False,
        links=False,
        skip_elements=list(skip_elements),
    )
    return tidy(text)


def _figures_opened(html: str) -> str:
    """The page without the start tags of figures that hold code, a table or a quotation."""
    tags = list(_FIGURE_TAG.finditer(html))
    pieces, at = [], 0
    for tag, following in itertools.zip_longest(tags, tags[1:]):
        end = following.start() if following else len(html)
        if not tag[1] and _NO_PICTURE.search(html, tag.end(), end):
            pieces.append(html[at : tag.start()])
            at = tag.end()
    return "".join([*pieces, html[at:]])


def _lists_kept(html: str) -> str:
    """The page with each list that follows a paragraph, and is no list of links, where resiliparse keeps it."""
    pieces, at = [], 0
    for match in _AFTER_PARAGRAPH.finditer(html):
        start, end, depth = match.end(), 0, 0
        if start < at:  # inside a list that was dealt with
            continue
        for tag in _LIST_TAG.finditer(html, start):
            depth += -1 if tag[1] else 1
            if depth == 0:
                end = tag.end()
                break
        if not end:  # it is never closed
            break
        found = html[start:end]
        if link_share(found) <= MAX_LINK_SHARE:
            found = f"<div><div><div>{_LINK_TAG.sub('', found)}</div></div></div>"
        pieces += [html[at:start], found]
        at = end
    return "".join([*pieces, html[at:]])


def link_share(html: str) -> float:
    """Share of a fragment's text that is in links, in [0, 1], without the space around tags."""
    linked = total = 0
    inside = False
    for piece in _ANY_TAG.split(html):
        if _LINK_TAG.fullmatch(piece):
            inside = not piece.startswith("</")
        elif not piece.startswith("<"):
            size = len(piece.strip())
            total += size
            linked += size * inside
    return linked / max(1, total)


def tidy(text: str) -> str:
    """Undo layout: plain spaces, no trailing spaces, at most one blank line in a row, `\\n` line ends."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = text.replace("\u00a0", " ").replace("\u00ad", "").replace("\u200b", "")
    text = _SPACER_CELL.sub("", text)
    text = _CELLS.sub("  ", text)
    text = _TRAILING.sub("", text)
    return _BLANK_RUN.sub("\n\n", text).strip("\n")
