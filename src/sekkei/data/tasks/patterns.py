"""Symbol mappings that nothing but the context explains: text that rewards learning in context.

    K -> red
    T -> blue
    K -> red
    B -> green
    T -> blue          <- predictable, because the mapping was shown above and is drawn anew for each document

Labels are dealt out evenly over the keys of a document, so the label of a line says little about the next one's.
Probes ask the same of a model: `shots` lines, then a key that stands among them. Key sets are divided by hash: a set
of keys that a probe uses never forms a document. With 0 shots there is nothing to go on (chance = 1 / labels), with
1 shot the label only has to be copied, from 2 on it has to be looked up.
Documents of this kind, and recitals (recitals.py), are what induction heads feed on (Olsson et al. 2022, In-context
Learning and Induction Heads; Chan et al. 2022, Data Distributional Properties Drive Emergent In-Context Learning).

What it does not handle: noise in the mapping, keys of several words, labels that depend on a rule.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.tasks import held_out

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_PROBE_PERCENT = 10  # share of all key sets that is kept for probes
_MAX_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class PatternConfig:
    """How documents and probes look.

    Args:
        keys: "letters" (single capitals, one token each) or "words" (made-up words of two syllables).
        labels: the fixed label set; single common words, so that a tokenizer holds " red" as one token.
        min_keys, max_keys: how many keys a document's mapping has.
        min_repeats, max_repeats: a document has this many lines per key on average (at least 2).
    """

    keys: Literal["letters", "words"] = "letters"
    labels: tuple[str, ...] = ("red", "blue", "green", "black")
    min_keys: int = 3
    max_keys: int = 6
    min_repeats: int = 3
    max_repeats: int = 5

    def __post_init__(self) -> None:
        if len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels):
            raise ConfigError("labels", f"{list(self.labels)} must be at least two different words")
        for label in self.labels:
            if not label.isalpha():
                raise ConfigError("labels", f"{label!r} must be a single word of letters")
        if not 2 <= self.min_keys <= self.max_keys <= 20:
            raise ConfigError("min_keys", f"2 <= min_keys={self.min_keys} <= max_keys={self.max_keys} <= 20 must hold")
        if not 2 <= self.min_repeats <= self.max_repeats:
            raise ConfigError(
                "min_repeats", f"2 <= min_repeats={self.min_repeats} <= max_repeats={self.max_repeats} must hold"
            )


def pattern_document(rng: random.Random, config: PatternConfig) -> str:
    """One document: a fresh mapping, listed with repeats, one "key -> label" per line."""
    mapping = _mapping(rng, rng.randint(config.min_keys, config.max_keys), config, probe=False)
    keys = list(mapping)
    count = len(keys) * rng.randint(config.min_repeats, config.max_repeats)
    lines = keys + [rng.choice(keys) for _ in range(count - len(keys))]
    rng.shuffle(lines)
    return "".join(f"{key} -> {mapping[key]}\n" for key in lines)


def pattern_probe(rng: random.Random, shots: int, config: PatternConfig) -> tuple[str, str, list[str]]:
    """One held-out question: (prompt ending in "key ->", the right continuation, all continuations to compare).

    Continuations carry their leading space (" red"). Of `shots` lines as many as possible have different keys.

    Raises:
        UserError: `shots` is negative.
    """
    if shots < 0:
        raise UserError(f"shots: got {shots}, must be 0 or more")
    mapping = _mapping(rng, rng.randint(config.min_keys, config.max_keys), config, probe=True)
    keys = list(mapping)
    shown = keys[:shots] + [rng.choice(keys) for _ in range(shots - len(keys))]
    rng.shuffle(shown)
    query = rng.choice(sorted(set(shown)) if shown else keys)
    lines = "".join(f"{key} -> {mapping[key]}\n" for key in shown)
    return f"{lines}{query} ->", f" {mapping[query]}", [f" {label}" for label in config.labels]


def words(config: PatternConfig) -> tuple[str, ...]:
    """Pieces that a tokenizer should hold as single tokens (made-up words are left to its pieces)."""
    letters = LETTERS if config.keys == "letters" else ()
    return (" ->", "\n", *(f" {label}" for label in config.labels), *letters)


def _mapping(rng: random.Random, size: int, config: PatternConfig, *, probe: bool) -> dict[str, str]:
    """`size` keys in random order with evenly dealt labels, from the probes' or the documents' key sets."""
    for _ in range(_MAX_DRAWS):
        keys = _draw_keys(rng, size, config)
        if held_out("pattern keys", " ".join(sorted(keys)), _PROBE_PERCENT) == probe:
            break
    else:
        raise UserError(f"min_keys={config.min_keys}: no {'probe' if probe else 'document'} has such a key set")
    deals: list[str] = []
    while len(deals) < size:
        deals += rng.sample(config.labels, len(config.labels))
    return dict(zip(keys, deals))


def _draw_keys(rng: random.Random, size: int, config: PatternConfig) -> list[str]:
    if config.keys == "letters":
        return rng.sample(LETTERS, size)
    keys: dict[str, None] = {}
    while len(keys) < size:
        keys["".join(rng.choice(part) for part in (_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS))] = None
    return list(keys)
