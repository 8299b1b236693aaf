"""Accuracy against thinking budget at test time: thinking is stopped, or made to go on (budget forcing).

    stop      <think> t t t t │ </think> answer      after `budget` tokens the block is closed for the model
    go on     <think> t t ; t t │ </think> answer    the first `extensions` times that the model would close the block,
                                                     its end is taken away and `extension` is written instead

(Muennighoff et al. 2025, "s1: Simple test-time scaling", section 3.1.) What s1 writes to go on is " Wait", a word after
which its model doubts. A model that never saw one has no such word: for the chain task `extension` is ";", the mark
between two written results, so that it means "write one more". It makes a chain longer than its problem has steps, and
whether that helps is what the curve says.

Tokens of the think block are counted without its two marks; what is written to go on counts. A model that ends its turn
inside the block has ended its thinking. It does not handle several think blocks, or thinking that starts in the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.tasks import chain
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.evals.reasoning import Exam, is_right, question_ids
from sekkei.text.tokenizer import THINK, THINK_END, Tokenizer
from sekkei.tools.statistics import wilson


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Args:
    budgets: most tokens of thinking, one point of the curve each; 0 = answer at once.
    extensions: how often thinking is made to go on, one more point each, at the largest budget. extension: by what.
    answer_tokens: of the visible answer. temperature: 0 = greedy.
    """

    budgets: tuple[int, ...] = (0, 8, 16, 32, 64, 96)
    extensions: tuple[int, ...] = (1, 2)
    extension: str = ";"
    answer_tokens: int = 16
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not self.budgets or min(self.budgets) < 0:
            raise ConfigError("budgets", f"got {list(self.budgets)}, must list numbers of tokens >= 0")
        if self.extensions and min(self.extensions) < 1:
            raise ConfigError("extensions", f"got {list(self.extensions)}, must list numbers >= 1")
        if self.extensions and not self.extension:
            raise ConfigError("extension", "got '', must be what is written instead of the end of thinking")
        if self.answer_tokens < 1:
            raise ConfigError("answer_tokens", f"got {self.answer_tokens}, must be >= 1")


@dataclass(frozen=True)
class Thinking:
    """One answer under a budget.

    thought: tokens between the marks. closed: the model ended its thinking by itself. extended: times it was made to go
    on. answer: tokens behind the block, the stop token among them if `ended`.
    """

    thought: tuple[int, ...] = ()
    closed: bool = False
    extended: int = 0
    answer: tuple[int, ...] = ()
    ended: bool = False


def think_within(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, ...]],
    budget: int,
    config: BudgetConfig,
    extensions: int = 0,
    seed: int = 0,
) -> list[Thinking]:
    """Answer prompts that end in an open think block.

    Args:
        budget: most tokens of thinking. extensions: how often thinking goes on where the model would end it.
    """
    close, end = tokenizer.id_of(THINK_END), tokenizer.end_id
    assert close is not None
    assert end is not None
    go_on = tuple(tokenizer.encode(config.extension))
    done = [Thinking() for _ in prompts]
    waiting = [i for i in range(len(prompts)) if budget > 0]
    for turn in range(extensions + 1):
        room = {i: budget - len(done[i].thought) for i in waiting}
        asked = [(prompts[i] + done[i].thought, room[i]) for i in waiting]
        written = _ask(engine, asked, config.temperature, (close, end), derive_seed("thinking", seed, turn))
        for i, part in zip(waiting, written, strict=True):
            closed = part.finish_reason == "stop"
            thought = done[i].thought + (part.token_ids[:-1] if closed else part.token_ids)
            done[i] = replace(done[i], thought=thought, closed=closed)
        waiting = [i for i in waiting if done[i].closed and len(done[i].thought) + len(go_on) < budget]
        if turn == extensions or not waiting:
            break
        for i in waiting:
            done[i] = replace(done[i], thought=done[i].thought + go_on, closed=False, extended=done[i].extended + 1)
    asked = [(prompt + one.thought + (close,), config.answer_tokens) for prompt, one in zip(prompts, done, strict=True)]
    answers = _ask(engine, asked, config.temperature, (end,), derive_seed("answering", seed))
    return [
        replace(one, answer=part.token_ids, ended=part.finish_reason == "stop")
        for one, part in zip(done, answers, strict=True)
    ]


def _ask(
    engine: Engine, asked: Sequence[tuple[tuple[int, ...], int]], temperature: float, stops: tuple[int, ...], seed: int
) -> list[Completion]:
    """One completion of each (prompt, most tokens)."""
    requests = [
        Request(
            prompt_ids=prompt,
            sampling=Sampling(temperature=temperature, max_tokens=room, stop_tokens=stops),
            seed=derive_seed(seed, number),
        )
        for number, (prompt, room) in enumerate(asked)
    ]
    return [group[0] for group in engine.generate(requests)]


def budget_curve(exam: Exam, config: BudgetConfig, seed: int = 0) -> list[dict[str, float]]:
    """One row per budget, then one per number of extensions at the largest budget.

    Returns:
        budget, extensions; accuracy with its 95% interval (low, high; Wilson); thinking_tokens and steps (results
        written) on average; forced: share of the answers whose thinking was stopped; extended: times that thinking was
        made to go on, on average.
    """
    tokenizer = exam.tokenizer
    opened = () if exam.form == "document" else (tokenizer.id_of(THINK),)
    prompts = [(*question_ids(tokenizer, problem, exam.form), *opened) for problem in exam.problems]
    points = [(budget, 0) for budget in config.budgets] + [(max(config.budgets), n) for n in config.extensions]
    return [_point(exam, prompts, budget, extensions, config, seed) for budget, extensions in points]  # type: ignore[arg-type]


def _point(
    exam: Exam,
    prompts: Sequence[tuple[int, ...]],
    budget: int,
    extensions: int,
    config: BudgetConfig,
    seed: int,
) -> dict[str, float]:
    tokenizer = exam.tokenizer
    found = think_within(exam.engine, tokenizer, prompts, budget, config, extensions, seed)
    thoughts = [tokenizer.decode(one.thought) for one in found]
    right = 0
    for problem, one, thought in zip(exam.problems, found, thoughts, strict=True):
        said = tokenizer.decode(one.answer[:-1] if one.ended else one.answer)
        right += one.ended and is_right(problem, f"{THINK}{thought}{THINK_END}{said}")
    low, high = wilson(right, len(found))
    return {
        "budget": float(budget),
        "extensions": float(extensions),
        "accuracy": right / len(found),
        "low": low,
        "high": high,
        "thinking_tokens": fmean(len(one.thought) for one in found),
        "steps": fmean(chain.count_steps(thought) for thought in thoughts),
        "forced": fmean(not one.closed for one in found),
        "extended": fmean(one.extended for one in found),
    }


def budget_figures(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The rows of a curve by name: `budget.t<tokens>[_x<extensions>].<figure>`, of those that a report compares."""
    figures = {}
    for row in rows:
        extended = f"_x{row['extensions']:.0f}" if row["extensions"] else ""
        point = f"budget.t{row['budget']:.0f}{extended}"
        figures |= {f"{point}.{name}": row[name] for name in ("accuracy", "low", "high", "thinking_tokens", "steps")}
    return figures
