"""Tools of a real MCP server in a process of its own, through the loop."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from sekkei.agent.loop import Agent, AgentConfig
from sekkei.agent.registry import Registry, Tool, ToolError
from sekkei.core.errors import UserError
from sekkei.llm import LLM, Reply
from sekkei.llm.protocol import ToolCall
from sekkei.llm.scripted import Scripted

pytest.importorskip("mcp", reason="the mcp package is not installed")

from sekkei.agent.mcp_client import mcp_tools

SERVER = Path(__file__).with_name("mcp_server.py")


def command(folder: Path) -> str:
    return shlex.join([sys.executable, str(SERVER), str(folder)])


def processes(words: str) -> int:
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return sum(words in line for line in lines)


def test_a_servers_tools_through_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEKKEI_LLM_KEY", "the-key")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("length", {"text": "abc", "times": 2}),
        ("length", {"text": 3}),
        ("fail", {}),
        ("secrets", {}),
        ("write", {"name": "yes"}),
        ("write", {"name": "no"}),
    ]
    asked = tuple(ToolCall(f"c{i}", name, json.dumps(given)) for i, (name, given) in enumerate(calls))
    backend = Scripted([Reply(text="", tool_calls=asked), "done"])

    def approve(tool: Tool, arguments: Any) -> str:
        return "" if arguments["name"] == "yes" else "a person said no"

    async def run() -> Any:
        async with mcp_tools(command(tmp_path)) as tools:
            assert processes(str(tmp_path)) == 1
            return tools, await Agent(LLM(backend), tools, AgentConfig(), approve=approve).arun("go")

    tools, outcome = asyncio.run(run())
    assert processes(str(tmp_path)) == 0
    assert {tool.name: tool.writes for tool in tools} == {
        **{"length": False, "write": True, "fail": False, "secrets": False, "die": False},
    }
    shown = next(tool.schema["function"] for tool in tools if tool.name == "length")
    assert shown["description"] == "Length of a text."
    assert shown["parameters"]["required"] == ["text"]
    told = [message["content"] for message in outcome.messages if message["role"] == "tool"]
    assert told[0] == "6"
    assert told[1].startswith("error: length: text: 3 is not of type 'string'")
    assert told[2].startswith("error: ")
    assert "executing tool fail" in told[2], "the 2.x server keeps the exception's own text to itself"
    assert told[3] in ("", "(no content)"), "the server must not see our keys"
    assert told[4:] == ["wrote yes", "error: not allowed: a person said no"]
    assert [path.name for path in tmp_path.iterdir()] == ["yes"]


def test_a_server_that_dies_is_a_tool_error(tmp_path: Path) -> None:
    async def run() -> list[str]:
        said = []
        async with mcp_tools(command(tmp_path)) as tools:
            registry = Registry(tools)
            for name, given in (("die", {}), ("length", {"text": "a"})):
                with pytest.raises(ToolError) as caught:
                    async with asyncio.timeout(20):
                        await registry.get(name).call(**given)
                said.append(str(caught.value))
        return said

    assert all(text.startswith("the server failed: ") for text in asyncio.run(run()))
    assert processes(str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "names no command"),
        ("python 'unclosed", "cannot be read as a command"),
        ("/no/such/program --x", "did not start as a server"),
        (shlex.join([sys.executable, "-c", "import sys; sys.exit('bad config')"]), "bad config"),
    ],
)
def test_what_is_no_server_is_said(line: str, words: str) -> None:
    async def run() -> None:
        async with mcp_tools(line):
            pass

    with pytest.raises(UserError, match=words):
        asyncio.run(run())
