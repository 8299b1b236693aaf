"""The study on a scripted model whose accuracy is known, on a tiny engine, and what pages and pictures show of it."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from sekkei.core.errors import ConfigError
from sekkei.data.tasks import chain as data
from sekkei.data.tasks.chain import ChainConfig
from sekkei.engine.engine import Engine
from sekkei.llm import LLM, Call, Capabilities, LLMError, Reply
from sekkei.llm.engine import EngineBackend
from sekkei.llm.scripted import Scripted
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.prompting import scorers
from sekkei.prompting.cot import ChainOfThought
from sekkei.prompting.drawing import page, places, tree_svg
from sekkei.prompting.picture import study_svg
from sekkei.prompting.solution import Node, Solution, solve_with
from sekkei.prompting.study import (
    Entry,
    Row,
    StudyConfig,
    chain_entries,
    chain_examples,
    chain_problems,
    chain_study,
    figures,
    measure,
    rows_as_data,
    table,
    units,
)
from sekkei.prompting.tasks.chain import parse_question
from sekkei.prompting.tasks.steps import Steps
from sekkei.prompting.thoughts import Sample, Value, Vote
from sekkei.prompting.tot import SearchConfig, TreeOfThoughts
from sekkei.text.tokenizer import SPECIAL, TokenizerConfig, train_tokenizer

TASK = ChainConfig()
SMALL = StudyConfig(problems=3, operations=3, shots=(0, 2), samples=(1, 5), best_of=4, beam=2, candidates=2, pool=8)
SMALL = replace(SMALL, places=("turns",))


class Updates:
    def __init__(self) -> None:
        self.done: list[int] = []

    def update(self, done: int, text: str = "") -> None:
        self.done.append(done)


def test_rows_count_what_happened() -> None:
    """Of four questions one is right, one wrong, one unread, one right by its second sample only."""
    replies = {"a": "answer: 1", "b": "answer: 2", "c": "hm", "d": "answer: 1"}
    script = Scripted(lambda call: replies[call.messages[-1]["content"]])
    chain = ChainOfThought(form="", reasoning="no")
    bar = Updates()
    (row,) = measure(LLM(script), [Entry("x", "direct", chain)], list("abcd"), lambda _, answer: answer == "1", bar)
    assert (row.problems, row.accuracy, row.answered, row.calls) == (4, 0.5, 0.75, 1.0)
    assert (row.prompt_tokens, row.completion_tokens) == (1.0, 1.75)
    assert (row.any_of, row.top1, row.majority, row.mean) == (0.5, 0.5, 0.5, 0.5)
    assert row.low < 0.5 < row.high
    assert bar.done == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="questions"):
        measure(LLM(script), [], [], lambda _, __: True)


def test_a_failure_is_raised_as_itself() -> None:
    script = Scripted(lambda call: LLMError("refused") if call.messages[-1]["content"] == "b" else "answer: 1")
    with pytest.raises(LLMError, match="refused"):
        measure(
            LLM(script),
            [Entry("x", "direct", ChainOfThought(form="", reasoning="no"))],
            list("abc"),
            lambda _, __: True,
        )


class Knowing(Scripted):
    """A script whose replies hold log-probabilities."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, logprobs=True)


def solver(call: Call) -> list[Reply]:
    """Plays a trained model: right with its steps written, wrong without; every second sample is wrong."""
    last = call.messages[-1]
    count = call.settings.n
    if last["role"] == "assistant":
        problem = parse_question(call.messages[-2]["content"])
        done = last["reasoning_content"].count(";")
        line = data.reasoning(problem, "every").split(";")[done]
        return [Reply(text="", thinking=line)] * count
    problem = parse_question(last["content"])
    wrong = Reply(text=f" answer: {(problem.answer + 1) % problem.modulus}", logprobs=(("x", -2.0),))
    right = Reply(text=data.answer_text(problem), thinking="…", logprobs=(("x", -1.0),))
    if not call.settings.thinking:
        return [wrong] * count
    if call.settings.temperature == 0:
        return [right]
    return [wrong if i % 2 else right for i in range(count)]


