"""The exam's figures, counted by hand on prepared answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.tasks import chain
from sekkei.data.tasks.chain import ChainConfig, ChainProblem
from sekkei.engine.request import Completion, Request
from sekkei.evals.config import EvalConfig
from sekkei.evals.own_problems import OwnProblem
from sekkei.evals.reasoning import VOTES, Exam, Problem, held_out_problems, question_ids
from sekkei.text.chat import encode_prompt
from sekkei.text.tokenizer import ALPHABET, SPECIAL, TokenizerConfig, train_tokenizer
from sekkei.tools.statistics import wilson

CONFIG = ChainConfig()
TOKENIZER = train_tokenizer([], TokenizerConfig(vocab_size=ALPHABET + len(SPECIAL)))
PROBLEMS = held_out_problems(CONFIG, 3, 4, seed=1)


def reply(text: str, ended: bool = True) -> Completion:
    ids = TOKENIZER.encode_trusted(text) + ([TOKENIZER.end_id] if ended else [])
    return Completion(
        token_ids=tuple(ids),
        logprobs=(0.0,) * len(ids),
        finish_reason="stop" if ended else "length",
        weights_hash="",
        seed=0,
    )


@dataclass
class Script:
    """Gives prepared completions and keeps what it was asked."""

    answers: Sequence[Sequence[Completion]]
    asked: list[Request] = field(default_factory=list)

    def generate(self, requests: list[Request]) -> list[list[Completion]]:
        self.asked = requests
        return [list(group) for group in self.answers]


def exam(script: Script, problems: Sequence[Problem] = PROBLEMS) -> Exam:
    return Exam(script, TOKENIZER, problems, max_tokens=50)  # type: ignore[arg-type]


def test_problems_are_of_the_test_side_and_fixed() -> None:
    problems = held_out_problems(CONFIG, 6, 30, seed=1)
    assert {chain.split_of(problem, CONFIG) for problem in problems} == {"test"}
    assert {len(problem.operations) for problem in problems} == {6}
    assert len({problem.question for problem in problems}) == 30
    assert held_out_problems(CONFIG, 6, 30, seed=1) == problems
    assert held_out_problems(CONFIG, 6, 30, seed=2) != problems


def test_greedy_figures_by_hand() -> None:
    first, second, third = PROBLEMS[:3]
    answers = [
        reply(f"<think>{chain.reasoning(first, 'every')}</think> answer: {first.answer}"),  # right, 3 steps
        reply(f"<think></think> answer: {(second.answer + 1) % 23}"),  # wrong, no step
        reply(f" answer: {third.answer}", ended=False),  # right but cut off, no think block
        reply("<think> 1 add 1 = 2; 2 add 1 = 3"),  # ended inside the block, 2 steps
    ]
    script = Script([[answer] for answer in answers])
    figures = exam(script).greedy()
    low, high = wilson(1, 4)
    assert figures == pytest.approx(
        {
            "pass1_greedy": 0.25,
            "pass1_greedy.low": low,
            "pass1_greedy.high": high,
            "steps": (3 + 0 + 0 + 2) / 4,
            "ended": 0.75,
            "tokens": sum(len(answer.token_ids) for answer in answers) / 4,
        }
    )
    for problem, request in zip(PROBLEMS, script.asked, strict=True):
        assert request.prompt_ids == tuple(encode_prompt(TOKENIZER, chain.prompt(problem)))
        assert (request.sampling.temperature, request.sampling.max_tokens, request.n) == (0.0, 50, 1)
        assert request.sampling.stop_tokens == (TOKENIZER.end_id,)


def test_thinking_can_be_switched_off() -> None:
    script = Script([[reply(f" answer: {problem.answer}")] for problem in PROBLEMS])
    assert exam(script).greedy(thinking=False)["pass1_greedy"] == 1.0
    expected = [tuple(encode_prompt(TOKENIZER, chain.prompt(p), enable_thinking=False)) for p in PROBLEMS]
    assert [request.prompt_ids for request in script.asked] == expected


def test_sampled_figures_by_hand() -> None:
    def wrong(problem: ChainProblem, by: int = 1) -> Completion:
        return reply(f" answer: {(problem.answer + by) % 23}")

    def right(problem: ChainProblem, ended: bool = True) -> Completion:
        return reply(f" answer: {problem.answer}", ended)

    first, second, third, fourth = PROBLEMS
    groups = [
        [right(first)] * 3 + [wrong(first, by) for by in (1, 2, 3, 4, 5)],  # 3 of 8, and the vote
        [wrong(second)] * 5 + [right(second)] * 3,  # 3 of 8, outvoted
        [right(third, ended=False)] * 7 + [wrong(third)],  # cut off: no answer, no vote
        [reply("nonsense")] * 7 + [right(fourth)],  # 1 of 8, the only vote
    ]
    script = Script(groups)
    assert VOTES == 8
    assert exam(script).sampled(seed=5) == pytest.approx(
        {"pass1_sampled": (3 + 3 + 0 + 1) / 32, "maj8": 2 / 4, "pass8": 3 / 4}
    )
    assert {(request.n, request.sampling.temperature) for request in script.asked} == {(8, 1.0)}
    seeds = [request.seed for request in script.asked]
    assert len(set(seeds)) == 4
    exam(script).sampled(seed=5)
    assert [request.seed for request in script.asked] == seeds
    exam(script).sampled(seed=6)
    assert not {request.seed for request in script.asked} & set(seeds)


def test_an_answer_is_read_from_ended_replies_only() -> None:
    one = exam(Script([]))
    problem = chain.sample_problem(random.Random(derive_seed("answers")), 3, "test", CONFIG)
    good = reply(f"<think> x</think> answer: {problem.answer}")
    cut = reply(f"<think> x</think> answer: {problem.answer}", ended=False)
    assert one.text(good) == one.text(cut) == f"<think> x</think> answer: {problem.answer}"
    assert (one.right(problem, good), one.right(problem, cut)) == (True, False)
    assert tuple(one.answer(problem, said) for said in (good, cut, reply("?"))) == (str(problem.answer), None, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokens", 0), ("problems", 0), ("probes", 0), ("shots", ()), ("shots", (0, -1)), ("samples_every", -1)],
)
def test_bad_settings(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got"):
        EvalConfig(**{key: value})  # type: ignore[arg-type]


OWN = [
    OwnProblem(question="What is a half of 3?", answer="1.5"),
    OwnProblem(question="What is 2 + 2?", answer="4"),
]


def test_problems_of_a_file_are_scored_by_value() -> None:
    groups = [
        [reply("<think> 3 / 2</think> answer: 3/2")] * 3 + [reply("#### 1.50")] * 2 + [reply("answer: 2")] * 3,
        [reply("#### 5")] * 4
        + [reply("#### 4", ended=False)] * 2
        + [reply("it is 4")] * 2,  # the last commit to nothing
    ]
    one = exam(Script(groups), OWN)
    assert one.sampled(seed=1) == pytest.approx({"pass1_sampled": 5 / 16, "maj8": 1 / 2, "pass8": 1 / 2})
    first = exam(Script([groups[0][:1], groups[1][:1]]), OWN)
    assert first.greedy()["pass1_greedy"] == 0.5


@pytest.mark.parametrize("thinking", [True, False])
def test_a_document_opens_the_think_block(thinking: bool) -> None:
    end = "" if thinking else "</think>"
    ids = question_ids(TOKENIZER, PROBLEMS[0], "document", thinking)
    assert ids == (TOKENIZER.bos_id, *TOKENIZER.encode_trusted(chain.opening(PROBLEMS[0]) + end))
    mean = OwnProblem(question="What does </think> mean?", answer="1")
    ids = question_ids(TOKENIZER, mean, "document")
    assert [TOKENIZER.id_of("<think>") == token for token in ids].index(True) == len(ids) - 1
    assert TOKENIZER.id_of("</think>") not in ids, "a question cannot close the block"
