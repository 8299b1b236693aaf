"""What is asked in reinforcement learning, and how answers are judged: embedded tasks, or the user's own problems.

    chains        the default; the verifier reads the final number
    calculator    with grpo.tool: sums that are worked out by calls in the answer
    path          JSON lines, one problem each:
                  {"question": …, "answer": "… #### 42"}     maths as GSM8K writes it; equal values count as equal
                  {"question": …, "tests": "assert f(2) == 4"}   code; its last fenced block runs in the sandbox

    reward = verifier · right + format · (closed think block, then an answer) + length · (0 … -1 near max_tokens)

It does not handle problems that need a conversation of several turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.data.tasks import calculator, chain
from sekkei.engine.request import Completion
from sekkei.evals.items import read_items
from sekkei.evals.maths import equivalent
from sekkei.evals.reasoning import answer_text, question_ids
from sekkei.objectives.rewards import code_reward, form_reward, length_reward
from sekkei.objectives.rollout import Prompt, Reward, weighted
from sekkei.objectives.tool_use import calculator_judge, calculator_question
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import TuneConfig
from sekkei.text.chat import encode_prompt, parse_reply
from sekkei.text.tokenizer import Tokenizer
from sekkei.tools.answers import extract_answer

Asker = Callable[[int], Prompt]
"""Problem number i, a pure function."""


@dataclass(frozen=True, kw_only=True)
class OwnProblem:
    """A question of the user's own; an answer to compare with, or tests to pass."""

    question: str
    answer: str | None = None
    tests: str | None = None


def asker(recipe: Recipe, name: str, tokenizer: Tokenizer) -> Asker:
    """The problems of a rollout stage.

    Raises:
        UserError: its file cannot be read, or a problem is longer than the context.
    """
    tune = recipe.tuning[name]
    if tune.path is not None:
        return _own(recipe, name, tokenizer, tune.path)
    if getattr(tune.config, "tool", "none") == "calculator":
        return lambda index: _sum(recipe, name, index, tokenizer)
    return lambda index: _chain(recipe, name, index, tokenizer)


def _chain(recipe: Recipe, name: str, index: int, tokenizer: Tokenizer) -> Prompt:
    chains, tune = recipe.data.chain, recipe.tuning[name]
    rng = random.Random(derive_seed(name, recipe.seed, index))
    problem = chain.sample_problem(rng, rng.choice(chains.train_operations), "train", chains)

    def read(completion: Completion) -> str:
        return answer_text(tokenizer, completion, tune.form)

    def right(completion: Completion) -> float:
        return float(completion.finish_reason == "stop" and chain.verify(problem, read(completion)))

    weighed = weighted(rewards(tune, right, read))

    def judge(completion: Completion) -> Mapping[str, float]:
        steps = chain.count_steps(parse_reply(read(completion)).reasoning or "")
        return {**weighed(completion), "steps_written": float(steps)}

    return Prompt(question_ids(tokenizer, problem, tune.form), judge, problem.question)


def _sum(recipe: Recipe, name: str, index: int, tokenizer: Tokenizer) -> Prompt:
    rng = random.Random(derive_seed(name, recipe.seed, index))
    task = calculator.sample_task(rng, "train", recipe.data.calculator)
    return Prompt(calculator_question(tokenizer, task), calculator_judge(tokenizer, task))


def _own(recipe: Recipe, name: str, tokenizer: Tokenizer, path: str) -> Asker:
    """Every problem once per pass, in an order of its own for each."""
    problems, tune = read_items(Path(path), _problem), recipe.tuning[name]
    prompts = [tuple(encode_prompt(tokenizer, [{"role": "user", "content": p.question}])) for p in problems]
    for problem, ids in zip(problems, prompts, strict=True):
        if len(ids) + tune.config.max_tokens > recipe.model.max_context:
            raise UserError(
                f"{path}: {problem.question[:40]!r} has {len(ids)} tokens, and with {recipe.key_of(name)}.max_tokens="
                f"{tune.config.max_tokens} it is longer than model.max_context={recipe.model.max_context}"
            )

    def read(completion: Completion) -> str:
        return answer_text(tokenizer, completion, "chat")

    def ask(index: int) -> Prompt:
        turn, place = divmod(index, len(problems))
        order = random.Random(derive_seed(name, recipe.seed, turn)).sample(range(len(problems)), len(problems))
        problem = problems[order[place]]
        return Prompt(prompts[order[place]], weighted(rewards(tune, _check(problem, read), read)), problem.question)

    return ask


def _problem(data: Mapping[str, Any]) -> OwnProblem:
    question = str(data["question"])
    if "tests" in data:
        return OwnProblem(question=question, tests=str(data["tests"]))
    answer = extract_answer(str(data["answer"]))
    if answer is None:
        raise ValueError("the answer does not end with #### and a value (problems of code have tests instead)")
    return OwnProblem(question=question, answer=answer)


def _check(problem: OwnProblem, read: Callable[[Completion], str]) -> Reward:
    if problem.tests is not None:
        return code_reward(read, problem.tests)

    def right(completion: Completion) -> float:
        said = extract_answer(parse_reply(read(completion)).content)
        ended = completion.finish_reason == "stop"
        return float(ended and said is not None and equivalent(str(problem.answer), said))

    return right


def rewards(tune: TuneConfig, right: Reward, read: Callable[[Completion], str]) -> Mapping[str, tuple[Reward, float]]:
    """The functions that the recipe weighs; of those of weight 0 only the verifier stays, to be logged."""
    weights, most = tune.rewards, tune.config.max_tokens
    found: dict[str, tuple[Reward, float]] = {"right": (right, weights.verifier)}
    if weights.format:
        found["format"] = (form_reward(read), weights.format)
    if weights.length:
        found["length"] = (length_reward(weights.free_tokens, most), weights.length)
    return found