def test_the_study_of_a_model_that_needs_its_steps() -> None:
    script = Knowing(solver, scorer=lambda _, __: -0.1)
    bar = Updates()
    config = replace(SMALL, samples=(1, 4, 5))
    rows = {row.key: row for row in chain_study(LLM(script), TASK, config, bar=bar)}
    assert rows["direct.shots0"].accuracy == rows["direct.shots2"].accuracy == 0.0
    assert rows["cot.shots0"].accuracy == rows["cot.shots2"].accuracy == 1.0
    assert rows["cot.shots2"].prompt_tokens > rows["cot.shots0"].prompt_tokens
    five = rows["self_consistency.k5"]
    assert (five.accuracy, five.any_of, five.top1, five.mean) == (1.0, 1.0, 1.0, pytest.approx(0.6))
    assert rows["best_of.likelihood.n4"].accuracy == 1.0
    assert rows["tot.bfs"].accuracy == rows["tot.dfs"].accuracy == 1.0
    assert rows["tot.bfs"].calls > rows["tot.dfs"].calls - 1 > 3
    assert bar.done[-1] == units(config) == len(rows) * config.problems
    shown = [call for call in script.calls if len(call.messages) == 5]
    assert {call.messages[1].get("reasoning_content") == "" for call in shown} == {True, False}


def test_a_reward_model_is_a_row_of_its_own() -> None:
    script = Knowing(solver, scorer=lambda _, __: -0.1)
    worst = scorers.reward(
        lambda question, reply: -float(str(parse_question(question).answer) == reply.text.split()[-1])
    )
    rows = {row.key: row for row in chain_study(LLM(script), TASK, SMALL, scorer=worst, scorer_name="contrary")}
    assert (rows["best_of.contrary.n4"].accuracy, rows["best_of.contrary.n4"].any_of) == (0.0, 1.0)
    assert len(rows) * SMALL.problems == units(SMALL, with_scorer=True)


def test_examples_stand_where_they_are_put() -> None:
    config = replace(SMALL, places=("turns", "system", "user"))
    entries = {entry.key: entry for entry in chain_entries(config, chain_examples(TASK, config))}
    assert [key for key in entries if key.startswith("cot")] == [
        *("cot.shots0", "cot.shots2", "cot.system.shots2", "cot.user.shots2"),
    ]
    asked = {key: entries[key].strategy.messages("start at 1, add 2, modulo 23") for key in entries if "cot" in key}  # type: ignore[attr-defined]
    assert [message["role"] for message in asked["cot.system.shots2"]] == ["system", "user"]
    (only,) = asked["cot.user.shots2"]
    assert only["content"] == f"{asked['cot.system.shots2'][0]['content']}\n\nstart at 1, add 2, modulo 23"
    blocks = only["content"].split("\n\n")
    shown = [message["content"] for message in asked["cot.shots2"][:-1]]
    assert [block.split("\n")[0] for block in blocks[:-1]] == shown[::2]
    assert [block.split("\n")[-1] for block in blocks[:-1]] == [answer.strip() for answer in shown[1::2]]
    assert all(block.split("\n")[1].count("=") == 3 for block in blocks[:-1])
    assert len(entries) * config.problems == units(config)
    with pytest.raises(ConfigError, match="places"):
        StudyConfig(places=("user", "user"))


def test_problems_are_held_out_and_examples_are_not() -> None:
    problems = chain_problems(TASK, replace(SMALL, problems=40))
    assert len({problem.question for problem in problems}) == 40
    assert {data.split_of(problem, TASK) for problem in problems} == {"test"}
    assert {len(problem.operations) for problem in problems} == {3}
    examples = chain_examples(TASK, SMALL)
    assert {data.split_of(parse_question(example.question), TASK) for example in examples} == {"train"}
    assert all(example.reasoning.count(";") == 2 for example in examples)
    assert chain_problems(TASK, SMALL) == chain_problems(TASK, SMALL)
    assert chain_problems(TASK, SMALL) != chain_problems(TASK, replace(SMALL, seed=1))
    with pytest.raises(ConfigError, match="not to be had"):
        chain_problems(TASK, replace(SMALL, operations=1, problems=90))


