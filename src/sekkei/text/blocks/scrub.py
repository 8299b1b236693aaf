"""Personal data and secrets become typed placeholders: <email>, <ip>, <phone>, <card>, <key>.

    e-mail   the local part and domain of RFC 5321 as it is written in practice
    ip       public IPv4 and IPv6 addresses (`ipaddress.is_global`); not version strings ("version 1.2.3.4", "v1.2.3.4")
             and not numbers of sections ("section 8.2.4.1", "8.2.4.1項")
    card     13 to 19 digits of a known issuer whose check digit holds (Luhn 1960, ISO/IEC 7812-1)
    phone    numbers with a + or in groups that are valid in the text's country (`phonenumbers`, Google's tables)
    key      tokens with a known form: AWS, GitHub, GitLab, Google, Slack, OpenAI, Hugging Face, Stripe, JWT, PEM blocks

Every replacement is a ledger row with the offsets in the text before it; the excerpt shows the placeholder and not
what stood there. Where two kinds overlap, the earlier one in the order key, email, card, ip, phone is taken.

Not handled: names and postal addresses (they need a model, and wrong hits cost more than they save); phone numbers
without any grouping, which are not told from other numbers.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from sekkei.text.blocks.block import Apply, Result, Rewrites, need
from sekkei.text.document import Document, Dropped

Kind = Literal["key", "email", "card", "ip", "phone"]
KINDS: tuple[Kind, ...] = ("key", "email", "card", "ip", "phone")
Span = tuple[int, int]

_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_][\w.+%-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-]|\.\w)", re.A
)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.-]){_OCTET}(?:\.{_OCTET}){{3}}(?![\w-]|\.\d|\s?[項節章条号版])", re.A)
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:)[0-9A-Fa-f:]{4,39}(?![\w:])", re.A)
_VERSION = re.compile(
    r"(?:\b(?:v|ver|version|versions|release|releases|released|rel|rev|revision|build|patch|firmware|upgrade[ds]?|updated?|"
    r"kernel|driver|sdk|api|python|java|ruby|chrome|firefox|windows|android|ios|linux|package|from|to"
    r"|sections?|sec|chapters?|clauses?|articles?|paragraphs?|para|tables?|figures?|fig)\.?|バージョン|版|第|§"
    r"|[=<>~^/@])[\s:]{0,2}$",
    re.I,
)
_CARD = re.compile(r"(?<![\d.,/-])\d(?:[ -]?\d){12,18}(?![\d.,/-]*\d)")
_ISSUER = re.compile(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|3(?:0|6|8|9|5)|6(?:011|4[4-9]|5|2)")
_PHONE = re.compile(r"(?<![\w.,+/-])(?:\+\s?|\(?\d)[\d(](?:[\s().\-‐–/]{0,2}\d){5,14}(?![\w-]|[.,/]\d)", re.A)
_DATE = re.compile(
    r"(?:1[89]|20)\d\d[-/.\s]\d{1,2}[-/.\s]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:1[89]|20)\d\d|(?:1[89]|20)\d\d\s?[-–/]\s?(?:1[89]|20)\d\d"
)
_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----[\s\S]{0,8000}?-----END (?:[A-Z]+ )?PRIVATE KEY-----"
    r"|(?<![A-Za-z0-9_-])(?:"
    r"A[KS]IA[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}"
    r"|AIza[\w-]{35}"  # Google
    r"|xox[abeprs]-[\w-]{10,}"  # Slack
    r"|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|[rs]k_live_[A-Za-z0-9]{20,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,}"  # JSON Web Token
    r")(?![A-Za-z0-9_])",
    re.A,
)
# Where a number without + is read: the countries of a language, the larger ones
REGIONS: dict[str, tuple[str, ...]] = {
    "en": ("US", "GB"), "ja": ("JP",), "zh": ("CN", "TW"), "ko": ("KR",), "de": ("DE", "AT"), "fr": ("FR",),
    "es": ("ES", "MX"), "it": ("IT",), "pt": ("BR", "PT"), "ru": ("RU",), "nl": ("NL",), "pl": ("PL",), "tr": ("TR",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scrub:
    """Which kinds are replaced."""

    name: ClassVar[str] = "scrub"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("phonenumbers",)
    rewrites: ClassVar[Rewrites] = "text"

    kinds: tuple[Kind, ...] = KINDS

    def build(self) -> Apply:
        finders: dict[str, Callable[[str, str], Iterator[Span]]] = {
            "key": lambda text, _: (match.span() for match in _KEY.finditer(text)),
            "email": lambda text, _: emails(text),
            "card": lambda text, _: cards(text),
            "ip": lambda text, _: addresses(text),
        }
        if "phone" in self.kinds:
            library = need("phonenumbers", "phonenumbers", "scrub.kinds: phone")
            finders["phone"] = lambda text, lang: phones(text, lang, library)
        wanted = [(kind, finders[kind]) for kind in KINDS if kind in self.kinds]

        def apply(document: Document) -> Result:
            found: list[tuple[int, int, str]] = []
            for kind, finder in wanted:
                for start, end in finder(document.text, document.lang):
                    if all(end <= s or e <= start for s, e, _ in found):
                        found.append((start, end, kind))
            if not found:
                return document, []
            pieces, rows, at = [], [], 0
            for start, end, kind in sorted(found):
                pieces += [document.text[at:start], f"<{kind}>"]
                rows.append(Dropped(document.id, f"scrub_{kind}", 1.0, 0.0, f"<{kind}>", start, end))
                at = end
            return replace(document, text="".join([*pieces, document.text[at:]])), rows

        return apply


def emails(text: str) -> Iterator[Span]:
    """Spans of e-mail addresses."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield match.span()


def addresses(text: str) -> Iterator[Span]:
    """Spans of public IP addresses that are not version numbers."""
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                public = ipaddress.ip_address(match.group()).is_global
            except ValueError:
                continue
            if public and not _VERSION.search(text[max(0, match.start() - 24) : match.start()]):
                yield match.span()


def cards(text: str) -> Iterator[Span]:
    """Spans of payment card numbers: a known issuer's beginning and a check digit that holds."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if _ISSUER.match(digits) and luhn(digits):
            yield match.span()


def luhn(digits: str) -> bool:
    """Whether the check digit holds: every second digit from the right doubled, the sum divisible by ten."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def phones(text: str, lang: str, library: Any) -> Iterator[Span]:
    """Spans of phone numbers that are valid somewhere the language is spoken, or anywhere with a leading +."""
    for match in _PHONE.finditer(text):
        written = match.group()
        if written.isdigit() or _DATE.search(written):
            continue
        if any(
            _valid(written, region, library) for region in ((None,) if written[0] == "+" else REGIONS.get(lang, ()))
        ):
            yield match.span()


def _valid(written: str, region: str | None, library: Any) -> bool:
    try:
        return library.is_valid_number(library.parse(written, region))
    except library.NumberParseException:
        return False
