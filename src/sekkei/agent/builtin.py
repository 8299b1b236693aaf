"""The tools that come with the house: calculator, Python in the sandbox, files of one folder, retrieval.

    calculator(expression)            exact (tools/calculator.py)
    python(code)                      a fresh process without network and files (tools/sandbox.py); what it prints
    list_files(folder), read_file(path, first_line, lines)       below one folder only
    write_file(path, content)         likewise, and only after a person approved
    search(query)                     a callable that is handed in, as rag's

A path is opened part by part from the folder's own descriptor, each part without following a symlink, so neither
`..`, nor an absolute path, nor a link leads out, even if the folder changes meanwhile (the attack on a check that
is made before the use). That needs POSIX; elsewhere the file tools refuse.

It does not handle binary files (they are said to be binary), or deleting and moving files.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from sekkei.agent.registry import Tool, ToolError, from_function
from sekkei.core.errors import UserError
from sekkei.tools.calculator import answer
from sekkei.tools.sandbox import Limits, capabilities, run_python

MAX_FILE = 10 << 20  # bytes of a file that is read or written
MAX_ENTRIES = 500  # of a listing
Search = Callable[[str], Sequence[str] | str]


def calculator() -> Tool:
    """Exact arithmetic."""

    def calculator(expression: str) -> str:
        """Exact arithmetic: + - * / // % **, parentheses, abs, min, max, round, floor, ceil, sqrt, gcd, lcm.

        Args:
            expression: for example 12 * (3 + 4) / 5
        """
        return answer(expression)

    return from_function(calculator)


def python(limits: Limits | None = None, *, unprotected: bool = False) -> Tool:
    """Python code in the sandbox, every call in a new one.

    Raises:
        UserError: this machine has no sandbox, and `unprotected` does not say that limits alone will do.
    """
    found = capabilities()
    if not found.safe and not unprotected:
        why = "; ".join(f"{way}: {reason}" for way, reason in found.missing.items())
        raise UserError(f"the python tool needs a sandbox, and this machine has none ({why}); leave the tool out")

    def python(code: str) -> str:
        """Run a Python program in a fresh process, without network and without access to files. Only what it prints
        comes back, so print every result.

        Args:
            code: the whole program
        """
        result = run_python(code, limits=limits, unprotected=unprotected)
        if not result.ok:
            parts = [result.error(), result.stdout.strip(), result.stderr.strip()[-2000:]]
            raise ToolError("\n".join(part for part in parts if part))
        return result.stdout.rstrip() or "(it printed nothing)"

    return from_function(python)


def files(folder: Path, *, write: bool = False) -> list[Tool]:
    """Tools for the files below `folder`.

    Args:
        write: `write_file` as well.

    Raises:
        UserError: no such folder, or a system where paths cannot be opened part by part.
    """
    if not folder.is_dir():
        raise UserError(f"files: {folder} is no folder")
    if os.open not in os.supports_dir_fd:
        raise UserError("files: this system cannot open paths part by part, so the file tools are off")
    tree = Tree(folder)

    def list_files(folder: str = ".") -> str:
        """List a folder: one entry a line, folders with a slash, files with their size in bytes.

        Args:
            folder: relative path, as "." or "docs/api"
        """
        return tree.listing(folder)

    def read_file(path: str, first_line: int = 1, lines: int = 200) -> str:
        """Read a text file, or some lines of it.

        Args:
            path: relative path, as "docs/readme.md"
            first_line: where to begin, from 1
            lines: how many at most
        """
        if first_line < 1 or lines < 1:
            raise ToolError("first_line and lines must be at least 1")
        content = tree.read(path).splitlines()
        part = content[first_line - 1 : first_line - 1 + lines]
        if not part:
            return f"(the file has {len(content)} lines)"
        last = first_line + len(part) - 1
        note = f"\n(lines {first_line} to {last} of {len(content)})" if len(part) < len(content) else ""
        return "\n".join(part) + note

    def write_file(path: str, content: str) -> str:
        """Write a text file, replacing what stood there.

        Args:
            path: relative path; its folder must exist
            content: the whole text
        """
        return tree.write(path, content)

    tools = [from_function(list_files), from_function(read_file)]
    return [*tools, from_function(write_file, writes=True)] if write else tools


def retrieval(search: Search, description: str = "") -> Tool:
    """A search that somebody else does.

    Args:
        search: from a query to passages (each a text that says where it comes from), or to one text.
        description: of what is searched, for the model.
    """

    def run(query: str) -> str:
        """Search documents; the passages that fit best come back, each with its source.

        Args:
            query: a question or keywords
        """
        found = search(query)
        passages = [found] if isinstance(found, str) else list(found)
        return "\n\n".join(passages) or "(nothing found)"

    tool = from_function(run, name="search")
    return Tool(
        tool.name, f"{description} {tool.description}".strip(), tool.parameters, tool.call, tool.check, tool.writes
    )


class Tree:
    """A folder out of which no path leads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def read(self, path: str) -> str:
        with self._parent(path) as (parent, name), _plain_errors(path):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
            with open(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise ToolError(f"{path}: is no regular file")
                if found.st_size > MAX_FILE:
                    raise ToolError(f"{path}: has {found.st_size:,} bytes, at most {MAX_FILE:,} are read")
                content = file.read(MAX_FILE)
        if b"\0" in content[:8192]:
            raise ToolError(f"{path}: is a binary file of {len(content):,} bytes")
        return content.decode("utf-8", errors="replace")

    def write(self, path: str, content: str) -> str:
        data = content.encode()
        if len(data) > MAX_FILE:
            raise ToolError(f"{path}: {len(data):,} bytes are too many, at most {MAX_FILE:,} are written")
        with self._parent(path) as (parent, name), _plain_errors(path):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise ToolError(f"{path}: is no regular file")
            aside = f".{name}.{os.getpid()}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            try:
                with open(os.open(aside, flags, 0o644, dir_fd=parent), "wb") as file:
                    file.write(data)
                os.replace(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(aside, dir_fd=parent)
                raise
        return f"wrote {len(data):,} bytes to {path}"

    def listing(self, path: str) -> str:
        with self._opened(self._parts(path, empty=True)) as descriptor, _plain_errors(path):
            lines = []
            for name in sorted(os.listdir(descriptor)):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    lines.append(f"{name}/")
                elif stat.S_ISREG(found.st_mode):
                    lines.append(f"{name}  {found.st_size}")
        more = f"\n(and {len(lines) - MAX_ENTRIES} more)" if len(lines) > MAX_ENTRIES else ""
        return ("\n".join(lines[:MAX_ENTRIES]) or "(empty)") + more

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        *folders, name = self._parts(path)
        with self._opened(folders) as descriptor:
            yield descriptor, name

    @contextlib.contextmanager
    def _opened(self, folders: Sequence[str]) -> Iterator[int]:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for place, name in enumerate(folders):
                with _plain_errors("/".join(folders[: place + 1])):
                    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _parts(self, path: str, empty: bool = False) -> list[str]:
        pure = PurePosixPath(path)
        parts = [part for part in pure.parts if part != "."]
        if pure.is_absolute() or ".." in parts or "\0" in path:
            raise ToolError(f"{path!r}: only paths inside the folder are allowed, written from it, without '..'")
        if not parts and not empty:
            raise ToolError(f"{path!r}: names no file")
        return parts


@contextlib.contextmanager
def _plain_errors(path: str) -> Iterator[None]:
    """An OSError as what the model may know of it."""
    try:
        yield
    except OSError as error:
        link = error.errno in (40, 20)  # ELOOP, ENOTDIR: the last part, or one before it, is a link or no folder
        raise ToolError(f"{path}: {'is a symbolic link or no folder' if link else error.strerror}") from None
