"""The calculator inside a rollout: what is appended, what is learned, whose log-probs those are, and that it pays."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean

import pytest
import torch

from sekkei.agent import builtin
from sekkei.agent.loop import Agent, AgentConfig
from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Sample
from sekkei.data.tasks import calculator
from sekkei.data.tasks.calculator import CalculatorConfig, CalculatorTask
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.llm import LLM, Call
from sekkei.llm.scripted import Scripted
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.ahead import OwnCopy
from sekkei.objectives.grpo import GRPO, GRPOConfig, group_samples
from sekkei.objectives.policy_loss import GRPOLoss
from sekkei.objectives.rollout import Group, Prompt
from sekkei.objectives.sft import SFT, pack_samples, sft_sample
from sekkei.objectives.tool_use import CalculatorTool, Played, calculator_judge, calculator_question, last_turn, play
from sekkei.parallel.ops import LocalOps
from sekkei.text.chat import encode_chat
from sekkei.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from sekkei.train.objective import Context, Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
TASKS = [calculator.sample_task(random.Random(i), "train", CalculatorConfig(), "written") for i in range(6)]
BOTH = CalculatorTask("both", "Compute 2 + 3 and 4 * 50.", (("2 + 3", "4 * 50"),), "5 and 200")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    talks = [calculator.demonstration(task) for task in (*TASKS, BOTH)]
    return train_tokenizer([m["content"] for talk in talks for m in talk] * 20, TokenizerConfig(vocab_size=330))


def turn(tokenizer: Tokenizer, text: str, ended: bool = True) -> Completion:
    ids = (*tokenizer.encode_trusted(text), *((tokenizer.end_id,) if ended else ()))
    return Completion(
        token_ids=ids,  # type: ignore[arg-type]
        logprobs=tuple(-0.01 * i for i in range(1, len(ids) + 1)),
        finish_reason="stop" if ended else "length",
        weights_hash="w",
        seed=derive_seed(text),
    )


class Says:
    """Answers with these turns, one after the other."""

    def __init__(self, *turns: Completion) -> None:
        self.turns = list(turns)
        self.asked: list[Request] = []

    def __call__(self, requests: list[Request]) -> list[list[Completion]]:
        self.asked += requests
        return [[self.turns.pop(0) for _ in range(request.n)] for request in requests]


def request(tokenizer: Tokenizer, task: CalculatorTask, max_tokens: int = 128, n: int = 1) -> Request:
    sampling = Sampling(max_tokens=max_tokens, stop_tokens=(tokenizer.end_id,))  # type: ignore[arg-type]
    return Request(prompt_ids=calculator_question(tokenizer, task), sampling=sampling, n=n, seed=7)


@pytest.mark.parametrize("task", [*TASKS, BOTH])
def test_a_played_answer_is_the_demonstration_token_for_token(tokenizer: Tokenizer, task: CalculatorTask) -> None:
    messages = calculator.demonstration(task)
    says = Says(*(turn(tokenizer, m["content"]) for m in messages if m["role"] == "assistant"))
    ((answer,),) = play(says, [request(tokenizer, task)], CalculatorTool(tokenizer, 4))
    assert isinstance(answer, Played)
    whole = encode_chat(tokenizer, messages)
    prompt = calculator_question(tokenizer, task)
    assert [*prompt, *answer.token_ids] == whole.ids
    assert list(answer.own) == whole.learned[len(prompt) :]  # what RL learns is what SFT learns
    assert (answer.calls, answer.failed, answer.finish_reason) == (sum(map(len, task.turns)), 0, "stop")
    assert [p == 0 for p in answer.logprobs] == [not own for own in answer.own]
    assert says.asked[1].prompt_ids == (*prompt, *answer.token_ids[: -len(last_turn(answer))])
    assert calculator_judge(tokenizer, task)(answer) == {"reward": 1.0}


def test_the_results_are_the_agents() -> None:
    said = [
        "<tool> calculator : 3 * 4 </tool>",
        "So <tool> calculator : 1 / 0 </tool> and <tool> calculator : 0.1 + 0.2 </tool>",
        "<tool> calculator 3 </tool>",
        "<tool> abacus : 3 </tool>",
        "<tool> calculator : sqrt(2) </tool>",
        "<tool> calculator : 1 + 1 </tool> <result> 3 </result> <tool> calculator : 2 + 2 </tool>",
        "<tool> calculator : 1 + ",
    ]
    for text in said:
        replies = iter([text, "answer: 1"])

        def reply(call: Call, replies: object = replies) -> str:
            return next(replies)  # type: ignore[call-overload]

        outcome = Agent(LLM(Scripted(reply)), [builtin.calculator()], AgentConfig(protocol="trained")).run("?")
        theirs = outcome.messages[2]["content"]
        assert calculator.results_text(calculator.respond(text)) == theirs
    assert calculator.respond("answer: 12") == []


def test_what_ends_an_answer(tokenizer: Tokenizer) -> None:
    call = turn(tokenizer, "<tool> calculator : 2 + 3 </tool>")
    tool = CalculatorTool(tokenizer, 2)
    cases = {
        "too many calls": ((call, call, call), 128, ("length", 2)),
        "no room for the result": ((call,), len(call.token_ids) + 5, ("length", 0)),
        "cut in the second turn": ((call, turn(tokenizer, "answer", ended=False)), 128, ("length", 1)),
        "a call that was cut off": ((turn(tokenizer, "<tool> calculator : 2", ended=False),), 128, ("length", 0)),
        "a thought is no call": (
            (turn(tokenizer, "<think><tool> calculator : 2 + 3 </tool></think>answer: 5"),),
            128,
            ("stop", 0),
        ),
    }
    for name, (turns, room, (reason, calls)) in cases.items():
        ((answer,),) = play(Says(*turns), [request(tokenizer, BOTH, room)], tool)
        assert isinstance(answer, Played)
        assert (answer.finish_reason, answer.calls) == (reason, calls), name
        assert len(answer.token_ids) <= room
        assert calculator_judge(tokenizer, BOTH)(answer) == {"reward": 0.0}
    broken = turn(tokenizer, "<tool> calculator : 2 / 0 </tool>")
    ((answer,),) = play(Says(broken, turn(tokenizer, "answer: 0")), [request(tokenizer, BOTH)], tool)
    assert (answer.calls, answer.failed) == (1, 1)  # type: ignore[attr-defined]


def test_an_answer_of_two_sets_of_weights_is_refused(tokenizer: Tokenizer) -> None:
    other = Completion(**{**turn(tokenizer, "answer: 5").__dict__, "weights_hash": "other"})
    says = Says(turn(tokenizer, "<tool> calculator : 2 + 3 </tool>"), other, *(turn(tokenizer, "answer: 5"),))
    objective = grpo(tokenizer, [BOTH], GRPOConfig(steps=1, prompts=1, samples=2, tool="calculator"))
    says.turns.insert(1, turn(tokenizer, "answer: 5"))
    ctx = Context(models={}, ops=LocalOps(), device=CPU, seed=0, score=lambda *_: None, generate=says)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="different weights"):
        objective.next_step(ctx)


def grpo(tokenizer: Tokenizer, tasks: Sequence[CalculatorTask], config: GRPOConfig) -> GRPO:
    def prompt(index: int) -> Prompt:
        task = tasks[index % len(tasks)]
        return Prompt(calculator_question(tokenizer, task), calculator_judge(tokenizer, task))

    tool = CalculatorTool(tokenizer, config.max_calls)
    return GRPO(prompt, config, (tokenizer.end_id,), tool)  # type: ignore[arg-type]


def sizes(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96,
        vocab_size=tokenizer.vocab_size, max_context=192, qk_norm=True,
    )  # fmt: skip


def demonstration(tokenizer: Tokenizer, index: int) -> Sample:
    """Half of them call the calculator, half guess: a number of three digits, right once in a long time."""
    rng = random.Random(derive_seed("tool demonstrations", index))
    task = rng.choice(TASKS)
    messages = calculator.demonstration(task)
    if index % 2:
        guess = rng.randrange(100, 1000)
        messages = [messages[0], {"role": "assistant", "content": f"answer: {guess}"}]
    return sft_sample(encode_chat(tokenizer, messages))


@pytest.fixture(scope="module")
def start(tokenizer: Tokenizer) -> Transformer:
    """A small model that learned to call or to guess."""
    torch.set_num_threads(1)
    model = build(sizes(tokenizer), seed=1)
    step = PlainStep({"policy": model}, LocalOps(), CPU, None)
    ctx = Context(models={"policy": model}, ops=LocalOps(), device=CPU, seed=0, score=step.score)
    objective, optimizer = SFT(partial(demonstration, tokenizer), 16, 2048), Optimizer(model, OptimConfig(lr=5e-3), 120)
    for number in range(120):
        train(objective, step, optimizer, ctx, number)
    return model


def train(
    objective: SFT | GRPO, step: PlainStep, optimizer: Optimizer, ctx: Context, number: int
) -> Mapping[str, float]:
    ctx.step = number
    figures: dict[str, float] = {}
    for update in objective.next_step(ctx):
        metrics = step.backward(update)
        figures |= {name: float(mean.total / mean.weight) for name, mean in metrics.items()}
        torch.nn.utils.clip_grad_norm_(list(ctx.models["policy"].parameters()), 1.0)
        optimizer.step(number)
    return {**figures, **objective.step_metrics()}


def test_reinforcement_learns_to_call(tokenizer: Tokenizer, start: Transformer) -> None:
    """From half the answers called and half guessed to nearly all called; log-probs agree throughout."""
    model = build(sizes(tokenizer), seed=1)
    model.load_state_dict(start.state_dict())
    step, engine = PlainStep({"policy": model}, LocalOps(), CPU, None), Engine(model)

    def generate(requests: list[Request]) -> list[list[Completion]]:
        engine.refresh(None)
        return engine.generate(requests)

    ctx = Context(models={"policy": model}, ops=LocalOps(), device=CPU, seed=0, score=step.score, generate=generate)
    config = GRPOConfig(steps=20, prompts=6, samples=8, max_tokens=64, tool="calculator", micro_tokens=2048)
    objective = grpo(tokenizer, TASKS, config)
    optimizer = Optimizer(model, OptimConfig(lr=1e-3, schedule="constant"), 20)
    log = [train(objective, step, optimizer, ctx, number) for number in range(20)]
    assert all(figures["engine_gap"] < 1e-4 for figures in log)
    early, late = (
        {name: fmean(figures[name] for figures in part) for name in ("reward", "tool_calls", "tool_tokens")}
        for part in (log[:2], log[-8:])
    )
    assert 0.2 < early["reward"] < 0.75
    assert late["reward"] > 0.85
    assert late["tool_calls"] > 0.9 > early["tool_calls"]
    assert late["tool_tokens"] > early["tool_tokens"]


def test_the_gradient_is_that_of_the_policys_tokens_alone(tokenizer: Tokenizer, start: Transformer) -> None:
    """Written out, answer by answer; learning the tool's tokens, too, would be another gradient."""
    model = build(sizes(tokenizer), seed=1, dtype=torch.float64)
    model.load_state_dict(start.state_dict())
    engine, tool = Engine(model), CalculatorTool(tokenizer, 4)
    prompts = [Prompt(calculator_question(tokenizer, t), calculator_judge(tokenizer, t)) for t in TASKS]
    answered = play(engine.generate, [request(tokenizer, t, 64, n=4) for t in TASKS], tool)
    groups = [
        Group(p, tuple(cs), tuple({"reward": float(i)} for i in range(4)))
        for p, cs in zip(prompts, answered, strict=True)
    ]
    assert any(c.calls for cs in answered for c in cs if isinstance(c, Played))

    def gradient(skip_tool: bool) -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        terms, tokens = [], 0
        for group in groups:
            for reward, answer in enumerate(group.completions):
                assert isinstance(answer, Played)
                ids = torch.tensor([[*group.prompt.ids, *answer.token_ids]])
                hidden = model.hidden(ids[:, :-1], torch.arange(ids.shape[1] - 1)[None], DenseAttend(None))
                logprobs = model.logits(hidden).log_softmax(-1)[0]
                advantage = (reward - 1.5) / (1.25**0.5 + 1e-4)
                for i, (token, own, sampled) in enumerate(
                    zip(answer.token_ids, answer.own, answer.logprobs, strict=True)
                ):
                    here = logprobs[len(group.prompt.ids) - 1 + i, token]
                    if own or not skip_tool:
                        terms.append(-advantage * here)
                        tokens += 1
                    if own:
                        assert float(here.detach()) == pytest.approx(sampled, abs=1e-5)
        (torch.stack(terms).sum() / tokens).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    true, wrong = gradient(True), gradient(False)
    model.zero_grad(set_to_none=True)
    step = PlainStep({"policy": model}, LocalOps(), CPU, None)
    step.backward(Update("policy", pack_samples(group_samples(groups), 512), GRPOLoss(0.2, 0.2, 1.0)))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert max(float((ours[n] - g).norm() / g.norm()) for n, g in true.items()) < 1e-5
    assert max(float((ours[n] - g).norm() / g.norm()) for n, g in wrong.items()) > 1e-2


def test_ahead_of_training_the_same_answers(tokenizer: Tokenizer, start: Transformer) -> None:
    """A tool in the background: what the same weights answer at once."""
    tool = CalculatorTool(tokenizer, 4)
    asked = [request(tokenizer, task, 64, n=3) for task in TASKS]
    engine = OwnCopy(start, CPU, None)
    engine.take()
    later = engine.begin(asked, partial(play, tool=tool))()
    assert later == play(Engine(start).generate, asked, tool)
    assert any(isinstance(c, Played) and c.calls for group in later for c in group)
