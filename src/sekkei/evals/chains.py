"""The chain task of our own models: is thinking what makes the answers right, and how much of it?

    think     the think block as the model writes it                                   one greedy answer, and 8 sampled
    direct    an empty think block: the answer at once
    budget.B  the think block is cut after B tokens and the answer forced              Muennighoff et al. 2025, s1

Problems are held out by a hash of their question (data/tasks/chain.py), so none of them was trained on. Forcing writes
the end of the think block and " answer:" and lets the model write one number: a thought that was finished within the
budget costs nothing, one that was not can only be guessed from. The chance of a blind guess is 1 / modulus.

What it does not handle: models without sekkei's tokenizer (they never saw the task's form).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sekkei.core.config import from_mapping, read_yaml
from sekkei.core.errors import ConfigError
from sekkei.data.tasks import chain
from sekkei.data.tasks.chain import ChainConfig
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.evals.outcome import Figure, Outcome, mean
from sekkei.evals.reasoning import VOTES, Exam, held_out_problems
from sekkei.llm.protocol import Usage
from sekkei.text.chat import encode_prompt
from sekkei.text.tokenizer import THINK, THINK_END, Tokenizer

BUDGETS = (0, 8, 16, 32, 64)
ANSWER_TOKENS = 4


def chains_of(run_dir: Path | None) -> ChainConfig:
    """The chains that a run was trained on, from its recipe; the default ones without a run."""
    if run_dir is None:
        return ChainConfig()
    data: Any = read_yaml(run_dir / "recipe.yaml").get("data") or {}
    return from_mapping(ChainConfig, data.get("chain") or {}, "data.chain")


def evaluate_chain(
    engine: Engine,
    tokenizer: Tokenizer,
    config: ChainConfig,
    *,
    problems: int = 128,
    max_tokens: int = 128,
    budgets: Sequence[int] = BUDGETS,
    seed: int = 0,
) -> Outcome:
    """Accuracy on held-out chains with thinking, without, and with a budget of thought.

    Args:
        budgets: most tokens of the think block, >= 0.
    Raises:
        ConfigError: a budget is negative. UserError: a question is too long for the model.
    """
    if any(budget < 0 for budget in budgets):
        raise ConfigError("budgets", f"got {list(budgets)}, must be >= 0 tokens")
    asked = held_out_problems(config, config.held_out_operations, problems, seed)
    exam = Exam(engine, tokenizer, asked, max_tokens)
    thought = [completions[0] for completions in exam.ask(0.0, 1, 0)]
    direct = [completions[0] for completions in exam.ask(0.0, 1, 0, thinking=False)]
    sampled = exam.sampled(seed)
    scores = {
        "think": [float(exam.right(problem, done)) for problem, done in zip(asked, thought)],
        "direct": [float(exam.right(problem, done)) for problem, done in zip(asked, direct)],
    }
    ids = [exam_ids(tokenizer, done.token_ids) for done in thought]
    for budget in budgets:
        scores[f"budget.{budget}"] = _forced(engine, tokenizer, asked, ids, budget)
    tokens = sum(len(done.token_ids) for done in [*thought, *direct])
    return Outcome(
        task="chain",
        items=len(asked),
        prompt="{question}",
        scores=scores,
        figures={name: mean(values) for name, values in scores.items()}
        | {name: Figure(value=value) for name, value in sampled.items()}
        | {
            "chance": Figure(value=1 / config.modulus),
            "think.tokens": Figure(value=sum(map(len, ids)) / len(ids)),
        },
        settings={
            "operations": config.held_out_operations,
            "modulus": config.modulus,
            "seed": seed,
            "max_tokens": max_tokens,
            "samples": VOTES,
            "temperature": "0; sampled ones 1",
        },
        usage=Usage(0, tokens),
        notes=[
            "problems are held out by a hash of the question",
            f"tokens do not count the {VOTES} samples and the forced ones",
        ],
    )


def exam_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The ids inside the think block of an answer that began with one, [] where it did not."""
    begin, end = (tokenizer.id_of(mark) for mark in (THINK, THINK_END))
    if not ids or ids[0] != begin:
        return []
    inside = list(ids[1:])
    return inside[: inside.index(end)] if end in inside else [token for token in inside if token != tokenizer.end_id]


def _forced(
    engine: Engine,
    tokenizer: Tokenizer,
    problems: Sequence[chain.ChainProblem],
    thoughts: Sequence[Sequence[int]],
    budget: int,
) -> list[float]:
    """Whether the number behind a cut thought is right."""
    begin, end = (tokenizer.encode_trusted(mark) for mark in (THINK, THINK_END))
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS, stop_tokens=(tokenizer.end_id,))
    requests = [
        Request(
            prompt_ids=(
                *encode_prompt(tokenizer, chain.prompt(problem)),
                *begin,
                *thought[:budget],
                *end,
                *tokenizer.encode(" answer:"),
            ),
            sampling=sampling,
        )
        for problem, thought in zip(problems, thoughts)
    ]
    found = []
    for problem, (done,) in zip(problems, engine.generate(requests)):
        ids = done.token_ids[:-1] if done.finish_reason == "stop" else done.token_ids
        found.append(float(chain.parse_answer(f"answer:{tokenizer.decode(ids)}") == problem.answer))
    return found
