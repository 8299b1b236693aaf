"""An agent: a model that may use tools until it knows the answer, within limits.

    conversation = task (+ a plan)
    repeat:  reply = model(conversation)
             no call in it?  ->  that is the answer
             results = all its calls, at once        errors are results, too: the model reads them and may mend them
             conversation += reply, results

Sources: ReAct (Yao et al. 2023, "Synergizing Reasoning and Acting"), section 2, for interleaving; plan first: "Plan-
and-Solve Prompting" (Wang et al. 2023), section 2.1. How calls are written is `dialect.py`'s matter, what touches the
world is `world.py`'s.

It ends with an answer, or because steps, tokens or seconds are spent (then `answer` is ""), or the model's reply was
cut off ("length"). It does not handle several agents, memory between runs, or a conversation longer than the
model's context (old results are not summarised).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sekkei.agent.dialect import Asked, Dialect, choose
from sekkei.agent.registry import Registry, Tool
from sekkei.agent.world import Approver, Listener, Live, OutOfTimeError, World
from sekkei.core.config import to_mapping
from sekkei.core.errors import ConfigError
from sekkei.llm.face import LLM, wait_for
from sekkei.llm.protocol import Call, Message, Reply, Settings, Usage

VERSION = 1
PLAN = "\n\nBefore you act, write a short numbered plan: which steps, which tool for which. Do not call a tool yet."
ACT = "Now carry out the plan. Change it when a result asks for it."
Stopped = Literal["answer", "length", "steps", "tokens", "seconds"]


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Limits and manners of an agent.

    Args:
        protocol: auto, native, text or trained (see dialect.py). plan: write a plan before acting.
        max_steps: replies of the model, the plan not counted. max_total_tokens: prompts and replies of all steps.
        seconds: of the whole run, without those that a person takes to approve.
        max_tokens, temperature, seed, thinking: of each reply, as in llm.protocol.Settings.
        parallel: tools that run at once. tool_seconds: of one call. result_chars: longer results are cut.
    """

    protocol: str = "auto"
    plan: bool = False
    max_steps: int = 10
    max_total_tokens: int = 100_000
    seconds: float = 300.0
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0
    thinking: bool = True
    parallel: int = 4
    tool_seconds: float = 60.0
    result_chars: int = 8000

    def __post_init__(self) -> None:
        for key in (
            *("max_steps", "max_total_tokens", "seconds", "max_tokens"),
            *("parallel", "tool_seconds", "result_chars"),
        ):
            if getattr(self, key) <= 0:
                raise ConfigError(key, f"got {getattr(self, key)}, must be above 0")
        if self.plan and self.protocol == "trained":
            raise ConfigError("plan", "needs a model that follows instructions, which protocol=trained does without")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Args:
        answer: the last reply's text; "" unless `stopped` is "answer" or "length".
        stopped: "answer", or the limit that ended it. steps: replies of the model, the plan not counted.
        calls: tool calls. failed: those of them whose result was an error.
        usage: tokens of all replies. seconds: of the run. messages: the whole conversation, the last reply included.
    """

    answer: str
    stopped: Stopped
    steps: int
    calls: int
    failed: int
    usage: Usage
    seconds: float
    plan: str = ""
    messages: tuple[Message, ...] = field(default=(), repr=False)


class Agent:
    """A model with tools.

    Args:
        llm: who answers. tools: what it may call.
        config: limits. system: instead of the usual system message (with protocol=trained: instead of none).
        approve: asked before a tool that writes is called; None: such calls are refused.
        listen: gets every event of every run (trace.Recorder writes them down).

    Raises:
        ConfigError: a protocol that the model cannot speak.
    """

    def __init__(
        self,
        llm: LLM,
        tools: Registry | Sequence[Tool] = (),
        config: AgentConfig | None = None,
        *,
        system: str | None = None,
        approve: Approver | None = None,
        listen: Listener = lambda event: None,
    ) -> None:
        self.llm = llm
        self.tools = tools if isinstance(tools, Registry) else Registry(tools)
        self.config = config or AgentConfig()
        self.system, self.approve, self.listen = system, approve, listen
        self.dialect = Dialect(choose(self.config.protocol, llm.capabilities), self.tools, system)
        if self.config.plan and self.dialect.name == "trained":
            raise ConfigError("plan", f"{llm.name} speaks protocol=trained, which follows no instructions; try text")

    def run(self, task: str) -> Outcome:
        """As `arun`, waiting; not from inside a coroutine."""
        return wait_for(self.arun(task))

    async def arun(self, task: str) -> Outcome:
        """Work on a task.

        Raises:
            LLMError: the model cannot answer. What tools do wrong never ends a run.
        """
        config = self.config
        self.listen(
            {
                "event": "start",
                "version": VERSION,
                "task": task,
                "model": self.llm.name,
                "protocol": self.dialect.name,
                "system": self.system,
                "config": to_mapping(config),
                "tools": [
                    {"schema": tool.schema, "only_argument": tool.only_argument, "writes": tool.writes}
                    for tool in self.tools
                ],
            }
        )
        world = Live(
            self.llm,
            self.tools,
            approve=self.approve,
            listen=self.listen,
            parallel=config.parallel,
            tool_seconds=config.tool_seconds,
            result_chars=config.result_chars,
        )
        outcome = await pursue(task, self.dialect, config, world)
        self.listen({"event": "end", "outcome": outcome_mapping(outcome)})
        return outcome


class _Spent:
    """What a run has used so far, and what it may still use."""

    def __init__(self, config: AgentConfig, world: World) -> None:
        self.config, self.world = config, world
        self.usage = Usage()
        self.steps = self.calls = self.failed = 0
        self.seconds = 0.0

    def limit(self) -> Stopped | None:
        """The limit that is reached, if any; looks at the clock."""
        self.seconds = self.world.elapsed()
        if self.seconds >= self.config.seconds:
            return "seconds"
        if self.usage.total_tokens >= self.config.max_total_tokens:
            return "tokens"
        return "steps" if self.steps >= self.config.max_steps else None

    @property
    def left(self) -> float:
        return self.config.seconds - self.seconds

    def settings(self, stop: tuple[str, ...]) -> Settings:
        room = self.config.max_total_tokens - self.usage.total_tokens
        return Settings(
            temperature=self.config.temperature,
            max_tokens=min(self.config.max_tokens, room),
            seed=self.config.seed,
            thinking=self.config.thinking,
            stop=stop,
        )


async def pursue(task: str, dialect: Dialect, config: AgentConfig, world: World) -> Outcome:
    """The loop itself; the same for a live run and a replay."""
    spent, plan = _Spent(config, world), ""
    messages = dialect.opening(task)

    def ended(stopped: Stopped, answer: str = "") -> Outcome:
        return Outcome(
            answer=answer,
            stopped=stopped,
            steps=spent.steps,
            calls=spent.calls,
            failed=spent.failed,
            usage=spent.usage,
            seconds=spent.seconds,
            plan=plan,
            messages=tuple(messages),
        )

    async def ask(tools: bool) -> Reply:
        stop, schemas = (dialect.stop, dialect.schemas) if tools else ((), ())
        reply = await world.reply(
            Call(messages=tuple(messages), settings=spent.settings(stop), tools=schemas), spent.left
        )
        spent.usage += reply.usage
        return reply

    try:
        if config.plan:
            if limit := spent.limit():
                return ended(limit)
            messages[-1] = {"role": "user", "content": task + PLAN}
            plan = (await ask(tools=False)).text.strip()
            messages += [{"role": "assistant", "content": plan}, {"role": "user", "content": ACT}]
        while True:
            if limit := spent.limit():
                return ended(limit)
            reply = await ask(tools=True)
            spent.steps += 1
            asked: list[Asked] = dialect.calls(reply, spent.steps)
            if not asked:
                messages.append({"role": "assistant", "content": dialect.said(reply)})
                spent.seconds = world.elapsed()
                return ended("length" if reply.finish_reason == "length" else "answer", dialect.said(reply))
            told = await world.use(asked, spent.left)
            spent.calls += len(told)
            spent.failed += sum(one.failed for one in told)
            messages += dialect.turn(reply, told)
    except OutOfTimeError:
        spent.seconds = world.elapsed()
        return ended("seconds")


def outcome_mapping(outcome: Outcome) -> dict[str, Any]:
    """As plain JSON values, without the conversation (the rest of a trace holds it)."""
    found = to_mapping(outcome)
    del found["messages"]
    return found
