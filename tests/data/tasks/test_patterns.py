"""Symbol mappings: consistent inside a document, new in each, answerable from the shots and from nothing else."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.tasks.patterns import (
    PatternConfig,
    pattern_document,
    pattern_probe,
    words,
)

CONFIGS = {kind: PatternConfig(keys=kind) for kind in ("letters", "words")}  # type: ignore[arg-type]


def _pairs(text: str) -> list[tuple[str, str]]:
    return [tuple(line.split(" -> ")) for line in text.splitlines() if " -> " in line]  # type: ignore[misc]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(sorted(CONFIGS)))
def test_a_document_shows_one_mapping_with_repeats(seed: int, kind: str):
    config = CONFIGS[kind]
    text = pattern_document(random.Random(seed), config)
    pairs = _pairs(text)
    mapping = dict(pairs)
    assert text.endswith("\n")
    assert len(pairs) == text.count("\n")
    assert all(mapping[key] == label for key, label in pairs)
    assert config.min_keys <= len(mapping) <= config.max_keys
    assert config.min_repeats <= len(pairs) / len(mapping) <= config.max_repeats
    shares = Counter(mapping.values())
    assert max(shares.values()) - min(shares[label] for label in config.labels) <= 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), shots=st.integers(0, 8), kind=st.sampled_from(sorted(CONFIGS)))
def test_a_probe_can_be_answered_from_its_shots(seed: int, shots: int, kind: str):
    prompt, answer, choices = pattern_probe(random.Random(seed), shots, CONFIGS[kind])
    *lines, query = prompt.split("\n")
    assert len(lines) == shots
    assert query.endswith(" ->")
    assert answer in choices
    assert choices == [f" {label}" for label in CONFIGS[kind].labels]
    if shots:
        assert f" {dict(_pairs(prompt))[query.removesuffix(' ->')]}" == answer
    if shots > 1:
        assert len({label for _, label in _pairs(prompt)}) > 1


def test_copying_the_last_label_does_not_solve_probes():
    rng = random.Random(0)
    right = 0
    for _ in range(600):
        prompt, answer, _ = pattern_probe(rng, 8, CONFIGS["letters"])
        right += f" {_pairs(prompt)[-1][1]}" == answer
    assert right / 600 < 0.4


def test_probes_and_documents_share_no_set_of_keys():
    config = PatternConfig(min_keys=2, max_keys=2)  # 325 pairs of letters: they would meet at once
    rng = random.Random(0)
    documents = {frozenset(dict(_pairs(pattern_document(rng, config)))) for _ in range(500)}
    probes = {frozenset(dict(_pairs(pattern_probe(rng, 8, config)[0]))) for _ in range(500)}
    assert not documents & probes
    assert len(documents) > 200
    assert len(probes) > 20


def test_the_same_seed_gives_the_same_text():
    texts = [pattern_document(random.Random(seed), CONFIGS["words"]) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_words_lists_what_a_document_is_made_of():
    assert {" ->", " red", "A"} <= set(words(CONFIGS["letters"]))
    assert "A" not in words(CONFIGS["words"])


def test_a_config_that_cannot_be_is_refused():
    for wrong, key in (
        ({"labels": ("red",)}, "labels"),
        ({"labels": ("red", "red")}, "labels"),
        ({"labels": ("red", "dark red")}, "labels"),
        ({"min_keys": 7}, "min_keys"),
        ({"min_repeats": 1}, "min_repeats"),
    ):
        with pytest.raises(ConfigError, match=f"^{key}: "):
            PatternConfig(**wrong)
    with pytest.raises(UserError, match="shots: got -1"):
        pattern_probe(random.Random(0), -1, CONFIGS["letters"])
