"""Contamination: planted copies are found, templates and short items are not counted, figures say what they mean."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tokenizers

from sekkei.core import atomic
from sekkei.data.shards import Writer
from sekkei.evals.local import LocalBackend, own_model
from sekkei.evals.outcome import Outcome, figures, from_json, mean, ratio
from sekkei.evals.overlap import overlap
from sekkei.evals.suite import Subject, with_overlap
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Usage
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.text.tokenizer import TokenizerConfig, train_tokenizer
from sekkei.tools.statistics import wilson

WORDS = [f"word{number}" for number in range(5000)]


def text(rng: random.Random, count: int) -> str:
    return " ".join(rng.sample(WORDS, count))


def test_planted_copies_are_found_and_nothing_else() -> None:
    rng = random.Random(0)
    items = [(text(rng, 40),) for _ in range(50)]
    documents = [text(rng, 300) for _ in range(20)]
    copied = [3, 17, 41]
    for place in copied:
        piece = " ".join(items[place][0].split()[10:24]).upper().replace(" ", ",  ", 3)  # case and commas do not matter
        documents.append(f"{text(rng, 50)} {piece} {text(rng, 50)}")
    documents.append(" ".join(items[5][0].split()[:12]))  # one word short of n
    found = overlap(items, documents, "test")
    assert found["places"] == copied
    assert (found["overlapping"], found["share"]) == (3, 3 / 50)
    assert (found["low"], found["high"]) == wilson(3, 50)
    assert found["examples"][0]["words"].split()[0] in items[3][0].split()


def test_templates_and_short_items_do_not_count() -> None:
    rng = random.Random(1)
    template = text(rng, 20)
    items = [(f"{template} {text(rng, 5)}",) for _ in range(3)] + [("too short to tell",), (text(rng, 9),)]
    found = overlap(items, [template, items[-1][0], items[-2][0]], "test")
    assert found["places"] == [4]  # nine words are matched as a whole
    assert found["too_short"] == 1


def test_scripts_without_spaces_are_compared_by_character() -> None:
    sentence = (
        "その朝、庭は静かで、古い地図がどこへ行ったのか誰も知りませんでした。だから皆で夕方まで庭の隅々を探しました。"
    )
    assert overlap([(sentence,)], [f"前置き。{sentence}後書き。"], "test")["overlapping"] == 1
    assert overlap([(sentence,)], ["その朝、庭は静かで、古い地図がどこへ行ったのか"], "test")["overlapping"] == 0


def test_a_run_is_searched_whole(tmp_path: Path) -> None:
    """Documents of the house and of the user's own sources, and files of tuning; what is not at hand is named."""
    rng = random.Random(2)
    items = [(text(rng, 20),) for _ in range(4)]
    tokenizer = train_tokenizer([" ".join(WORDS)], TokenizerConfig(vocab_size=300))
    with atomic.new_folder(tmp_path / "tokens" / "shards") as folder:
        writer = Writer(folder, tokenizer.vocab_size)
        for domain, said in (("docs", text(rng, 30)), ("web", items[0][0])):  # web: of data.sources
            writer.write(f"{domain}.train", [[tokenizer.bos_id, *tokenizer.encode(said), tokenizer.end_id]])
            writer.write(f"{domain}.heldout", [[tokenizer.bos_id, *tokenizer.encode(items[3][0]), tokenizer.end_id]])
        writer.close()
    talks, sums = tmp_path / "talks.jsonl", tmp_path / "sums.jsonl"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": items[1][0]}]
    talks.write_text(json.dumps({"messages": turns}) + "\n")
    sums.write_text(json.dumps({"question": items[2][0], "answer": "#### 1"}) + "\n")
    tune = {"rl": {"start": "sft", "path": str(sums), "grpo": {}}, "more": {"sft": {"path": "hub:some/talks"}}}
    recipe = {"imported": "checkpoint", "sft": {"path": str(talks)}, "tune": tune}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    config = ModelConfig(hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, intermediate_size=8, vocab_size=300)
    outcome = Outcome(task="t", items=4, figures={}, usage=Usage(0, 0), texts=items)

    def found(stage: str) -> dict:
        inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
        local = own_model("m", build(config, 0), tokenizer, inner, chats=True, stage=stage, run_dir=tmp_path)
        with LLM(LocalBackend(local)) as llm:
            return dict(with_overlap(outcome, Subject(llm=llm, local=local)).overlap)

    tokenizer.save(tmp_path / "tokenizer")
    assert found("pretrain.long")["places"] == [0]
    tuned = found("sft")
    assert tuned["places"] == [0, 1, 2]
    assert tuned["against"] == (
        f"{tmp_path}: pretraining documents, {talks}, {sums} "
        "(not searched: hub:some/talks, what the imported checkpoint was trained on)"
    )
    talks.unlink()
    assert found("sft")["overlap"] == "unknown"
    assert "talks.jsonl: no such file" in found("sft")["why"]


def test_means_have_the_interval_that_fits() -> None:
    shares = mean([1.0, 0.0, 0.0, 1.0])
    assert (shares.low, shares.high) == wilson(2, 4)
    parts = mean([0.5] * 30 + [0.25] * 30)
    assert parts.low is not None
    assert parts.high is not None
    assert parts.low < 0.375 < parts.high
    assert mean([0.5, 0.25]).low is None  # too few to resample
    assert ratio([1.0, 2.0], [4.0, 4.0]).value == 3 / 8


def test_an_outcome_survives_its_file() -> None:
    outcome = Outcome(
        task="t", items=2, figures={"b.16": mean([1.0, 0.0]), "b.8": mean([0.5, 0.25])}, usage=Usage(3, 4, True),
        scores={"b.16": [1.0, 0.0]}, texts=[("a",), ("b",)], notes=["n"],
    )  # fmt: skip
    back = from_json(outcome.as_json())
    assert back.as_json() == outcome.as_json()
    assert back.usage == outcome.usage
    assert [name for name, _ in back.ordered()] == ["b.8", "b.16"]
    assert figures([outcome])["eval.t.b.16"] == 0.5
    assert figures([outcome])["eval.t.b.16.low"] == wilson(1, 2)[0]