def test_the_study_on_the_engine_is_the_same_twice() -> None:
    text = " ".join(data.words(TASK)) + " start at 7, add 3, modulo 23 answer: 10 "
    tokenizer = train_tokenizer([text * 20], TokenizerConfig(vocab_size=256 + len(SPECIAL) + 24))
    model = ModelConfig(
        hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=64,
        vocab_size=tokenizer.vocab_size, max_context=320,
    )  # fmt: skip
    config = replace(SMALL, problems=2, operations=1, shots=(0, 1), samples=(1,), best_of=2, max_tokens=12)
    llm = LLM(EngineBackend(Engine(build(model, seed=3), max_batch=8), tokenizer, name="tiny"))
    rows = chain_study(llm, TASK, config)
    assert rows == chain_study(llm, TASK, config)
    assert len(rows) == 8
    assert all(row.prompt_tokens > 10 and row.completion_tokens > 0 for row in rows)
    assert all(0 <= row.accuracy <= 1 for row in rows)


def test_a_model_that_cannot_score_is_refused() -> None:
    with pytest.raises(LLMError, match="study a run folder"):
        chain_study(LLM(Scripted(solver)), TASK, SMALL)


@pytest.mark.parametrize(
    ("key", "value"), [("problems", 0), ("shots", (9,)), ("shots", ()), ("samples", (0,)), ("temperature", 0.0)]
)
def test_a_study_of_nothing_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}: got"):
        replace(SMALL, **{key: value})


def row(key: str, family: str, accuracy: float, tokens: float) -> Row:
    return Row(
        key=key, name=key, family=family, problems=10, accuracy=accuracy, low=accuracy / 2, high=(1 + accuracy) / 2,  # type: ignore[arg-type]
        answered=1.0, calls=1.0, prompt_tokens=tokens / 2, completion_tokens=tokens / 2,
        any_of=1.0, top1=0.5, majority=0.6, mean=0.4,
    )  # fmt: skip


ROWS = [
    row("direct.shots0", "direct", 0.1, 30),
    row("direct.shots8", "direct", 0.2, 300),
    row("cot.shots0", "cot", 0.8, 60),
    row("self_consistency.k16_early", "self-consistency", 0.9, 900),
    row("tot.bfs", "tot", 0.85, 4000),
]


def test_figures_and_table() -> None:
    found = figures(ROWS)
    assert found["inference.direct.shots0.accuracy"] == 0.1
    assert found["inference.tot.bfs.tokens"] == 4000
    assert [found[f"inference.tot.bfs.{name}"] for name in ("any_of", "top1", "majority", "mean")] == [1, 0.5, 0.6, 0.4]
    assert "inference.direct.shots0.any_of" not in found
    assert len(table(ROWS).splitlines()) == 7
    assert rows_as_data(ROWS)[0]["tokens"] == 30


