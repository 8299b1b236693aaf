"""Raw pages in, training documents and a ledger out.

    page bytes -> not_text? -> extract -> empty? -> language -> quality rules -> exact duplicate -> near duplicate
                     |                      |           |            |                |                 |
                     +----------------------+-----------+--- one ledger row each -----+-----------------+

The order is from cheap to dear, and duplicates come last so that a page is never dropped in favour of one
that is itself dropped. Each page is judged alone up to there; duplicates are judged over all pages that
are left, independently of their order. Documents come out sorted by id.

Not handled: pages in parallel processes (the embedded set takes seconds), repair of text, personal data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field

from sekkei.core.errors import ConfigError, UserError
from sekkei.text import dedup, extract, language, quality
from sekkei.text.dedup import DedupConfig
from sekkei.text.document import Document, Dropped
from sekkei.text.quality import QualityConfig

EXCERPT_CHARS = 200
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """What is kept of raw pages.

    Args:
        languages: ISO 639-1 codes to keep; empty keeps every language.
        min_language_probability: of the detected language, in [0, 1].
        skip_elements: CSS selectors of elements that are no text; the default names pydoc's tables of links.
        quality: limits of the quality rules.
        dedup: which duplicates go.
    """

    languages: tuple[str, ...] = ("en",)
    min_language_probability: float = 0.5
    skip_elements: tuple[str, ...] = ("td.extra", "td.multicolumn")
    quality: QualityConfig = field(default_factory=QualityConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.min_language_probability <= 1:
            raise ConfigError("min_language_probability", f"{self.min_language_probability} must lie in 0 … 1")
        known = language.known_languages() if self.languages else ()
        for code in self.languages:
            if code not in known:
                raise ConfigError("languages", f"{code!r} is not one of {', '.join(known)}")
        try:
            extract.extract_html("<p>a</p>", self.skip_elements)
        except ValueError as error:
            raise ConfigError("skip_elements", f"{list(self.skip_elements)} are not CSS selectors ({error})") from None


def clean(
    pages: Iterable[tuple[str, bytes]], config: CleanConfig, progress: Progress | None = None
) -> tuple[list[Document], list[Dropped]]:
    """Clean pages.

    Args:
        pages: (name, content). A name that ends in `.txt` is plain text, everything else is HTML.
        progress: called as progress(stage, done, total); total is 0 while it is unknown.
    Returns:
        documents sorted by id, with source "pages"; and one ledger row for each page that is not among
        them, sorted by id. Together they name every page once.
    Raises:
        UserError: no pages, two pages of one name, or no page was kept.
    """
    kept: dict[str, Document] = {}
    ledger: dict[str, Dropped] = {}
    reasons: Counter[tuple[str, str]] = Counter()
    total = len(pages) if isinstance(pages, Sized) else 0
    for name, data in pages:
        if name in kept or name in ledger:
            raise UserError(f"two pages are named {name!r}; give each its own name")
        outcome = _judge(name, data, config)
        if isinstance(outcome, Document):
            kept[name] = outcome
        else:
            ledger[name], key = outcome
            reasons[ledger[name].rule, key] += 1
        if progress:
            progress("filter", len(kept) + len(ledger), total)
    if not kept and not ledger:
        raise UserError(
            "there are no pages to clean; data.pages.path must name a folder with .html, .htm or .txt files"
        )
    if not kept:
        _raise_all_dropped(reasons)
    for row in _duplicates(kept, config.dedup, progress):
        ledger[row.doc_id] = row
        del kept[row.doc_id]
    return [kept[name] for name in sorted(kept)], [ledger[name] for name in sorted(ledger)]


def _judge(name: str, data: bytes, config: CleanConfig) -> Document | tuple[Dropped, str]:
    """A document, or the ledger row and the recipe key that would let the page pass."""
    raw = extract.decode(data)
    share = extract.control_share(raw)
    if share > extract.MAX_CONTROL_SHARE:
        return _dropped(name, "not_text", share, extract.MAX_CONTROL_SHARE, ""), "data.pages.path"
    plain = name.lower().endswith(".txt")
    text = extract.tidy(raw) if plain else extract.extract_html(raw, config.skip_elements)
    if not text.strip():
        return _dropped(name, "empty", 0, 1, ""), "data.pages.path"
    lang, probability = language.detect(text)
    if probability < config.min_language_probability:
        row = _dropped(name, "language_probability", probability, config.min_language_probability, text)
        return row, "min_language_probability"
    if config.languages and lang not in config.languages:
        return _dropped(name, f"language_{lang}", probability, config.min_language_probability, text), "languages"
    failed = quality.check(text, config.quality, lang)
    if failed:
        rule, key, value, limit = failed
        return _dropped(name, rule, value, limit, text), f"quality.{key}={limit:g}"
    return Document(id=name, text=text, source="pages", lang=lang, meta={"language_probability": f"{probability:.3f}"})


def _duplicates(kept: dict[str, Document], config: DedupConfig, progress: Progress | None) -> list[Dropped]:
    """Ledger rows of exact duplicates, then of near duplicates among the rest."""
    rows: list[Dropped] = []
    if config.exact:
        ids = sorted(kept)
        found = dedup.exact_duplicates(ids, [kept[i].text for i in ids])
        rows += [Dropped(ids[i], "exact_duplicate", 1.0, 1.0, ids[k]) for i, k in sorted(found.items())]
    if config.near:
        gone = {row.doc_id for row in rows}
        ids = [i for i in sorted(kept) if i not in gone]
        report = (lambda done, total: progress("near duplicates", done, total)) if progress else None
        near = dedup.near_duplicates(ids, [kept[i].text for i in ids], config, report)
        limit = config.threshold
        rows += [Dropped(ids[i], "near_duplicate", value, limit, ids[k]) for i, (k, value) in sorted(near.items())]
    return rows


def _dropped(name: str, rule: str, value: float, threshold: float, text: str) -> Dropped:
    excerpt = text[:EXCERPT_CHARS]
    return Dropped(name, rule, float(value), float(threshold), excerpt, 0, len(excerpt))


def _raise_all_dropped(reasons: Counter[tuple[str, str]]) -> None:
    (rule, key), count = reasons.most_common(1)[0]
    what = f"all {reasons.total()} pages were dropped, {count} of them by the rule {rule!r}"
    if key == "data.pages.path":
        raise UserError(f"{what}; data.pages.path must name a folder of HTML or text pages")
    raise UserError(f"{what}; change data.clean.{key}, or give other pages")
