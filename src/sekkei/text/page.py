"""A raw page as a reader hands it on: bytes or text, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Page:
    """One item of raw input.

    Args:
        id: unique within its corpus.
        content: bytes that are yet to be decoded, or text.
        html: whether main text must be extracted; False is plain text.
        source: the name by which mixtures weigh it.
        charset: what the transport declared, if anything; a hint.
        meta: url, date and the like.
    """

    id: str
    content: bytes | str
    html: bool
    source: str = "pages"
    charset: str = ""
    meta: dict[str, str] = field(default_factory=dict)