def test_the_picture_puts_points_where_they_belong() -> None:
    svg = study_svg(ROWS)
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    points = {}
    for group in root.findall(f"{space}g"):
        title, circle = group.find(f"{space}title"), group.find(f"{space}circle")
        assert title is not None
        assert circle is not None
        points[(title.text or "").partition(":")[0]] = (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
    assert len(points) == len(ROWS)
    by_tokens = sorted(ROWS, key=lambda r: r.tokens)
    assert [points[r.key][0] for r in by_tokens] == sorted(x for x, _ in points.values())
    assert points["self_consistency.k16_early"][1] < points["direct.shots8"][1] < points["direct.shots0"][1]
    assert len(root.findall(f"{space}polyline")) == 1, "one family has two sizes"
    assert study_svg([]) == ""


def test_a_tree_is_laid_out_without_overlap() -> None:
    parents = [None, 0, 0, 1, 1, 2, 5, 6, 0]
    nodes = [Node(i, parent, f"state {i}") for i, parent in enumerate(parents)]
    depth, rows = places(nodes)
    assert depth == [0, 1, 1, 2, 2, 2, 3, 4, 1]
    assert len({(d, r) for d, r in zip(depth, rows)}) == len(nodes)
    assert rows[1] == (rows[3] + rows[4]) / 2
    assert rows[0] == (rows[1] + rows[8]) / 2
    leaves = [i for i in range(9) if i not in parents]
    assert sorted(rows[i] for i in leaves) == list(range(len(leaves)))
    deep = [Node(i, i - 1 if i else None, "x") for i in range(5000)]
    assert places(deep)[0][-1] == 4999


def test_the_page_shows_everything_and_runs_nothing() -> None:
    nodes = (
        Node(0, None, "<script>alert(1)</script> & 2", status="root"),
        Node(1, 0, "kept " + "long " * 40, 0.5, "kept"),
        Node(2, 0, "left", 0.125, "pruned"),
        Node(3, 1, "end", 20.0, "answer", "answer 42"),
    )
    asked, said = [{"role": "user", "content": "<b>?"}], [{"thinking": None, "text": "sure"}]
    log = ({"why": "value", "messages": asked, "replies": said, "prompt_tokens": 3, "completion_tokens": 1},)
    solution = Solution(answer="42", candidates=("42", None), nodes=nodes, log=log)
    text = page("<script>alert(1)</script> & 2", "tot", "model", solution)
    assert text == page("<script>alert(1)</script> & 2", "tot", "model", solution)
    assert "<script" not in text
    assert "<b>?" not in text
    assert not re.search(r"(?:src|href)=", text)
    root = ElementTree.fromstring(tree_svg(nodes))
    assert [group.attrib["class"] for group in root.findall("g")] == ["root", "kept", "pruned", "answer"]
    assert [path.attrib["class"] for path in root.findall("path")] == ["answer", "pruned", "answer"], (
        "the way is marked"
    )
    texts = ["".join(group.itertext()) for group in root.findall("g")]
    assert "long " * 40 in " ".join(texts[1].split()) + " "
    assert "0.125" in texts[2]
    assert "answer 42" in texts[3]


def test_any_question_by_steps() -> None:
    """A model that writes one right and one wrong line per step, and can tell them apart."""
    right = ["3 boxes of 12 are 36.", "36 - 7 = 29.", "answer: 29"]

    def model(call: Call) -> list[str]:
        asked = call.messages[-1]["content"]
        lines = re.findall(r"^\d+\. (.*)$", asked, re.MULTILINE)
        if "The next line:" in asked:
            line = f"{len(lines) + 1}. {right[len(lines)]}"
            return [line if i % 2 else "There are 15." for i in range(call.settings.n)]
        if "The best choice" in asked:
            parts = re.split(r"^choice \d+:", asked, flags=re.MULTILINE)[1:]
            best = next(i for i, part in enumerate(parts) if "There are 15" not in part)
            return [f"The best choice is {best + 1}"] * call.settings.n
        return ["impossible" if "There are 15." in lines else "I find no fault: likely"] * call.settings.n

    task = Steps()
    for evaluate in (Value(task=task), Vote(task=task)):
        tot = TreeOfThoughts(
            problem=task,
            generate=Sample(task=task),
            evaluate=evaluate,
            search=SearchConfig(depth=5, beam=1, candidates=4),
        )
        solution = solve_with(tot, LLM(Scripted(model)), "How many pencils are left?")
        assert solution.answer == "29"
        assert [node.text for node in solution.nodes if node.status in ("kept", "answer")] == right
