"""How well a model uses the calculator: held-out tasks, worked through by the whole loop.

    success          the run ended by itself, and its reply ends in the right answer        (low, high: 95%, Wilson)
    success.KIND     the same for tasks of one kind (data/tasks/calculator.py)
    called           runs that called the calculator at least once
    failed           calls that came back as errors, of all calls
    without          the right answer where the reply is begun with "answer:", so that nothing can be called
    tokens           prompts and replies of a run, on average

"without" is the control: what of `success` is the tool's. It needs a model that goes on from a begun reply.
It does not handle tasks of other tools, or judging how an answer came about: a right answer without a call counts.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Sequence

from sekkei.agent import builtin
from sekkei.agent.loop import Agent, AgentConfig, Outcome
from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.data.tasks import calculator
from sekkei.data.tasks.calculator import CalculatorConfig, CalculatorTask
from sekkei.llm.face import LLM, wait_for
from sekkei.llm.protocol import Settings
from sekkei.tools.statistics import wilson

MAX_STEPS = 4  # the longest task needs three replies
MAX_TOKENS = 64  # of a reply; two calls of six-digit numbers are about 40
BEGUN = "answer:"


def held_out_tasks(config: CalculatorConfig, count: int, seed: int) -> list[CalculatorTask]:
    """`count` tasks of the test side, the kinds in turn."""
    rng = random.Random(derive_seed("calculator exam", seed))
    kinds = calculator.KINDS
    return [calculator.sample_task(rng, "test", config, kinds[i % len(kinds)]) for i in range(count)]


def calculator_exam(
    llm: LLM, tasks: Sequence[CalculatorTask], config: AgentConfig | None = None
) -> tuple[dict[str, float], list[Outcome]]:
    """Figures as in the header, and the runs they come from, in the order of `tasks`. Answers are greedy.

    Args:
        llm: who works; all tasks are under way at once, so a model of our own decodes them together.
        config: of each run; None: few, short steps, in the protocol that suits the model.
    Raises:
        UserError: no tasks. LLMError: the model cannot answer.
    """
    if not tasks:
        raise UserError("calculator exam: needs at least one task")
    config = config or AgentConfig(max_steps=MAX_STEPS, max_tokens=MAX_TOKENS, seconds=3600.0)
    agent = Agent(llm, [builtin.calculator()], config)

    async def work() -> list[Outcome]:
        return list(await asyncio.gather(*(agent.arun(task.question) for task in tasks)))

    outcomes = wait_for(work())
    good = [
        run.stopped == "answer" and calculator.verify(task, run.answer)
        for task, run in zip(tasks, outcomes, strict=True)
    ]
    low, high = wilson(sum(good), len(good))
    calls = sum(run.calls for run in outcomes)
    figures = {
        "success": statistics.fmean(good),
        "success.low": low,
        "success.high": high,
        "called": statistics.fmean([run.calls > 0 for run in outcomes]),
        "failed": sum(run.failed for run in outcomes) / max(calls, 1),
        "tokens": statistics.fmean([run.usage.total_tokens for run in outcomes]),
    }
    for kind in dict.fromkeys(task.kind for task in tasks):
        figures[f"success.{kind}"] = statistics.fmean([g for g, task in zip(good, tasks) if task.kind == kind])
    if llm.capabilities.continues:
        figures["without"] = _without(llm, tasks)
    return figures, outcomes


def _without(llm: LLM, tasks: Sequence[CalculatorTask]) -> float:
    """Share of tasks whose answer the model knows by itself."""
    asked = [[*calculator.prompt(task), {"role": "assistant", "content": BEGUN}] for task in tasks]
    replies = llm.chat_many(asked, Settings(max_tokens=MAX_TOKENS))
    return statistics.fmean(
        [
            reply.finish_reason == "stop" and calculator.verify(task, BEGUN + reply.text)
            for task, reply in zip(tasks, replies)
        ]
    )
