"""Budget forcing on a small model that knows some chains by heart: stopped, left alone, and made to go on."""

from __future__ import annotations

import random

import pytest
import torch

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Sample
from sekkei.data.tasks import chain
from sekkei.data.tasks.chain import ChainConfig
from sekkei.engine.engine import Engine
from sekkei.evals.budget import BudgetConfig, Thinking, budget_curve, budget_figures, think_within
from sekkei.evals.reasoning import Exam, question_ids
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.objectives.sft import SFT, sft_sample
from sekkei.parallel.ops import LocalOps
from sekkei.text.chat import encode_chat
from sekkei.text.tokenizer import THINK, THINK_END, Tokenizer, TokenizerConfig, train_tokenizer
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CHAINS = ChainConfig()
PROBLEMS = [chain.sample_problem(random.Random(i), 3, "train", CHAINS) for i in range(4)]
TALKS = [chain.demonstration(problem, "every") for problem in PROBLEMS]


def example(tokenizer: Tokenizer, index: int) -> Sample:
    return sft_sample(encode_chat(tokenizer, TALKS[derive_seed("budget test", index) % len(TALKS)]))


@pytest.fixture(scope="module")
def exam() -> Exam:
    """A model that learned four chains by heart, every step written."""
    torch.set_num_threads(1)
    texts = [part for talk in TALKS for message in talk for part in message.values()]
    tokenizer = train_tokenizer(texts * 20, TokenizerConfig(vocab_size=300))
    sizes = ModelConfig(
        hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96,
        vocab_size=tokenizer.vocab_size, max_context=192, qk_norm=True,
    )  # fmt: skip
    model = build(sizes, seed=1)
    step = PlainStep({"policy": model}, LocalOps(), torch.device("cpu"), None)
    ctx = Context(models={"policy": model}, ops=LocalOps(), device=torch.device("cpu"), seed=0, score=step.score)
    objective = SFT(lambda index: example(tokenizer, index), 8, 2048)
    optimizer = Optimizer(model, OptimConfig(lr=5e-3), 100)
    for number in range(100):
        for update in objective.next_step(ctx):
            step.backward(update)
            optimizer.step(number)
    return Exam(Engine(model), tokenizer, PROBLEMS, 96)


def thinking(exam: Exam, budget: int, extensions: int = 0) -> list[Thinking]:
    opened = exam.tokenizer.id_of(THINK)
    prompts = [(*question_ids(exam.tokenizer, problem, "chat"), opened) for problem in PROBLEMS]
    return think_within(exam.engine, exam.tokenizer, prompts, budget, BudgetConfig(), extensions)  # type: ignore[arg-type]


def test_with_room_enough_it_is_the_models_own_answer(exam: Exam) -> None:
    opened, close = exam.tokenizer.id_of(THINK), exam.tokenizer.id_of(THINK_END)
    own = [group[0].token_ids for group in exam.ask(0.0, 1, 0)]
    assert [(opened, *one.thought, close, *one.answer) for one in thinking(exam, 90)] == own
    assert all(one.closed and one.ended for one in thinking(exam, 90))
    assert exam.greedy()["pass1_greedy"] == 1.0


def test_a_thought_is_stopped_where_the_budget_ends(exam: Exam) -> None:
    whole = [one.thought for one in thinking(exam, 90)]
    for budget in (1, 5, min(map(len, whole)) - 1):
        cut = thinking(exam, budget)
        assert [one.thought for one in cut] == [thought[:budget] for thought in whole]
        assert not any(one.closed for one in cut)
        assert all(one.answer for one in cut)
    exact = thinking(exam, max(map(len, whole)) + 1)  # room for the mark itself
    assert all(one.closed for one in exact)
    assert all(one.thought == () and not one.closed for one in thinking(exam, 0))


def test_thinking_goes_on_where_it_would_have_ended(exam: Exam) -> None:
    whole, longer = thinking(exam, 90), thinking(exam, 90, extensions=2)
    go_on = tuple(exam.tokenizer.encode(";"))
    for before, after in zip(whole, longer, strict=True):
        assert after.thought[: len(before.thought) + len(go_on)] == before.thought + go_on
        assert 1 <= after.extended <= 2
        assert len(after.thought) <= 90
    tight = len(whole[0].thought) + 1
    assert thinking(exam, tight, extensions=2)[0].extended == 0  # no room to go on


def test_the_curve(exam: Exam) -> None:
    config = BudgetConfig(budgets=(0, 10, 90), extensions=(1,))
    rows = budget_curve(exam, config)
    assert [(row["budget"], row["extensions"]) for row in rows] == [(0, 0), (10, 0), (90, 0), (90, 1)]
    assert [row["forced"] for row in rows[:3]] == [1.0, 1.0, 0.0]
    assert rows[2]["accuracy"] == 1.0 >= rows[2]["high"] > rows[2]["low"] > 0.3
    assert rows[0]["thinking_tokens"] == rows[0]["steps"] == 0
    assert rows[2]["steps"] == 3
    assert rows[3]["extended"] == 1
    figures = budget_figures(rows)
    assert figures["budget.t90.accuracy"] == 1.0
    assert figures["budget.t90_x1.thinking_tokens"] > figures["budget.t90.thinking_tokens"]
    assert len(figures) == 4 * 5


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^budgets: got \[\]"):
        BudgetConfig(budgets=())
    with pytest.raises(ConfigError, match=r"^extensions: got \[0\]"):
        BudgetConfig(extensions=(0,))
    with pytest.raises(ConfigError, match=r"^extension: got ''"):
        BudgetConfig(extension="")
