"""The corpus: a split that cannot leak, and generated chains that stay on the training side of the task's own split."""

from __future__ import annotations

import random
import re

import pytest

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.corpus import DataConfig, GeneratedConfig, chain_document, generated, split_documents
from sekkei.data.tasks.chain import ChainConfig, ChainProblem, count_steps, parse_answer, split_of, verify
from sekkei.text.document import Document

SMALL = DataConfig(generated=GeneratedConfig(math=60, patterns=60, recitals=20, chains=400), heldout_percent=10)
CHAINS = ChainConfig()


def documents(texts: list[str]) -> list[Document]:
    return [Document(id=str(i), text=text, source="test") for i, text in enumerate(texts)]


def problem_of(text: str) -> ChainProblem:
    question = text.partition("\n")[0]
    start, modulus = re.fullmatch(r"start at (\d+),.* modulo (\d+)", question).groups()  # type: ignore[union-attr]
    steps = tuple((word, int(n)) for word, n in re.findall(r" (add|minus|times) (\d+),", question))
    problem = ChainProblem(int(start), steps, int(modulus))
    assert problem.question == question
    return problem


def test_the_split_is_disjoint_and_a_function_of_the_text() -> None:
    given = documents([f"text number {i}" for i in range(2000)])
    train, held = split_documents(given, 10)
    assert sorted(d.id for d in (*train, *held)) == sorted(d.id for d in given)
    assert {d.text for d in train}.isdisjoint(d.text for d in held)
    assert 140 < len(held) < 260  # 10% of 2000, more than 4 standard deviations
    # another order, other ids and other neighbours change nothing
    renamed = [Document(id=f"x{d.id}", text=d.text, source="other") for d in reversed(given[:500])]
    again, held_again = split_documents(renamed, 10)
    assert {d.text for d in held_again} == {d.text for d in held} & {d.text for d in renamed}
    assert len(again) + len(held_again) == 500
    # a larger share only adds
    assert {d.text for d in held} < {d.text for d in split_documents(given, 20)[1]}


def test_equal_texts_stay_together() -> None:
    train, held = split_documents(documents(["one", "two", "one", "three", "two"] * 5), 40)
    assert {d.text for d in train}.isdisjoint(d.text for d in held)


@pytest.mark.parametrize("percent", [1, 50])
def test_neither_side_is_empty(percent: int) -> None:
    for number in range(40):
        train, held = split_documents(documents([f"{number} a", f"{number} b"]), percent)
        assert len(train) == len(held) == 1
        assert train[0].text != held[0].text


@pytest.mark.parametrize("texts", [[], ["one"]])
def test_one_document_cannot_be_split(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^data: "):
        split_documents(documents(texts), 10)


def test_generated_domains() -> None:
    domains = generated(SMALL, seed=1)
    assert set(domains) == {"math", "patterns", "chains"}
    for name, found in domains.items():
        texts = [d.text for d in found]
        assert len(set(texts)) == len(texts) == len({d.id for d in found})
        assert len(texts) > 0.9 * getattr(SMALL.generated, name)
        assert {d.source for d in found} == {name}
    assert generated(SMALL, seed=1) == domains
    other = generated(SMALL, seed=2)
    assert all({d.text for d in other[name]} != {d.text for d in domains[name]} for name in domains)


def test_chains_are_never_of_the_test_split() -> None:
    texts = [d.text for d in generated(SMALL, seed=1)["chains"] if not d.text.startswith("modulo")]
    problems = [problem_of(text) for text in texts]
    assert {split_of(problem, CHAINS) for problem in problems} == {"train"}
    assert {len(problem.operations) for problem in problems} == set(CHAINS.train_operations)
    drawn = random.Random(0)  # the assertion bites: questions drawn freely lie on both sides
    free = [ChainProblem(drawn.randrange(23), problem.operations, 23) for problem in problems]
    assert {split_of(problem, CHAINS) for problem in free} == {"train", "test"}


def test_a_chain_document_is_solved_in_the_think_format() -> None:
    styles = set()
    for number in range(60):
        text = chain_document(random.Random(derive_seed("documents", number)), CHAINS)
        if text.startswith("modulo"):
            continue  # a table, see below
        problem = problem_of(text)
        question, _, reply = text.partition("\n")
        assert re.fullmatch(r"<think>[^<]*</think> answer: \d+", reply)
        assert "<" not in question
        assert verify(problem, reply)
        assert parse_answer(reply) == problem.answer
        steps, length = count_steps(reply), len(problem.operations)
        fold = next(fold for fold in (1, 2, 3, 0) if steps == (-(-length // fold) if fold else 0))
        styles.add(fold)
    assert styles == {0, 1, 2, 3}


def test_tables_hold_right_facts_and_stand_among_the_chains() -> None:
    texts = [d.text for d in generated(SMALL, seed=1)["chains"]]
    tables = [text for text in texts if text.startswith("modulo 23:")]
    assert 0.1 < len(tables) / len(texts) < 0.3
    facts = [fact for text in tables for fact in text.removeprefix("modulo 23:").split(";")]
    for fact in facts:
        a, word, b, result = re.fullmatch(r" (\d+) (add|minus|times) (\d+) = (\d+)", fact).groups()  # type: ignore[union-attr]
        assert int(result) == {"add": int(a) + int(b), "minus": int(a) - int(b), "times": int(a) * int(b)}[word] % 23
    assert len(set(facts)) > 400


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GeneratedConfig(chains=9), "chains"),
        (lambda: DataConfig(heldout_percent=0), "heldout_percent"),
        (lambda: DataConfig(heldout_percent=51), "heldout_percent"),
        (lambda: DataConfig(facts=0), "facts"),
    ],
)
def test_bad_settings(make: object, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        make()  # type: ignore[operator]
