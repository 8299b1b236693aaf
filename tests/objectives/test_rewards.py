"""Form, length, tests of code: what each is worth by hand, and that every failure is counted by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sekkei.core.errors import ConfigError, UserError
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.model.output import Output
from sekkei.objectives.rewards import code_reward, form_reward, length_reward
from sekkei.objectives.rollout import Prompt, Reward, group_figures, roll_out, weighted
from sekkei.parallel.ops import LocalOps
from sekkei.tools.sandbox import capabilities
from sekkei.tools.watch import Limits, SandboxError
from sekkei.train.objective import Context

END = 2
TEXTS: dict[int, str] = {}


def said(text: str, ended: bool = True, tokens: int = 5) -> Completion:
    """A completion that reads as this text."""
    number = 10 + len(TEXTS)
    TEXTS[number] = text
    return Completion(
        token_ids=(number,) * (tokens - ended) + (END,) * ended,
        logprobs=(-0.1,) * tokens,
        finish_reason="stop" if ended else "length",
        weights_hash="w",
        seed=0,
    )


def read(completion: Completion) -> str:
    return TEXTS[completion.token_ids[0]]


def test_the_form_of_an_answer() -> None:
    form = form_reward(read)
    assert form(said("<think> 3 add 4 = 7</think> answer: 7")) == 1
    bad = ("answer: 7", "<think></think> answer: 7", "<think> 7</think>", "<think> 7", "<think> 7</think> a</think>b",
           "<think> 1 <think> 7</think> answer: 7")  # fmt: skip
    assert [form(said(text)) for text in bad] == [0] * len(bad)
    assert form(said("<think> 3 add 4 = 7</think> answer: 7", ended=False)) == 0


def test_the_length_of_an_answer() -> None:
    length = length_reward(free=6, most=10)
    assert [length(said("", tokens=n)) for n in (1, 6, 7, 9, 10, 20)] == [0, 0, -0.25, -0.75, -1, -1]
    with pytest.raises(ConfigError, match=r"^length: got free=3 and most=3"):
        length_reward(3, 3)


@pytest.mark.skipif(not capabilities().safe, reason="no walls on this machine")
def test_code_that_passes_its_tests() -> None:
    reward = code_reward(read, "assert double(4) == 8\nassert double(-1) == -2", Limits(seconds=5))
    good = "def double(x):\n    return 2 * x"
    assert reward(said(f"<think>easy</think>Here:\n```python\n{good}\n```")) == 1
    assert reward(said(good)) == 1
    assert reward(said(f"```python\n{good}\n```", ended=False)) == 0
    for wrong in (
        "def double(x):\n    return x + 4",
        "def double(x:",
        f"{good}\nimport sys; sys.exit(0)",
        f"{good}\nimport os; os._exit(0)",
        "import socket; socket.create_connection(('1.1.1.1', 80))",
        "",
    ):
        assert reward(said(f"```python\n{wrong}\n```")) == 0, wrong
    forever = code_reward(read, "assert True", Limits(seconds=1))
    assert forever(said("while True: pass")) == 0


def context(answers: list[Completion]) -> Context:
    def generate(requests: list[Request]) -> list[list[Completion]]:
        return [answers]

    return Context(
        models={}, ops=LocalOps(), device=torch.device("cpu"), seed=0, score=lambda *_: Output(), generate=generate
    )


def when(text: str, then: Callable[[], float]) -> Reward:
    """1, but for answers that read as `text`."""
    return lambda completion: then() if read(completion) == text else 1.0


def broken() -> float:
    raise ConnectionError("nobody answers")


def test_each_failure_is_counted_by_name() -> None:
    answers = [said(text) for text in ("a", "b", "c", "d")]
    judge = weighted({"marks": (when("b", broken), 1.0), "right": (when("c", lambda: math.inf), 2.0)})
    sampling = Sampling(max_tokens=8)
    with pytest.raises(UserError, match="the reward function 'marks' raised ConnectionError: nobody answers"):
        roll_out(context(answers), [Prompt((1,), judge)], sampling, 4)
    with pytest.raises(UserError, match="the reward function 'right' returned inf"):
        roll_out(context(answers[2:]), [Prompt((1,), judge)], sampling, 2)
    (group,) = roll_out(context(answers), [Prompt((1,), judge)], sampling, 4, on_error="skip")
    figures = group_figures([group])
    assert {k: v for k, v in figures.items() if k.startswith("reward_errors")} == {
        "reward_errors": 2,
        "reward_errors/marks": 1,
        "reward_errors/right": 1,
    }
    assert figures["reward"] == 3.0
    assert [read(completion) for completion in group.completions] == ["a", "d"]


def test_what_the_user_must_mend_stops_the_run() -> None:
    def unwalled() -> float:
        raise SandboxError("no sandbox on this machine")

    judge = weighted({"tests": (when("a", unwalled), 1.0)})
    with pytest.raises(SandboxError):
        roll_out(context([said("a")]), [Prompt((1,), judge)], Sampling(max_tokens=8), 1, on_error="skip")
