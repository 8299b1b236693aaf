"""The language block: names each text's language, and keeps the wanted ones that are sure enough.

Detection is `text.language` (naive Bayes over byte n-grams, model inside a wheel). The threshold may differ per
language: a detector is less sure of languages with close relatives (`thresholds: {nb: 0.3}`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from sekkei.core.errors import ConfigError
from sekkei.text import language
from sekkei.text.blocks.block import Apply, Result, Rewrites
from sekkei.text.document import Document, drop


@dataclass(frozen=True, kw_only=True)
class Language:
    """Which languages stay.

    Args:
        keep: ISO 639-1 codes; empty keeps every language.
        min_probability: of the detected language, in [0, 1] (FineWeb uses 0.65 with another detector).
        thresholds: another minimum for a language.
        sample_chars: how much of the beginning is looked at.
    """

    name: ClassVar[str] = "language"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("py3langid",)
    rewrites: ClassVar[Rewrites] = "labels"

    keep: tuple[str, ...] = ()
    min_probability: float = 0.65
    thresholds: dict[str, float] = field(default_factory=dict)
    sample_chars: int = 2048

    def __post_init__(self) -> None:
        known = language.known_languages() if self.keep or self.thresholds else ()
        for key, codes in (("keep", self.keep), ("thresholds", tuple(self.thresholds))):
            for code in codes:
                if code not in known:
                    raise ConfigError(key, f"{code!r} is not one of {', '.join(known)}")
        for key, value in (("min_probability", self.min_probability), *self.thresholds.items()):
            if not 0 <= value <= 1:
                raise ConfigError(key, f"{value} must lie in 0 … 1")
        if self.sample_chars < 1:
            raise ConfigError("sample_chars", f"{self.sample_chars} must be at least 1")

    def build(self) -> Apply:
        def apply(document: Document) -> Result:
            lang, probability = language.detect(document.text, self.sample_chars)
            limit = self.thresholds.get(lang, self.min_probability)
            if probability < limit:
                return None, [drop(document, "language_probability", probability, limit)]
            if self.keep and lang not in self.keep:
                return None, [drop(document, f"language_{lang}", probability, limit)]
            meta = {**document.meta, "language_probability": f"{probability:.3f}"}
            return replace(document, lang=lang, meta=meta), []

        return apply
