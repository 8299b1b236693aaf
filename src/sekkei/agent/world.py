"""Everything through which an agent's loop touches what is not itself: the model, the tools, a person, the clock.

    loop --reply, use, elapsed--> Live    asks the model, runs the tools, asks the person; tells a listener each event
                                  Replayed (trace.py)    gives back what a trace holds, and refuses anything else

The loop itself is a pure function of these answers, so a trace replays exactly.

Live runs the calls of one turn at once (coroutines as they are, plain functions in threads), after a person was
asked, one by one, about those that write. A plain function that does not return in time is told to have failed, but
its thread cannot be stopped: tools that may take long should keep a limit themselves, as the sandbox does. The time
that a person takes to decide does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sekkei.agent.dialect import Asked, Told
from sekkei.agent.registry import Registry, Tool, ToolError, show
from sekkei.core.errors import UserError
from sekkei.llm.cache import reply_mapping
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Call, Reply

Listener = Callable[[Mapping[str, Any]], None]
Approver = Callable[[Tool, Mapping[str, Any]], str]  # "" allows; anything else is the reason of the refusal


class OutOfTimeError(Exception):
    """The model did not answer within the time that was left."""


class World(Protocol):
    """See the header."""

    def elapsed(self) -> float:
        """Seconds since the start, without those that a person took."""
        ...

    async def reply(self, call: Call, seconds: float) -> Reply:
        """Raises OutOfTimeError, and LLMError as the model does."""
        ...

    async def use(self, asked: Sequence[Asked], seconds: float) -> list[Told]:
        """All results, in the order of the calls. Failures are results too."""
        ...


class Live:
    """The real thing.

    Args:
        llm: who answers. tools: what may be called.
        approve: asked before a tool that writes is called; None: such calls are refused.
        listen: gets every event, as trace.py describes them.
        parallel: most tools at once. tool_seconds: most time of one call. result_chars: longer results are cut.
    """

    def __init__(
        self,
        llm: LLM,
        tools: Registry,
        *,
        approve: Approver | None = None,
        listen: Listener = lambda event: None,
        parallel: int = 4,
        tool_seconds: float = 60.0,
        result_chars: int = 8000,
    ) -> None:
        self.llm, self.tools, self.approve, self.listen = llm, tools, approve, listen
        self.tool_seconds, self.result_chars = tool_seconds, result_chars
        self._places = asyncio.Semaphore(parallel)
        self._began = time.monotonic()
        self._told: int = 0  # messages that the listener has been told of

    def elapsed(self) -> float:
        elapsed = time.monotonic() - self._began
        self.listen({"event": "clock", "elapsed": elapsed})
        return elapsed

    async def reply(self, call: Call, seconds: float) -> Reply:
        asked = {"key": call.key(self.llm.name), **call.mapping()}
        del asked["tools"]  # they stand at the head of the trace
        asked["messages"] = asked["messages"][self._told :]
        self._told = len(call.messages)
        began = time.monotonic()
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                reply = await self.llm.achat(call.messages, call.settings, call.tools)
        except TimeoutError:
            self.listen({"event": "reply", **asked, "timeout": True})
            raise OutOfTimeError from None
        except UserError as error:
            self.listen({"event": "reply", **asked, "error": str(error)})
            raise
        taken = round(time.monotonic() - began, 4)
        self.listen({"event": "reply", **asked, "reply": reply_mapping(reply), "seconds": taken})
        return reply

    async def use(self, asked: Sequence[Asked], seconds: float) -> list[Told]:
        ready = [await self._prepared(one) for one in asked]
        limit = max(min(self.tool_seconds, seconds), 0.1)
        done = await asyncio.gather(*(self._used(one, limit) for one in ready))
        for told, taken in done:
            one = told.asked
            event = {"event": "tool", "id": one.id, "tool": one.name, "arguments": one.arguments}
            self.listen({**event, "result": told.text, "failed": told.failed, "seconds": taken})
        return [told for told, _ in done]

    async def _prepared(self, asked: Asked) -> tuple[Asked, Tool, dict[str, Any]] | Told:
        """Checked and, where it writes, allowed by a person; else what the model is told instead."""
        if asked.unreadable:
            return Told(asked, f"error: {asked.unreadable}", True)
        try:
            tool, arguments = self.tools.prepare(asked.name, asked.arguments)
        except ToolError as error:
            return Told(asked, f"error: {error}", True)
        if tool.writes:
            refusal = await self._refusal(tool, arguments)
            shown = {"event": "approval", "tool": tool.name, "arguments": asked.arguments}
            self.listen({**shown, "allowed": not refusal, "reason": refusal})
            if refusal:
                return Told(asked, f"error: not allowed: {refusal}", True)
        return asked, tool, arguments

    async def _refusal(self, tool: Tool, arguments: Mapping[str, Any]) -> str:
        if self.approve is None:
            return f"{tool.name} writes, and nobody is there to approve it"
        began = time.monotonic()
        try:
            return await _apart(lambda: self.approve(tool, arguments) if self.approve else "")
        finally:
            self._began += time.monotonic() - began

    async def _used(self, ready: tuple[Asked, Tool, dict[str, Any]] | Told, limit: float) -> tuple[Told, float]:
        if isinstance(ready, Told):
            return ready, 0.0
        asked, tool, arguments = ready
        async with self._places:
            began = time.monotonic()
            try:
                async with asyncio.timeout(limit):
                    text, failed = self._cut(show(await _called(tool, arguments))), False
            except TimeoutError:
                text, failed = f"error: {tool.name} took longer than {limit:g} s", True
            except (ToolError, UserError) as error:
                text, failed = self._cut(f"error: {error}"), True
            except Exception as error:  # a tool's bug must not end the agent; the model is told
                text, failed = self._cut(f"error: {type(error).__name__}: {error}"), True
            return Told(asked, text, failed), round(time.monotonic() - began, 4)

    def _cut(self, text: str) -> str:
        if len(text) <= self.result_chars:
            return text
        return f"{text[: self.result_chars]}… (cut: {len(text):,} characters in all)"


async def _called(tool: Tool, arguments: dict[str, Any]) -> object:
    if inspect.iscoroutinefunction(tool.call):
        return await tool.call(**arguments)
    result = await _apart(lambda: tool.call(**arguments))
    return await result if inspect.isawaitable(result) else result


async def _apart(work: Callable[[], Any]) -> Any:
    """Run it in a daemon thread: a pool's would keep a process that was told to end until they return by themselves."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(error: BaseException | None, value: object) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def run() -> None:
        error, value = None, None
        try:
            value = work()
        except BaseException as caught:
            # a future takes no StopIteration, and SystemExit would end the loop's thread
            error = caught if isinstance(caught, Exception) else RuntimeError(f"{type(caught).__name__}: {caught}")
            if isinstance(caught, StopIteration):
                error = RuntimeError("StopIteration")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, error, value)

    threading.Thread(target=run, name="sekkei-tool", daemon=True).start()
    return await done
