"""What a stage asks, and how answers are rewarded: embedded tasks, or the user's own problems.

    chains        the default; the verifier reads the final number
    calculator    with grpo.tool: sums that are worked out by calls in the answer
    path          JSON lines, one problem each (evals/own_problems.py), in the form that the stage asks in

    reward = verifier · right + format · (closed think block, then an answer) + length · (0 … -1 near max_tokens)

Problems of `eval.path` are asked after every stage, so no stage may learn from them. It does not handle problems that
need a conversation of several turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.data.tasks import calculator, chain
from sekkei.data.tasks.chain import Form
from sekkei.engine.request import Completion
from sekkei.evals.items import chosen
from sekkei.evals.own_problems import OwnProblem, read_own
from sekkei.evals.reasoning import Problem, answer_text, is_right, question_ids
from sekkei.objectives.rewards import form_reward, length_reward
from sekkei.objectives.rollout import Prompt, Reward, weighted
from sekkei.objectives.tool_use import calculator_judge, calculator_question
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import TuneConfig
from sekkei.text.chat import parse_reply
from sekkei.text.tokenizer import Tokenizer

Asker = Callable[[int], Prompt]
"""Problem number i, a pure function."""


def asker(recipe: Recipe, name: str, tokenizer: Tokenizer) -> Asker:
    """The problems of a rollout stage.

    Raises:
        UserError: its file cannot be read, or a problem is longer than the context.
    """
    tune = recipe.tuning[name]
    if getattr(tune.config, "tool", "none") == "calculator":
        return lambda index: _sum(recipe, name, index, tokenizer)
    if tune.path is None:
        return lambda index: _judged(_chain(recipe, name, index), tune, tokenizer)
    asked = own_problems(recipe, tune.path, tokenizer, tune.form, tune.config.max_tokens, recipe.key_of(name))
    in_turn = passes_over(asked, name, recipe.seed)
    return lambda index: _judged(in_turn(index), tune, tokenizer)


def _chain(recipe: Recipe, name: str, index: int) -> Problem:
    chains = recipe.data.chain
    rng = random.Random(derive_seed(name, recipe.seed, index))
    return chain.sample_problem(rng, rng.choice(chains.train_operations), "train", chains)


def _sum(recipe: Recipe, name: str, index: int, tokenizer: Tokenizer) -> Prompt:
    rng = random.Random(derive_seed(name, recipe.seed, index))
    task = calculator.sample_task(rng, "train", recipe.data.calculator)
    return Prompt(calculator_question(tokenizer, task), calculator_judge(tokenizer, task))


def own_problems(
    recipe: Recipe, path: str, tokenizer: Tokenizer, form: Form, max_tokens: int, key: str
) -> list[OwnProblem]:
    """All problems of a file, which a model of this recipe can be asked in this form.

    Args:
        max_tokens: of an answer, as the recipe says under `key`.
    Raises:
        UserError: the file cannot be read, a problem is longer than the context, or `eval.path` holds one of them, too.
    """
    problems, most = read_own(Path(path)), recipe.model.max_context
    for problem in problems:
        tokens = len(question_ids(tokenizer, problem, form))
        if tokens + max_tokens > most:
            raise UserError(
                f"{path}: {problem.question[:40]!r} has {tokens} tokens, and with {key}.max_tokens="
                f"{max_tokens} it is longer than model.max_context={most}"
            )
    held_out = recipe.eval.path
    if held_out not in (None, path):
        kept = {problem.question for problem in read_own(Path(str(held_out)))}
        shared = [problem.question for problem in problems if problem.question in kept]
        if shared:
            raise UserError(
                f"{path}: {len(shared)} of its questions stand in eval.path={held_out}, too ({shared[0][:40]!r} …); "
                "what is asked there must not be learned here"
            )
    return problems


def held_out_own(recipe: Recipe, tokenizer: Tokenizer, form: Form) -> list[OwnProblem]:
    """The problems of `eval.path` that are asked after every stage, `eval.problems` at most.

    Raises:
        UserError: as `own_problems`.
    """
    sizes = recipe.eval
    found = own_problems(recipe, str(sizes.path), tokenizer, form, sizes.max_tokens, "eval")
    return chosen(found, sizes.problems, recipe.seed)


def passes_over(problems: Sequence[OwnProblem], name: str, seed: int) -> Callable[[int], OwnProblem]:
    """Every problem once per pass, in an order of its own for each."""

    def problem(index: int) -> OwnProblem:
        turn, place = divmod(index, len(problems))
        order = random.Random(derive_seed(name, seed, turn)).sample(range(len(problems)), len(problems))
        return problems[order[place]]

    return problem


def _judged(problem: Problem, tune: TuneConfig, tokenizer: Tokenizer) -> Prompt:
    """The prompt of a problem with the reward of its answers, and how many results they write."""

    def read(completion: Completion) -> str:
        return answer_text(tokenizer, completion, tune.form)

    def right(completion: Completion) -> float:
        return float(completion.finish_reason == "stop" and is_right(problem, read(completion)))

    weighed = weighted(rewards(tune, right, read))

    def judge(completion: Completion) -> Mapping[str, float]:
        steps = chain.count_steps(parse_reply(read(completion)).reasoning or "")
        return {**weighed(completion), "steps_written": float(steps)}

    return Prompt(question_ids(tokenizer, problem, tune.form), judge, problem.question)


def rewards(tune: TuneConfig, right: Reward, read: Callable[[Completion], str]) -> Mapping[str, tuple[Reward, float]]:
    """The functions that the recipe weighs; of those of weight 0 only the verifier stays, to be logged."""
    weights, most = tune.rewards, tune.config.max_tokens
    found: dict[str, tuple[Reward, float]] = {"right": (right, weights.verifier)}
    if weights.format:
        found["format"] = (form_reward(read), weights.format)
    if weights.length:
        found["length"] = (length_reward(weights.free_tokens, most), weights.length)
    return found
