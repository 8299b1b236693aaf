"""Accuracy on problems whose answer a program checks: what the model answers at once, sampled, by vote, and at best.

    pass1_greedy    one greedy answer is right
    pass1_sampled   a sampled answer (temperature 1) is right, on average
    maj8            the most frequent of 8 sampled answers is right
    pass8           at least one of 8 is right (unbiased estimator, Chen et al. 2021)
    steps           results written in the think block of greedy answers, on average
    ended           greedy answers that end with the stop token

Only the outcome counts: an answer reached through wrong steps is right. Problems are chains of arithmetic
(data/tasks/chain.py) or those of a file (own_problems.py).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

from sekkei.core.seed import derive_seed
from sekkei.data.tasks import chain
from sekkei.data.tasks.chain import ChainConfig, ChainProblem, Form
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.evals.own_problems import OwnProblem
from sekkei.text.chat import Reply, encode_prompt, parse_reply
from sekkei.text.tokenizer import THINK, THINK_END, Tokenizer
from sekkei.tools.statistics import majority, pass_at_k, wilson

VOTES = 8
Problem = ChainProblem | OwnProblem


def held_out_problems(config: ChainConfig, operations: int, count: int, seed: int) -> list[ChainProblem]:
    """`count` problems of the test side."""
    rng = random.Random(derive_seed("held-out problems", seed, operations))
    return [chain.sample_problem(rng, operations, "test", config) for _ in range(count)]


def question_ids(tokenizer: Tokenizer, problem: Problem, form: Form, thinking: bool = True) -> tuple[int, ...]:
    """The tokens that put a problem to a model; in a document the think block is already open."""
    if form == "document":  # as `chain.opening`, but a question of one's own cannot bring special tokens
        opened = THINK + ("" if thinking else THINK_END)
        return (tokenizer.bos_id, *tokenizer.encode(f"{problem.question}\n"), *tokenizer.encode_trusted(opened))
    return tuple(encode_prompt(tokenizer, [{"role": "user", "content": problem.question}], thinking))


def is_right(problem: Problem, text: str) -> bool:
    """Whether an answer that ended is right. text: from its think block on, without the stop token."""
    return chain.verify(problem, text) if isinstance(problem, ChainProblem) else problem.right(text)


def final_answer(problem: Problem, text: str) -> str | None:
    """What such an answer commits to, one spelling per value; None: nothing."""
    if not isinstance(problem, ChainProblem):
        return problem.final(text)
    number = chain.parse_answer(text)
    return None if number is None else str(number)


def answer_text(tokenizer: Tokenizer, completion: Completion, form: Form) -> str:
    """What was written, without the stop token, from the think block on."""
    ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
    return (THINK if form == "document" else "") + tokenizer.decode(ids)


class Exam:
    """Asks one model a fixed set of problems.

    Args:
        max_tokens: of an answer, think block included. form: how problems are put.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        problems: Sequence[Problem],
        max_tokens: int,
        form: Form = "chat",
    ) -> None:
        self.engine, self.tokenizer, self.problems, self.max_tokens = engine, tokenizer, problems, max_tokens
        self.form: Form = form

    def ask(self, temperature: float, n: int, seed: int, thinking: bool = True) -> list[list[Completion]]:
        """`n` answers to every problem."""
        sampling = Sampling(temperature=temperature, max_tokens=self.max_tokens, stop_tokens=(self.tokenizer.end_id,))
        requests = [
            Request(
                prompt_ids=question_ids(self.tokenizer, problem, self.form, thinking),
                sampling=sampling,
                n=n,
                seed=derive_seed("exam", seed, i),
            )
            for i, problem in enumerate(self.problems)
        ]
        return self.engine.generate(requests)

    def right(self, problem: Problem, completion: Completion) -> bool:
        """Ended, and with the right answer."""
        return completion.finish_reason == "stop" and is_right(problem, self.text(completion))

    def text(self, completion: Completion) -> str:
        """The decoded answer without its stop token."""
        return answer_text(self.tokenizer, completion, self.form)

    def reply(self, completion: Completion) -> Reply:
        """Think block and visible content."""
        return parse_reply(self.text(completion))

    def answer(self, problem: Problem, completion: Completion) -> str | None:
        """What it commits to; None where it does not, or did not end."""
        return final_answer(problem, self.text(completion)) if completion.finish_reason == "stop" else None

    def greedy(self, thinking: bool = True) -> dict[str, float]:
        """pass1_greedy with its 95% interval, steps, ended."""
        answers = [completions[0] for completions in self.ask(0.0, 1, 0, thinking)]
        right = sum(self.right(p, c) for p, c in zip(self.problems, answers, strict=True))
        low, high = wilson(right, len(answers))
        thoughts = [self.reply(c).reasoning or "" for c in answers]
        return {
            "pass1_greedy": right / len(answers),
            "pass1_greedy.low": low,
            "pass1_greedy.high": high,
            "steps": statistics.fmean([chain.count_steps(thought) for thought in thoughts]),
            "ended": statistics.fmean([c.finish_reason == "stop" for c in answers]),
            "tokens": statistics.fmean([len(c.token_ids) for c in answers]),
        }

    def sampled(self, seed: int) -> dict[str, float]:
        """pass1_sampled, maj8, pass8."""
        groups = self.ask(1.0, VOTES, seed)
        counts, votes = [], []
        for problem, group in zip(self.problems, groups, strict=True):
            right = [self.right(problem, completion) for completion in group]
            answers = [self.answer(problem, completion) for completion in group]
            vote = majority(answers)
            counts.append(sum(right))
            votes.append(vote is not None and right[answers.index(vote)])
        return {
            "pass1_sampled": statistics.fmean([count / VOTES for count in counts]),
            "maj8": statistics.fmean(votes),
            "pass8": statistics.fmean([pass_at_k(VOTES, count, VOTES) for count in counts]),
        }
