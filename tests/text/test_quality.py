from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from sekkei.core.config import from_mapping
from sekkei.core.errors import ConfigError
from sekkei.text.quality import RULES, QualityConfig, View, check, measures

PROSE = """The lighthouse keeper woke before dawn and climbed the stairs with a lamp in one hand.
He had done so every morning for thirty years, and the stones were worn where his boots fell.

That winter the storms came early. Boats which should have been home by noon were seen at dusk,
and some of them were never seen again. The keeper wrote each name in a book, as his father had.

When the new light was built, nobody asked what would become of him. It needed no keeper to turn it.
He went on climbing, and he looked out to sea, and he was glad to be of no use to anyone at all.
"""


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def naive_duplicate(words: list[str], n: int) -> float:
    seen, covered = set(), set()
    for i, gram in enumerate(grams(words, n)):
        if gram in seen:
            covered.update(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / sum(map(len, words))


def naive_top(words: list[str], n: int) -> float:
    counts = {g: c for g, c in Counter(grams(words, n)).items() if c > 1}
    return max((sum(map(len, g)) * c for g, c in counts.items()), default=0) / sum(map(len, words))


@pytest.mark.parametrize("text", [PROSE, PROSE + PROSE[:300], "a b a b a b c a b", "one two three", "x " * 30])
def test_ngram_rules_equal_a_plain_count(text: str) -> None:
    found, words = measures(text), text.split()
    for n in range(5, 11):
        assert found[f"duplicate_{n}gram"] == pytest.approx(naive_duplicate(words, n))
    for n in (2, 3, 4):
        assert found[f"top_{n}gram"] == pytest.approx(naive_top(words, n))


def test_measures_by_hand() -> None:
    found = measures("- one two three\n- four #five 6...\n\n\nEnds well.\n- one two three\n")
    assert found["words"] == 14
    assert found["bullet_lines"] == 0.75
    assert found["ellipsis_lines"] == 0.25
    assert found["terminal_lines"] == 0.5
    assert found["short_lines"] == 1
    assert found["duplicate_lines"] == 0.25
    assert found["duplicate_line_chars"] == pytest.approx(15 / (15 + 17 + 10 + 15))
    assert found["duplicate_paragraphs"] == 0
    assert found["symbol_to_word"] == pytest.approx(1 / 14)
    assert found["alphabetic_words"] == pytest.approx(10 / 14)
    assert measures("x\n\nx\n\ny")["duplicate_paragraphs"] == pytest.approx(1 / 3)
    assert measures("lorem ipsum {a} }")["lorem_ipsum"] == 1
    assert measures("lorem ipsum {a} }")["curly_brackets"] == pytest.approx(3 / 17)


def test_prose_passes_the_papers_own_limits() -> None:
    strict = QualityConfig(
        min_alphabetic_words=0.8,
        min_terminal_lines=0.12,
        max_short_lines=0.67,
        max_duplicate_lines=0.3,
        max_duplicate_5gram=0.15,
        max_duplicate_10gram=0.10,
    )
    assert check(PROSE, QualityConfig()) is None
    assert check(PROSE, strict) is None


BAD = {
    "words": "Too short to learn from.",
    "mean_word_length": "the and " + "Donaudampfschifffahrtsgesellschaftskapitän " * 60,
    "symbol_to_word": PROSE.replace(" the ", " #1 #2 #3 #4 #5 "),
    "bullet_lines": "\n".join(f"- {line}" for line in PROSE.split("\n") if line),
    "ellipsis_lines": "\n".join(f"{line}..." for line in PROSE.split("\n") if line).replace("....", "..."),
    "alphabetic_words": "to be of use " + " ".join(str(i * 977) for i in range(90)),
    "stop_words": " ".join(f"keyword{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(90)),
    "lorem_ipsum": PROSE + "Lorem ipsum dolor sit amet.",
    "curly_brackets": PROSE.replace(" and ", "} and {") + "{}" * 30,
    "terminal_lines": PROSE.replace(".", " ;"),
    "short_lines": "\n".join(PROSE.split()),
    "duplicate_lines": PROSE * 3,
    "duplicate_paragraph_chars": PROSE + "\n\n" + PROSE.replace("\n\n", "\n").replace("a", "e", 1) * 2,
}


@pytest.mark.parametrize("rule", ["words", "mean_word_length", "symbol_to_word", "bullet_lines", "ellipsis_lines"])
def test_junk_is_refused_by_the_rule_meant_for_it(rule: str) -> None:
    failed = check(BAD[rule], QualityConfig())
    assert failed is not None
    assert failed[0] == rule
    assert failed[2] == measures(BAD[rule])[rule]


@pytest.mark.parametrize("rule", ["alphabetic_words", "stop_words", "lorem_ipsum", "curly_brackets", "short_lines"])
def test_more_junk(rule: str) -> None:
    failed = check(BAD[rule], QualityConfig())
    assert failed is not None
    assert failed[0] == rule


def test_repetition_is_refused() -> None:
    assert check(BAD["terminal_lines"], QualityConfig())[0] == "terminal_lines"
    assert check(BAD["duplicate_lines"], QualityConfig())[0] == "duplicate_lines"
    spam = "buy cheap watches from the best shop and have them with you to be happy " * 40
    assert check(spam + ".", QualityConfig())[0].startswith(("top_", "duplicate_"))


def test_each_limit_is_used_by_one_rule_and_can_be_switched_off() -> None:
    keys = [key for rule in RULES for key in (rule.low, rule.high) if key]
    assert sorted(keys) == sorted(f.name for f in dataclasses.fields(QualityConfig))
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert check(BAD["words"], QualityConfig(min_words=0, min_stop_words=0, max_short_lines=1.0)) is None


def test_unspaced_scripts_are_counted_by_character() -> None:
    japanese = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
    japanese += "書生というのは人間中で一番獰悪な種族であったそうだ。\n"
    view = View(japanese)
    assert not view.spaced
    assert len(view.words) > 50
    assert check(japanese, QualityConfig(), "ja") is None
    assert View(PROSE).spaced


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"min_words": 9, "max_words": 3}, "min_words"),
        ({"max_top_2gram": -0.1}, "max_top_2gram"),
        ({"min_word": 1}, "min_word"),
    ],
)
def test_bad_limits_name_their_key(data: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(QualityConfig, data, "data.clean.quality")
    assert caught.value.key == f"data.clean.quality.{key}"


def test_no_words_at_all() -> None:
    assert all(value == 0 for value in measures("").values())
