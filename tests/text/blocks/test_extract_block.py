"""The block `extract` with trafilatura: precise, and without its filter that remembers the pages before."""

from __future__ import annotations

import pytest

from sekkei.core.errors import ConfigError
from sekkei.text.blocks.extract import Extract
from sekkei.text.page import Page

pytest.importorskip("trafilatura", reason="the extra `data` is not installed", exc_type=ImportError)
ARTICLE = "".join(
    f"<p>Paragraph {i} of the article tells at some length what happened at the harbour on day {i} of that winter, "
    "when the boats came home late and nobody on the quay wanted to ask their crews for the reason.</p>"
    for i in range(6)
)
PAGE = (
    "<html><head><title>Winter</title></head><body><nav><ul><li><a href='/'>Home</a></li><li>Shop</li>"
    f"</ul></nav><article><h1>Winter at the harbour</h1>{ARTICLE}</article>"
    "<div class='comments'><p>First! I was there, too.</p></div><footer>All rights reserved 2020</footer></body></html>"
)


def texts(pages: list[str], **parameters: object) -> list[str | None]:
    function = Extract(**parameters).build()  # type: ignore[arg-type]
    found = [function(Page(f"p{i}", page.encode(), True))[0] for i, page in enumerate(pages)]
    return [document and document.text for document in found]


def test_the_article_stays_and_the_rest_goes() -> None:
    (text,) = texts([PAGE], extractor="trafilatura")
    assert text is not None
    assert all(f"Paragraph {i} of the article" in text for i in range(6))
    for other in ("Shop", "First!", "All rights reserved"):
        assert other not in text


def test_a_page_does_not_depend_on_those_before() -> None:
    """trafilatura's own duplicate filter would empty the later ones (it keeps what it has seen in the process)."""
    assert len({*texts([PAGE] * 8, extractor="trafilatura")}) == 1
    others = [PAGE.replace("harbour", word) for word in ("market", "river", "bridge")]
    assert texts(others, extractor="trafilatura") == texts(others[::-1], extractor="trafilatura")[::-1]


def test_nothing_found_is_a_ledger_row() -> None:
    function = Extract(extractor="trafilatura").build()
    document, rows = function(Page("p", b"<html><body><script>run()</script></body></html>", True))
    assert document is None
    assert [row.rule for row in rows] == ["empty"]


def test_skip_elements_are_resiliparses() -> None:
    with pytest.raises(ConfigError, match="skip_elements"):
        Extract(extractor="trafilatura", skip_elements=("nav",))
