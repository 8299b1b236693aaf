"""A model that attacks through the python tool and the file tools: each attempt is a tool error, the agent goes on."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sekkei.agent import builtin
from sekkei.agent.loop import Agent, AgentConfig
from sekkei.agent.registry import Tool, ToolError
from sekkei.core.errors import UserError
from sekkei.llm import LLM, Reply
from sekkei.llm.protocol import ToolCall
from sekkei.llm.scripted import Scripted
from sekkei.tools.sandbox import Capabilities, Limits, capabilities

SECONDS = 1.0


def attempt(tools: list[Tool], *calls: tuple[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """(what the model is told, answer of the run) per call; the calls are all of one turn."""
    asked = tuple(ToolCall(f"c{i}", name, json.dumps(given)) for i, (name, given) in enumerate(calls))
    llm = LLM(Scripted([Reply(text="", tool_calls=asked, finish_reason="tool_calls"), "went on"]))
    outcome = Agent(llm, tools, AgentConfig(), approve=lambda tool, arguments: "").run("go")
    assert (outcome.answer, outcome.stopped) == ("went on", "answer")
    return [(message["content"], outcome.answer) for message in outcome.messages if message["role"] == "tool"]


@pytest.mark.skipif(not capabilities().safe, reason=f"no sandbox here: {dict(capabilities().missing)}")
def test_attacks_through_python_end_as_tool_errors(
    tmp_path: Path, own_temp: Path, processes_with: Callable[[str], list[int]]
) -> None:
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.write_text("the-secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attacks = {
            "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass": ("stopped: more than 1 s",),
            "while True: pass": ("stopped: more than 1 s",),
            "x = bytearray(10 << 30)": ("MemoryError",),
            f"print(open({str(secret)!r}).read())": ("FileNotFoundError", "PermissionError"),
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)": (
                *("ConnectionRefusedError", "PermissionError", "Network is unreachable"),
            ),
            f"open({str(target)!r}, 'w').write('x')": ("FileNotFoundError", "PermissionError", "Read-only"),
        }
        tools = [builtin.python(Limits(seconds=SECONDS, processes=16))]
        told = attempt(tools, *(("python", {"code": code}) for code in attacks), ("python", {"code": "print(6 * 7)"}))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    for (text, _), (code, expected) in zip(told, attacks.items()):
        first = text.splitlines()[0]
        assert first.startswith("error: "), (code, text)
        if code.startswith("import os\nwhile"):
            assert first.startswith(("error: stopped", "error: killed")), text
        else:
            assert any(words in first for words in expected), (code, text)
        assert "the-secret" not in text
    assert told[-1][0] == "42", "honest code works beside them"
    assert not target.exists()
    assert not processes_with("sekkei.tools.jail")
    assert not processes_with("-s -B -X utf8 main.py")
    assert not list(own_temp.glob("sekkei-sandbox-*/main.py"))


@pytest.mark.skipif(sys.platform != "linux", reason="the walls are those of Linux")
def test_without_a_sandbox_the_python_tool_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Capabilities(mode="none", walls={}, missing={"namespaces": "not permitted"})
    monkeypatch.setattr(builtin, "capabilities", lambda: none)
    with pytest.raises(UserError, match="this machine has none \\(namespaces: not permitted\\)"):
        builtin.python()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, and links that lead out of it."""
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "notes.txt").write_text("one\ntwo\nthree\n")
    (inside / "binary").write_bytes(b"\0\1")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("the-secret")
    (inside / "link").symlink_to(tmp_path / "outside" / "secret.txt")
    (inside / "door").symlink_to(tmp_path / "outside")
    os.mkfifo(inside / "pipe")
    return inside


def test_files_can_be_listed_and_read(folder: Path) -> None:
    told = attempt(
        builtin.files(folder),
        ("list_files", {}),
        ("read_file", {"path": "notes.txt"}),
        ("read_file", {"path": "./notes.txt", "first_line": 2, "lines": 1}),
        ("read_file", {"path": "notes.txt", "first_line": 9}),
    )
    assert [text for text, _ in told] == [
        *("binary  2\nnotes.txt  14\nsub/", "one\ntwo\nthree", "two\n(lines 2 to 2 of 3)", "(the file has 3 lines)"),
    ]


PATHS = ["../outside/secret.txt", "link", "door/secret.txt", "sub/../../outside/secret.txt", "/etc/passwd", "", "a\0b"]
PATHS += ["pipe", "sub", "binary", "missing"]


def test_no_path_leads_out_of_the_folder(folder: Path) -> None:
    absolute = str(folder.parent / "outside" / "secret.txt")
    for name, more in (("read_file", {}), ("write_file", {"content": "planted"})):
        paths = [*PATHS, absolute] if name == "read_file" else [*PATHS[:7], "pipe", "sub", "no/such/folder", absolute]
        told = attempt(builtin.files(folder, write=True), *((name, {"path": path, **more}) for path in paths))
        for path, (text, _) in zip(paths, told, strict=True):
            if (name, path) == ("write_file", "link"):
                continue
            assert text.startswith("error: "), (name, path, text)
            assert "the-secret" not in text
    assert (folder.parent / "outside" / "secret.txt").read_text() == "the-secret"
    assert sorted(path.name for path in (folder.parent / "outside").iterdir()) == ["secret.txt"]
    told = attempt(builtin.files(folder), ("list_files", {"folder": "door"}), ("list_files", {"folder": ".."}))
    assert all(text.startswith("error: ") for text, _ in told)


def test_writing_replaces_whole_files(folder: Path) -> None:
    tools = builtin.files(folder, write=True)
    assert [tool.name for tool in tools if tool.writes] == ["write_file"]
    assert "write_file" not in {tool.name for tool in builtin.files(folder)}
    told = attempt(tools, ("write_file", {"path": "notes.txt", "content": "new"}))
    assert told[0][0] == "wrote 3 bytes to notes.txt"
    told = attempt(tools, ("write_file", {"path": "sub/other.txt", "content": "設計"}))
    assert ((folder / "notes.txt").read_text(), (folder / "sub" / "other.txt").read_text()) == ("new", "設計")
    assert not list(folder.rglob("*.tmp"))


def test_a_folder_that_turns_into_a_link_while_it_is_used_leads_nowhere(folder: Path) -> None:
    """The race between a check and the use: one thread swaps a folder and a link, the other reads through it."""
    real, spare = folder / "swap", folder / "spare"
    real.mkdir()
    (real / "secret.txt").write_text("harmless")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            real.rename(spare)
            real.symlink_to(folder.parent / "outside")
            real.unlink()
            spare.rename(real)

    swapper = threading.Thread(target=swap)
    swapper.start()
    tree, seen = builtin.Tree(folder), set()
    try:
        for _ in range(1000):
            try:
                seen.add(tree.read("swap/secret.txt"))
            except ToolError:
                seen.add("refused")
    finally:
        done.set()
        swapper.join()
    assert "refused" in seen, "the two never met, so this test proves nothing"
    assert seen <= {"harmless", "refused"}


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        builtin.files(tmp_path / "missing")
