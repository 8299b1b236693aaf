"""Problems of a file through a life: asked as turns and as documents, answered by rejection sampling, under budgets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.shards import open_shards
from sekkei.engine.request import Completion, Request
from sekkei.evals import reasoning
from sekkei.recipes.recipe import load
from sekkei.stages import life
from sekkei.stages import sft as sft_stage
from sekkei.stages.problems import asker, held_out_own
from sekkei.text.document import Document, write_documents
from sekkei.text.tokenizer import Tokenizer

Call = Callable[..., tuple[int, str]]
ASKED = [{"question": f"Tom has {a} pens and buys {b}. How many?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
         for a in range(2, 6) for b in range(2, 6)]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Problems to learn from, and others to ask."""
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(one) + "\n" for one in ASKED[:12]))
    test.write_text("".join(json.dumps(one) + "\n" for one in ASKED[12:]))
    return train, test


def settings(train: Path, test: Path) -> tuple[str, ...]:
    grpo = "grpo: {steps: 1, prompts: 4, samples: 2, max_tokens: 24}"
    gate = "gate: {min_pass1_sampled: 0}"
    return (
        f"eval.path={test}",
        f"tune.zero={{start: base, form: document, path: {train}, {grpo}}}",
        f"tune.rl={{start: base, path: {train}, {grpo}}}",
        f"tune.again={{start: base, path: {train}, sft: {{steps: 2, examples: 8, {gate}, "
        "own: {stage: zero, prompts: 9, samples: 1, max_tokens: 24}}}",
        "inference.zero={study: null, budget: {budgets: [0, 8], extensions: []}}",
    )


class Solves:
    """Answers problems of the files rightly, in the form in which they are asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.asked = tokenizer, list[Request]()

    def generate(self, requests: list[Request]) -> list[list[Completion]]:
        self.asked += requests
        return [[self.answer(request)] * request.n for request in requests]

    def answer(self, request: Request) -> Completion:
        text = self.tokenizer.decode(request.prompt_ids)
        (known,) = [one for one in ASKED if one["question"] in text]
        steps, _, final = known["answer"].partition("\n#### ")
        opened = "" if text.endswith("<think>") else "<think>"
        ids = (*self.tokenizer.encode_trusted(f"{opened}{steps}</think> answer: {final}"), self.tokenizer.end_id)
        return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), finish_reason="stop", weights_hash="", seed=0)


def test_a_document_of_ones_own_is_rewarded(copy: Path, files: tuple[Path, Path]) -> None:
    tokenizer = Tokenizer.load(copy / "tokenizer")
    prompt = asker(load("smoke", settings(*files)), "zero", tokenizer)(0)
    text = tokenizer.decode(prompt.ids)
    assert text == f"<|bos|>{prompt.text}\n<think>"
    (said,) = Solves(tokenizer).generate([Request(prompt_ids=prompt.ids, sampling=reasoning.Sampling())])[0]
    assert prompt.judge(said) == {"reward": 1.0, "rewards/right": 1.0, "steps_written": 1.0}


def test_right_answers_to_a_files_problems_are_kept(
    copy: Path, files: tuple[Path, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other stage's model is asked, in its form, and that its words become conversations."""
    given = settings(*files)
    assert call("run", "smoke", *given, "--run-dir", copy, "--only", "zero")[0] == 0
    solver = Solves(Tokenizer.load(copy / "tokenizer"))
    monkeypatch.setattr(sft_stage, "SharedEngine", lambda model: solver)
    learned: list[list[dict[str, str]]] = []
    encode = sft_stage.encode_chat
    monkeypatch.setattr(
        sft_stage, "encode_chat", lambda tokenizer, talk: (learned.append(list(talk)), encode(tokenizer, talk))[1]
    )
    code, shown = call("run", "smoke", *given, "--run-dir", copy, "--only", "again")
    assert code == 0, shown
    assert "9 right answers of zero to 9 problems" in shown
    texts = [solver.tokenizer.decode(request.prompt_ids) for request in solver.asked]
    assert sum(text.endswith("\n<think>") for text in texts) == 9, "as zero is asked: a document"
    assert sum(text.endswith("<|assistant|>") for text in texts) == 12, "the gate asks the file in turns, too"
    questions = {one["question"] for one in ASKED[:12]}
    own = [talk for talk in learned if talk[0]["content"] in questions]
    assert own
    for asked, said in own:
        assert said["reasoning_content"] in [one["answer"].partition("\n")[0] for one in ASKED]
        assert said["content"].startswith(" answer: ")
        assert asked["role"] == "user"


