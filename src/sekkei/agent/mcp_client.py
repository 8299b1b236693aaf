"""Tools of a Model Context Protocol server that runs as a child process (stdio transport).

    async with mcp_tools("python weather_server.py") as tools:
        agent = Agent(llm, [*tools, …])

The server is started when the block is entered, and is gone when it is left. It gets only the environment that the
`mcp` package passes on (PATH, HOME and the like; no keys). Its tools are checked by their own JSON Schema before a
call, and count as writing unless the server marks them read-only (`readOnlyHint`): a hint that a server gives about
itself, so connect only to servers that you trust.

Source: modelcontextprotocol.io, specification 2025-06-18, "Tools"; both majors of the `mcp` package (1.9 and 2.x).

It does not handle HTTP transports, prompts and resources of servers, images in results (they are named, not shown),
and requests of the server to the model ("sampling"), which are declined.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import tempfile
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sekkei.agent.registry import Tool, ToolError
from sekkei.core.errors import UserError

START_SECONDS = 30.0  # for a server to start and say what it offers


@contextlib.asynccontextmanager
async def mcp_tools(command: str, env: Mapping[str, str] | None = None) -> AsyncIterator[list[Tool]]:
    """Start a server and give its tools, as long as the block lasts.

    Args:
        command: as in a shell, without pipes. env: added to the server's environment.

    Raises:
        UserError: the package is missing, the command does not start, or does not speak the protocol.
    """
    try:
        from mcp import ClientSession, StdioServerParameters
        from mcp.client.stdio import stdio_client
    except ImportError:
        raise UserError("mcp: the package is missing; pip install 'sekkei[agent]'") from None
    words = _words(command)
    server = StdioServerParameters(command=words[0], args=words[1:], env=dict(env or {}))
    ready = False
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        try:
            async with stdio_client(server, errlog=complaints) as (read, write), ClientSession(read, write) as session:
                async with asyncio.timeout(START_SECONDS):
                    await session.initialize()
                    listed = await _listed(session)
                tools = [_tool(session, entry) for entry in listed]
                ready = True
                yield tools
        except Exception as error:
            if ready:
                raise
            complaints.seek(0)
            said = complaints.read().strip().rpartition("\n")[2][:300]
            why = said or str(_innermost(error)) or type(_innermost(error)).__name__
            raise UserError(f"mcp: {command!r} did not start as a server ({why})") from None


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"mcp: {command!r} cannot be read as a command ({error})") from None
    if not words:
        raise UserError('mcp: names no command; write it as "python server.py"')
    return words


async def _listed(session: Any) -> list[dict[str, Any]]:
    """The server's tools as the protocol writes them (both majors of the package agree on that form only)."""
    page = await session.list_tools()
    entries = [tool.model_dump(by_alias=True, mode="json", exclude_none=True) for tool in page.tools]
    while cursor := page.model_dump(by_alias=True).get("nextCursor"):
        from mcp.types import PaginatedRequestParams

        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        entries += [tool.model_dump(by_alias=True, mode="json", exclude_none=True) for tool in page.tools]
    return entries


def _tool(session: Any, entry: Mapping[str, Any]) -> Tool:
    schema = {"type": "object", "properties": {}, **entry["inputSchema"]}

    async def call(**arguments: Any) -> str:
        try:
            result = await session.call_tool(entry["name"], arguments)
        except Exception as error:  # the server died, or refuses the call: the model may try something else
            raise ToolError(f"the server failed: {_innermost(error) or type(error).__name__}") from None
        found = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        text = _text(found)
        if found.get("isError"):
            raise ToolError(text)
        return text

    return Tool(
        re.sub(r"[^A-Za-z0-9_-]", "_", entry["name"])[:64],
        entry.get("description") or entry.get("title") or entry["name"],
        schema,
        call,
        lambda arguments: _checked(schema, arguments),
        writes=not (entry.get("annotations") or {}).get("readOnlyHint", False),
    )


def _checked(schema: Mapping[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """jsonschema comes with the mcp package."""
    from jsonschema import Draft202012Validator

    problems = sorted(Draft202012Validator(schema).iter_errors(arguments), key=lambda error: list(error.path))
    if problems:
        raise ToolError("; ".join(f"{'.'.join(map(str, one.path)) or 'arguments'}: {one.message}" for one in problems))
    return arguments


def _text(result: Mapping[str, Any]) -> str:
    parts = []
    for part in result.get("content", []):
        if part["type"] == "text":
            parts.append(part["text"])
        elif part["type"] == "resource" and "text" in part["resource"]:
            parts.append(part["resource"]["text"])
        else:
            parts.append(f"({part['type']}, not shown)")
    if not parts and result.get("structuredContent") is not None:
        import json

        return json.dumps(result["structuredContent"], ensure_ascii=False)
    return "\n".join(parts) or "(no content)"


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
