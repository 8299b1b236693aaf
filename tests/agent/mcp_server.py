"""A small MCP server for the tests: a tool that reads, one that writes a file, one that fails, one that kills it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:  # the package's second major renamed the class
    from mcp.server.fastmcp import FastMCP as Server
except ImportError:
    from mcp.server.mcpserver import MCPServer as Server
from mcp.types import ToolAnnotations

server = Server("test")
READ_ONLY = ToolAnnotations(readOnlyHint=True)


@server.tool(annotations=READ_ONLY)
def length(text: str, times: int = 1) -> int:
    """Length of a text."""
    return len(text) * times


@server.tool()
def write(name: str) -> str:
    """Write a file where the server was told to."""
    Path(sys.argv[1], name).write_text("written")
    return f"wrote {name}"


@server.tool(annotations=READ_ONLY)
def fail() -> str:
    """Fail."""
    raise ValueError("no luck today")


@server.tool(annotations=READ_ONLY)
def secrets() -> str:
    """Tell what of the environment the server sees."""
    return ",".join(sorted(name for name in os.environ if name.startswith("SEKKEI_")))


@server.tool(annotations=READ_ONLY)
def die() -> str:
    """End the server."""
    os._exit(1)


if __name__ == "__main__":
    server.run()
