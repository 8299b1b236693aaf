"""Personal data and secrets go, and what only looks like them stays."""

from __future__ import annotations

import pytest

from sekkei.text.blocks.scrub import KINDS, Scrub, cards, luhn
from sekkei.text.document import Document

pytest.importorskip("phonenumbers", reason="the extra `data` is not installed")


def scrubbed(text: str, lang: str = "en", **parameters: object) -> str:
    document, _ = Scrub(**parameters).build()(Document("d", text, "test", lang))  # type: ignore[arg-type]
    assert document is not None
    return document.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail jane.doe+news@mail.example.co.uk today.", "Mail <email> today."),
        ("(a_b@example.org)", "(<email>)"),
        ("Not one: user@localhost, @name, a@b", None),
        ("The server 8.8.8.8 answers, 2606:4700:4700::1111 too.", "The server <ip> answers, <ip> too."),
        ("At home it is 192.168.0.1, or 127.0.0.1, or fe80::1.", None),  # nobody's address
        ("Version 1.2.3.4, v8.8.8.8 and release 8.8.4.4 are out; 12:30:45 is a time.", None),
        ("chrome/98.0.47.1 1.2.3.4.5 300.1.2.3", None),
        ("Card 4012 8888 8888 1881 was charged.", "Card <card> was charged."),
        ("4111 1111 1111 1111 and 5555-5555-5555-4444", "<card> and <card>"),
        ("See section 8.2.4.1, § 8.2.4.2 and clause 8.2.4.3.", None),
        ("ISO/TS 16949の8.2.4.1項と第8.2.4.2節に対して", None),
        ("サーバー8.8.8.8に接続", "サーバー<ip>に接続"),
        ("Card 4012 8888 8888 1882, number 1234 5678 9012 3456.", None),  # check digit, issuer
        ("Call +1 650-253-0000 or (212) 736-5000.", "Call <phone> or <phone>."),
        ("From 2020-01-15 to 1999-2004 it was 12,345,678 or 3.14159265.", None),
        ("key AKIAIOSFODNN7EXAMPLE here", "key <key> here"),
        (f"ghp_{'a1B2' * 9} and hf_{'Ab1' * 12}", "<key> and <key>"),
        ("sk-short and AKIA123", None),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend", "<key>\nend"),
    ],
)
def test_kinds(text: str, expected: str | None) -> None:
    assert scrubbed(text) == (text if expected is None else expected)


def test_numbers_are_read_as_the_language_writes_them() -> None:
    assert scrubbed("電話は 03-3224-9999 です。", "ja") == "電話は <phone> です。"
    assert scrubbed("Nummer 03-3224-9999", "en") == "Nummer 03-3224-9999"
    assert scrubbed("Telefon 030 22730000", "de") == "Telefon <phone>"


def test_the_ledger_has_places_and_no_secrets() -> None:
    text = "Ask a@example.org, or b@example.org at 8.8.8.8."
    document, rows = Scrub().build()(Document("d", text, "test", "en"))
    assert document is not None
    assert document.text == "Ask <email>, or <email> at <ip>."
    assert [(row.rule, text[row.start : row.end], row.excerpt) for row in rows] == [
        ("scrub_email", "a@example.org", "<email>"),
        ("scrub_email", "b@example.org", "<email>"),
        ("scrub_ip", "8.8.8.8", "<ip>"),
    ]


def test_only_the_kinds_that_are_asked_for() -> None:
    text = "a@example.org 8.8.8.8"
    assert scrubbed(text, kinds=("ip",)) == "a@example.org <ip>"
    assert scrubbed(text, kinds=()) == text
    assert set(KINDS) == {"key", "email", "card", "ip", "phone"}
    clean = Document("d", "nothing here", "test", "en")
    assert Scrub().build()(clean)[0] is clean


def test_the_check_digit() -> None:
    assert luhn("79927398713")  # the example of the patent's article
    assert [digit for digit in "0123456789" if luhn("7992739871" + digit)] == ["3"]
    assert list(cards("0000 0000 0000 0000")) == []
