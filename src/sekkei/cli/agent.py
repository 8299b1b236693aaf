"""`sekkei agent`: a model works on a task with tools. Its answer goes to standard output, its steps to standard error.

What tools return may hold instructions that somebody planted. So a tool that writes, or that a server does not mark
as reading only, asks a person first; without a terminal to ask on it is refused, unless --approve all says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekkei.core.errors import ConfigError

if TYPE_CHECKING:
    from sekkei.agent.loop import AgentConfig, Outcome
    from sekkei.agent.registry import Tool
    from sekkei.agent.world import Approver, Listener

KINDS = "calculator, python, rag:INDEX, files:FOLDER, write:FOLDER"
PASSAGES = 4  # of one search
SHOWN = 200  # characters of an argument or result on the console


def command(
    task: Annotated[str, typer.Argument(help="what to do; with --replay it may be left out")] = "",
    tools: Annotated[str, typer.Option(help=f"with commas between: {KINDS}")] = "calculator",
    model: Annotated[str, typer.Option(help="who works: runs/NAME, https://HOST/v1#MODEL or env")] = "env",
    mcp: Annotated[list[str] | None, typer.Option(help="command of an MCP server whose tools to add")] = None,
    protocol: Annotated[str, typer.Option(help="how calls are written: auto, native, text or trained")] = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="write a plan before acting")] = False,
    approve: Annotated[str, typer.Option(help="tools that write: ask, all or none")] = "ask",
    max_steps: Annotated[int, typer.Option(help="replies of the model")] = 10,
    max_tokens: Annotated[int, typer.Option(help="tokens of one reply")] = 1024,
    max_total_tokens: Annotated[int, typer.Option(help="prompts and replies of all steps")] = 100_000,
    seconds: Annotated[float, typer.Option(help="of the whole run")] = 300.0,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token")] = 0.0,
    trace: Annotated[Path | None, typer.Option(help="write every event to this JSONL file")] = None,
    replay: Annotated[Path | None, typer.Option(help="run a trace again, without model and tools")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> int:
    """Let a model use tools until it knows the answer. The exit code is 1 if a limit ended it first.

    Without --model, SEKKEI_LLM_URL and SEKKEI_LLM_MODEL name an endpoint. Python runs in a sandbox without network and
    files. A model of our own speaks the protocol that it was trained for, and knows the calculator.

    \b
    Examples:
      sekkei agent "How many seconds have 17 weeks?" --model https://api.openai.com/v1#gpt-4o-mini
      sekkei agent "Multiply 347 by 28." --model runs/laptop
      sekkei agent "Which test is the slowest, and why?" --tools python,rag:docs-index,files:. --plan --trace run.jsonl
      sekkei agent --replay run.jsonl
      sekkei agent "What is on my calendar?" --tools "" --mcp "python calendar_server.py"
    """
    if replay is not None:
        from sekkei.agent.trace import replay as run_again

        outcome = run_again(replay, task=task or None)
        print(_shown(outcome, as_json))
        return 0 if outcome.stopped == "answer" else 1
    if not task.strip():
        raise ConfigError("task", "is empty; say what to do, or name a trace with --replay")
    from sekkei.agent.loop import AgentConfig

    config = AgentConfig(
        protocol=protocol,
        plan=plan,
        max_steps=max_steps,
        max_tokens=max_tokens,
        max_total_tokens=max_total_tokens,
        seconds=seconds,
        temperature=temperature,
    )
    approver = approver_of(approve)
    found = tools_of(tools)
    outcome = work(task, found, mcp or [], model, config, approver, trace)
    print(_shown(outcome, as_json))
    if outcome.stopped != "answer":
        _say(f"stopped by its limit of {outcome.stopped} after {outcome.steps} steps")
    return 0 if outcome.stopped == "answer" else 1


def work(
    task: str,
    tools: Sequence[Tool],
    servers: Sequence[str],
    model: str,
    config: AgentConfig,
    approve: Approver | None,
    trace: Path | None,
) -> Outcome:
    """Open what is needed, run, and close it, whatever happens."""
    from sekkei.agent.loop import Agent
    from sekkei.agent.mcp_client import mcp_tools
    from sekkei.agent.trace import Recorder
    from sekkei.llm.face import wait_for
    from sekkei.llm.open import open_llm

    async def run() -> Outcome:
        async with contextlib.AsyncExitStack() as stack:  # servers live in the coroutine that uses them
            more = [tool for server in servers for tool in await stack.enter_async_context(mcp_tools(server))]
            agent = Agent(llm, [*tools, *more], config, approve=approve, listen=listen)
            return await agent.arun(task)

    with contextlib.ExitStack() as stack:
        llm = stack.enter_context(open_llm(model))
        recorder: Listener | None = stack.enter_context(Recorder(trace)) if trace is not None else None

        def listen(event: Mapping[str, Any]) -> None:
            if recorder is not None:
                recorder(event)
            _tell(event)

        return wait_for(run())


def tools_of(listed: str) -> list[Tool]:
    """The tools of a list as "python,rag:docs-index".

    Raises:
        ConfigError: a kind that is not known, or one that needs a place and has none.
        UserError: the place is not there, or this machine has no sandbox.
    """
    from sekkei.agent import builtin

    found: list[Tool] = []
    for entry in filter(None, map(str.strip, listed.split(","))):
        kind, _, place = entry.partition(":")
        if kind in ("rag", "files", "write") and not place:
            raise ConfigError("--tools", f"{kind} needs a place, as {kind}:{'docs-index' if kind == 'rag' else 'docs'}")
        if kind in ("calculator", "python") and not entry.count(":"):
            found.append(builtin.calculator() if kind == "calculator" else builtin.python())
        elif kind == "rag":
            found.append(builtin.retrieval(search_of(place), f"Searches {place}."))
        elif kind in ("files", "write"):
            found += builtin.files(Path(place), write=kind == "write")
        else:
            raise ConfigError("--tools", f"{entry!r} is not known; known: {KINDS}; servers come with --mcp")
    return found


def search_of(address: str) -> Callable[[str], list[str]]:
    """A search of an index whose passages name their source."""
    from sekkei.cli.rag import open_index, where
    from sekkei.rag.retrieve import search

    opened = open_index(address)

    def run(query: str) -> list[str]:
        chunks = [hit.chunk for hit in search(opened, query, PASSAGES)]
        return [f"{where(c.path, c.place, c.source_start, c.source_end)}\n{c.context}" for c in chunks]

    return run


def approver_of(mode: str) -> Approver | None:
    """Who decides on calls that write.

    Raises:
        ConfigError: no such mode.
    """
    if mode not in ("ask", "all", "none"):
        raise ConfigError("--approve", f"got {mode!r}, must be ask, all or none")
    if mode == "all":
        return lambda tool, arguments: ""
    return _asked if mode == "ask" and sys.stdin.isatty() else None


def _asked(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """Show the whole call, so that nothing hides behind a cut, and ask."""
    _say(f"\n{tool.name} wants to write:\n{_visible(json.dumps(dict(arguments), ensure_ascii=False, indent=1))}")
    print("allow? [y/N, or why not] ", end="", file=sys.stderr, flush=True)
    said = sys.stdin.readline().strip()
    if said.lower() in ("y", "yes"):
        return ""
    return "a person said no" if said.lower() in ("", "n", "no") else f"a person said: {said}"


def _tell(event: Mapping[str, Any]) -> None:
    """One line per call on standard error."""
    if event["event"] == "tool":
        mark = "failed" if event["failed"] else "ok"
        _say(f"  {event['tool'] or '?'}({_short(event['arguments'])}) {mark}: {_short(event['result'])}")
    elif event["event"] == "approval" and not event["allowed"]:
        _say(f"  {event['tool']}: not allowed ({event['reason']})")


def _short(text: str) -> str:
    line = " ".join(_visible(text).split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def _visible(text: str) -> str:
    """Without control characters, which could repaint the terminal that a person decides on."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _shown(outcome: Outcome, as_json: bool) -> str:
    from sekkei.agent.loop import outcome_mapping

    if as_json:
        return json.dumps(outcome_mapping(outcome) | {"messages": list(outcome.messages)}, ensure_ascii=False, indent=1)
    return outcome.answer if not sys.stdout.isatty() else _visible(outcome.answer)


def _say(text: str) -> None:
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)
