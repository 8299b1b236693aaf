from __future__ import annotations

import random

import pytest

from sekkei.text.extract import MAX_CONTROL_SHARE, control_share, decode, extract_html, tidy

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。"


@pytest.mark.parametrize("charset", ["utf-8", "shift_jis", "euc_jp", "iso-2022-jp", "utf-16"])
def test_declared_or_detected_charsets(charset: str) -> None:
    html = f'<html><head><meta charset="{charset}"><title>t</title></head><body><p>{JAPANESE}</p></body></html>'
    assert JAPANESE in decode(html.encode(charset))


def test_undeclared_western_charset() -> None:
    text = "Le café était fermé, mais la forêt où nous étions allés dîner à Noël ne l'était pas : ça a été très gênant."
    assert decode(text.encode("latin-1")) == text


@pytest.mark.parametrize("charset", ["no-such-charset", "x-user-defined", "hex", "replacement"])
def test_a_charset_that_nobody_has_does_not_crash(charset: str) -> None:
    page = f'<html><head><meta charset="{charset}"></head><body>caf\xe9 in the town</body></html>'
    assert "in the town" in decode(page.encode("latin-1"))


def test_control_share_parts_binary_from_text() -> None:
    noise = random.Random(0).randbytes(4000)
    png = b"\x89PNG\r\n\x1a\n" + noise
    for binary in (noise, png, b"\x00" * 100, bytes(range(256)) * 4):
        assert control_share(decode(binary)) > MAX_CONTROL_SHARE
    assert control_share("plain text\twith\r\nlayout\f") == 0
    assert control_share("") == 0


def test_any_bytes_can_be_decoded_and_encoded_again() -> None:
    for seed in range(50):
        data = random.Random(seed).randbytes(200)
        decode(data).encode("utf-8")
        extract_html(decode(data)).encode("utf-8")
    extract_html("<p>&#xD800; &#0; &#xFFFFFFF;</p>").encode("utf-8")


def test_main_content_without_navigation_and_scripts() -> None:
    html = """<html><head><style>p {color: red}</style><script>var secret = 1;</script></head><body>
    <nav><ul><li><a href="/">Home</a></li><li><a href="/b">Blog</a></li></ul></nav>
    <main><h1>On whales</h1><p>The whale is a mammal.</p><p>It breathes air.</p>
    <pre>def f():
        return 1</pre></main>
    <footer>Copyright and cookies</footer></body></html>"""
    text = extract_html(html)
    assert "The whale is a mammal.\n\nIt breathes air." in text
    assert "def f():\n        return 1" in text
    for junk in ("secret", "color", "Home", "cookies"):
        assert junk not in text


PROSE = f"<p>{'The ferry left the island before dawn, and people walked home along the beach. ' * 4}</p>"


@pytest.mark.parametrize("wrap", ["{}", "<main>{}</main>", "<div><div><div><div>{}</div></div></div></div>"])
@pytest.mark.parametrize(
    ("fragment", "kept"),
    [
        # cases of a crawl: soldaini.net, maria-antoniak.github.io, kyleclo.com
        ("<figure class='highlight'><pre><code>import os</code></pre></figure>", "import os"),
        ("<figure class=wp-block-table><table><tr><td>tea<td>milk</table></figure>", "tea  milk"),
        ("<figure class=listing><span>Filename: a.py</span>\n<pre>x = 1</pre></figure>", "Filename: a.py\nx = 1"),
        ("<figure><img src=a><p>A cat.</p><br></figure>", ""),
        ("<figure><img src=a></figure><p>The text:</p><pre>x = 1</pre>", "The text:\n\nx = 1"),
        ("<figure><img src=a alt=b><figcaption>A cat.</figcaption></figure>", ""),
        ("<p>I do:</p> <ul><li><b>Lead</b> of data</li><li>Cook</li></ul>", "I do:\n\n  • Lead of data\n  • Cook"),
        (
            "<p>I made:</p><ul><li><a href=x>Mallet</a> (a wrapper of a library)</li><li><a href=y>A scraper</a> "
            "(it collects reviews)<ul><li>old</li></ul></li></ul>",
            "I made:\n\n  • Mallet (a wrapper of a library)\n  • A scraper (it collects reviews)\n    • old",
        ),
        ("<p>Pages:</p><ul><li><a href=x>Home</a></li><li><a href=y>Shop</a> <a href=z>Cart</a></li></ul>", "Pages:"),
        ("<ul><li><a href=x>Home</a></li><li><a href=y>Shop</a></li></ul>", ""),
    ],
)
def test_figures_of_code_and_lists_behind_a_paragraph_stay_and_menus_go(fragment: str, kept: str, wrap: str) -> None:
    text = extract_html(f"<html><body>{wrap.format(PROSE + fragment + PROSE)}</body></html>")
    before, between, after = text.split(PROSE[3:-5].strip())
    assert (before, between.strip(), after) == ("", kept, "")


def test_a_list_that_is_never_closed_is_left_to_the_parser() -> None:
    assert "Mallet" in extract_html(f"<body><div><div><div>{PROSE}<p>I made:</p><ul><li>Mallet, a wrapper</div>{PROSE}")


def test_pydoc_layout_is_undone() -> None:
    html = """<body><table><tr><td>&nbsp;<br><strong>random</strong></td><td class="extra">index</td></tr>
    </table><table><tr><td><span>&nbsp;&nbsp;&nbsp;</span></td><td><dl><dt><strong>gauss</strong>(mu)</dt>
    <dd><span>Gaussian&nbsp;distribution.<br>\n&nbsp;<br>\n&nbsp;&nbsp;Not&nbsp;thread-safe.</span></dd></dl>
    <dl><dt><strong>seed</strong>(a)</dt><dd>Start&nbsp;again.</dd></dl></td></tr></table></body>"""
    lines = extract_html(html, ["td.extra"]).split("\n")
    assert lines[0] == "random"
    assert lines[-6:] == ["Gaussian distribution.", "", "  Not thread-safe.", "", "seed(a)", "Start again."]
    assert not any("\t" in line or "\xa0" in line or line != line.rstrip() for line in lines)


def test_tidy() -> None:
    assert tidy("\n\n a  \r\n\r\n\n\nb\t\r\tc\u00a0d\u00ad\n\n") == " a\n\nb\n\tc d"
    assert tidy("name\t\tvalue\n   \t\tcell") == "name  value\ncell"
    assert tidy(tidy("x \n\n\n\ny")) == tidy("x \n\n\n\ny")


def test_selectors_that_are_not_css() -> None:
    with pytest.raises(ValueError, match="CSS"):
        extract_html("<p>a</p>", ["td..["])


def test_large_page_keeps_every_term() -> None:
    html = "<body>" + "<dl><dt>term</dt><dd>what it means here</dd></dl>\n" * 20_000 + "</body>"
    assert extract_html(html).count("what it means here") == 20_000
