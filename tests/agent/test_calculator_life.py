"""The calculator's protocol: demonstrations equal what the loop says, and a small model that learned them uses it."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sekkei.agent import builtin
from sekkei.agent.exam import calculator_exam, held_out_tasks
from sekkei.agent.loop import Agent, AgentConfig
from sekkei.cli import main
from sekkei.core.errors import ConfigError, UserError
from sekkei.data.tasks import calculator, held_out
from sekkei.data.tasks.calculator import KINDS, CalculatorConfig, CalculatorTask
from sekkei.llm import LLM, Call
from sekkei.llm.open import open_llm
from sekkei.llm.scripted import Scripted
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.stages.model_artifact import save_model
from sekkei.text.chat import encode_chat
from sekkei.text.tokenizer import TokenizerConfig, train_tokenizer

CONFIG = CalculatorConfig()
BY_HEART = [
    CalculatorTask("then", "Multiply 34 by 21, then add 5 to the result.", (("34 * 21",), ("714 + 5",)), "719"),
    CalculatorTask("both", "Compute 2 + 3 and 4 * 50.", (("2 + 3", "4 * 50"),), "5 and 200"),
]


def tasks_of(split: str, count: int, seed: int = 0) -> list[CalculatorTask]:
    rng = random.Random(seed)
    return [calculator.sample_task(rng, split, CONFIG) for _ in range(count)]  # type: ignore[arg-type]


def student(*tasks: CalculatorTask) -> LLM:
    """A model that says what the demonstrations of `tasks` say, and only after exactly the same conversation."""
    known = [calculator.demonstration(task) for task in tasks]

    def reply(call: Call) -> str:
        said = [dict(message) for message in call.messages]
        if said[-1] == {"role": "assistant", "content": "answer:"}:
            return " 0"  # by heart it knows nothing
        for messages in known:
            if messages[: len(said)] == said:
                return messages[len(said)]["content"]
        raise AssertionError(f"no demonstration begins with {said}")

    return LLM(Scripted(reply))


def test_demonstrations_are_what_the_loop_says() -> None:
    tasks = tasks_of("train", 60)
    assert {task.kind for task in tasks} == set(KINDS)
    for task in tasks:
        agent = Agent(student(task), [builtin.calculator()], AgentConfig(protocol="trained"))
        outcome = agent.run(task.question)
        assert (outcome.stopped, outcome.failed) == ("answer", 0)
        assert list(outcome.messages) == calculator.demonstration(task)
        assert calculator.verify(task, outcome.answer)


def test_the_two_sides_of_the_split_never_meet() -> None:
    train, test = ({task.question for task in tasks_of(side, 400)} for side in ("train", "test"))
    assert train & test == set()
    assert all(held_out("calculator", question, CONFIG.held_out_percent) for question in test)
    assert tasks_of("train", 20) == tasks_of("train", 20) != tasks_of("train", 20, seed=1)


def test_only_the_right_answer_at_the_end_counts() -> None:
    task = CalculatorTask("both", "Compute 2 + 3 and 4 * 5.", (("2 + 3", "4 * 5"),), "5 and 20")
    assert calculator.verify(task, "answer: 5 and 20")
    for wrong in ("answer: 5", "answer: 20 and 5", "5 and 20", "answer: 5 and 20 or so", "answer: 15 and 20", ""):
        assert not calculator.verify(task, wrong)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_number: got 3"):
        CalculatorConfig(max_number=3)
    with pytest.raises(UserError, match="kind: got 'sums'"):
        calculator.sample_task(random.Random(0), "train", CONFIG, "sums")
    with pytest.raises(UserError, match="at least one task"):
        calculator_exam(student(), [])


def test_the_exam_counts_what_happened() -> None:
    tasks = held_out_tasks(CONFIG, 10, seed=4)
    assert [task.kind for task in tasks] == [*KINDS, *KINDS]
    wrong = dataclasses.replace(tasks[0], answer="1")  # its student answers 1, whatever the calculator says
    pupils = student(wrong, *tasks[1:])
    figures, outcomes = calculator_exam(pupils, tasks, AgentConfig(protocol="trained"))
    assert figures["success"] == 0.9
    assert (figures["success.written"], figures["success.then"]) == (0.5, 1.0)
    assert (figures["called"], figures["failed"], figures["without"]) == (1.0, 0.0, 0.0)
    assert [run.calls for run in outcomes] == [sum(map(len, task.turns)) for task in tasks]


def learned(tasks: Sequence[CalculatorTask], steps: int, hidden: int, folder: Path) -> Path:
    """A run folder whose model was trained on demonstrations of `tasks`, by the house's own chat template."""
    talks = [calculator.demonstration(task) for task in tasks]
    texts = [message["content"] for talk in talks for message in talk]
    tokenizer = train_tokenizer(texts * 20, TokenizerConfig(vocab_size=320))
    tokenizer.save(folder / "tokenizer")
    (folder / "recipe.yaml").write_text("name: tiny\npretrain: {general: {}}\nsft: {}\n")
    rendered = [encode_chat(tokenizer, talk) for talk in talks]
    width = max(len(one.ids) for one in rendered) - 1
    ids, labels = torch.zeros(len(talks), width, dtype=torch.int64), torch.full((len(talks), width), -100)
    for row, one in enumerate(rendered):
        count = len(one.ids) - 1
        ids[row, :count] = torch.tensor(one.ids[:-1])
        labels[row, :count] = torch.tensor([i if flag else -100 for i, flag in zip(one.ids[1:], one.learned[1:])])
    config = ModelConfig(
        hidden_size=hidden, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=2 * hidden,
        vocab_size=tokenizer.vocab_size, max_context=256, qk_norm=True,
    )  # fmt: skip
    model, rng = build(config, 0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(talks), (min(32, len(talks)),), generator=rng)
        positions = torch.arange(width).expand(len(rows), -1)
        scores = model.logits(model.hidden(ids[rows], positions, DenseAttend(None)))
        torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels[rows].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, folder / "sft" / "model")
    (folder / "sft" / "done.json").write_text(json.dumps({"key": "k"}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows two questions by heart: one with two calls in turn, one with two at once."""
    return learned(BY_HEART, 120, 64, tmp_path_factory.mktemp("agent") / "tiny")


def test_our_own_model_uses_the_calculator_through_its_chat_template(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in BY_HEART:
        trace = tmp_path / f"{task.kind}.jsonl"
        code = main(["agent", task.question, "--model", str(run), "--max-tokens", "64", "--trace", str(trace)])
        captured = capsys.readouterr()
        assert (code, captured.out) == (0, f"answer: {task.answer}\n"), captured.err
        assert f"calculator({json.dumps({'expression': task.turns[0][0]})}) ok:" in captured.err
        events = [json.loads(line) for line in trace.read_text().splitlines()]
        assert events[0]["protocol"] == "trained"
        assert sum(event["event"] == "tool" for event in events) == 2
        assert main(["agent", "--replay", str(trace)]) == 0
        assert capsys.readouterr().out == f"answer: {task.answer}\n"


def test_the_exam_on_our_own_model(run: Path) -> None:
    with open_llm(str(run)) as llm:
        figures, _ = calculator_exam(llm, BY_HEART)
        assert (figures["success"], figures["called"], figures["failed"]) == (1.0, 1.0, 0.0)
        strange = held_out_tasks(CONFIG, 5, seed=1)
        assert calculator_exam(llm, strange)[0]["success"] < 1.0