def test_every_checkpoint_is_asked_and_budgets_are_spent_on_them(
    copy: Path, files: tuple[Path, Path], call: Call
) -> None:
    small = "eval={problems: 4, max_tokens: 24, conversations: 4, requests: 2, probes: 4, shots: [0, 1]}"
    given = (small, *settings(*files))
    for only in ("eval.base-document", "zero", "eval.zero", "inference.zero", "rl"):
        code, shown = call("run", "smoke", *given, "--run-dir", copy, "--only", only)
        assert code == 0, shown
    figures = json.loads((copy / "results.json").read_text())["figures"]
    for label in ("base-document", "zero"):
        assert {
            f"own.{label}.{name}" for name in ("pass1_greedy", "pass1_sampled", "pass8", "tokens")
        } <= figures.keys()
    rows = json.loads((copy / "inference.zero" / "budget.json").read_text())
    assert [row["budget"] for row in rows] == [0, 8]
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for stage in ("zero", "rl"):
        rollouts = [line["rollout"] for line in lines if line["stage"] == stage and "rollout" in line]
        assert rollouts
        assert all(len(answer["weights_hash"]) >= 16 for rows in rollouts for answer in rows)
        assert all("Tom has" in answer["prompt"] for rows in rollouts for answer in rows)
    before = (copy / "eval.zero" / "done.json").read_text()
    files[1].write_text(json.dumps(ASKED[12]) + "\n")
    assert call("run", "smoke", *given, "--run-dir", copy, "--only", "eval.zero")[0] == 0
    assert (copy / "eval.zero" / "done.json").read_text() != before, "other problems are another exam"


def test_what_is_asked_is_not_learned(copy: Path, files: tuple[Path, Path]) -> None:
    train, test = files
    tokenizer = Tokenizer.load(copy / "tokenizer")
    assert {one.question for one in held_out_own(load("smoke", [f"eval.path={test}"]), tokenizer, "chat")} == {
        one["question"] for one in ASKED[12:]
    }
    test.write_text("".join(json.dumps(one) + "\n" for one in ASKED[11:]))
    with pytest.raises(UserError, match=r"train\.jsonl: 1 of its questions stand in eval\.path=.*must not be learned"):
        asker(load("smoke", settings(train, test)), "rl", tokenizer)
    with pytest.raises(ConfigError, match=r"^eval\.path: got .*train\.jsonl, which tune\.zero\.path learns from"):
        load("smoke", settings(train, train))
    with pytest.raises(ConfigError, match=r"^eval\.path: is missing: inference\.zero\.budget"):
        load("smoke", settings(train, test)[1:])
    with pytest.raises(ConfigError, match=r"^tune\.pairs\.path: dpo samples no answers"):
        load("smoke", [f"tune.pairs={{start: sft, path: {train}, dpo: {{steps: 1}}}}"])
    long = test.with_name("long.jsonl")
    long.write_text(json.dumps({"question": "why " * 4000, "answer": "#### 1"}) + "\n")
    with pytest.raises(UserError, match=r"with eval\.max_tokens=\d+ it is longer than model\.max_context"):
        held_out_own(load("smoke", [f"eval.path={long}"]), tokenizer, "chat")


def test_another_verifier_is_another_exam_and_none_is_told(
    copy: Path, files: tuple[Path, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (f"eval.path={files[1]}", "eval={problems: 4, conversations: 4, requests: 2, probes: 4, shots: [0, 1]}")
    run = ("run", "smoke", *asked, "--run-dir", copy, "--only", "eval.base")
    code, shown = call(*run)
    assert code == 0, shown
    assert "math-verify is not installed" not in shown
    before = (copy / "eval.base" / "done.json").read_text()
    for module in (sft_stage, life):
        monkeypatch.setattr(module, "verifier", lambda: None)
    code, shown = call(*run)
    assert code == 0, shown
    assert "math-verify is not installed (extra `eval`): answers are equal as exact numbers only" in shown
    assert (copy / "eval.base" / "done.json").read_text() != before


@pytest.mark.parametrize("specials", [False, True])
def test_think_marks_of_a_trusted_source_are_tokens(copy: Path, tmp_path: Path, call: Call, specials: bool) -> None:
    folder = tmp_path / "told"
    folder.mkdir()
    told = [f"{one['question']}\n<think> so</think> answer: {number}" for number, one in enumerate(ASKED * 20)]
    documents = [Document(id=str(i), text=text, source="told", lang="en") for i, text in enumerate(told)]
    write_documents(folder / "documents-0.parquet", documents)
    source = f"data.sources={{told: {{path: {folder}, specials: {str(specials).lower()}}}}}"
    code, shown = call("run", "smoke", source, "--run-dir", copy, "--until", "tokens")
    assert code == 0, shown
    tokenizer = Tokenizer.load(copy / "tokenizer")
    (think,) = tokenizer.encode_trusted("<think>")
    shard = open_shards(copy / "tokens" / "shards")["told.train"]
    counts = [list(shard[i]).count(think) for i in range(len(shard))]
    assert counts == [int(specials)] * len(counts)
    assert counts
