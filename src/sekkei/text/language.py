"""Which language a text is in, by the naive Bayes model that ships inside the `py3langid` wheel.

Lui and Baldwin 2012, "langid.py": byte n-grams of length 1–4 chosen by information gain, multinomial
naive Bayes over 97 languages. No download, no network. The score is normalised to a probability
with a temperature of sqrt(bytes), as the library does.

Not handled: texts in several languages (the larger part wins), and texts of a few words, whose
probability is low; source code is told apart from prose by nothing here.
"""

from __future__ import annotations

import functools

from py3langid.langid import MODEL_FILE, LanguageIdentifier

# The beginning decides: the walk over the bytes is pure Python, and the answer does not change after this.
SAMPLE_CHARS = 8192


@functools.cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)  # a name inside the wheel


def known_languages() -> tuple[str, ...]:
    """ISO 639-1 codes that `detect` can answer, sorted."""
    return tuple(sorted(_identifier().labels))


def detect(text: str, sample_chars: int = SAMPLE_CHARS) -> tuple[str, float]:
    """(language code, probability in [0, 1]) of a non-empty text, by its first `sample_chars` characters."""
    lang, probability = _identifier().classify(text[:sample_chars])
    return lang, float(probability)
