"""Where raw pages come from: the user's own folder, or the pages that this Python can write about itself.

The embedded default is HTML that `pydoc` renders for a fixed list of standard library modules, the
language reference in `pydoc_data.topics`, and the reference of installed packages (torch and numpy
among them). It needs no network, is English technical prose of some megabytes, and looks like a
crawl: navigation, tables, link lists, near duplicates.

    parent --PYTHONHASHSEED=0--> one child: import, render, scrub --> OUT/<module>.html, one line each back

Byte for byte the same in every run on one installation: a child process with fixed hash seed, locale, time
zone and width; memory addresses and the machine's paths are scrubbed; sets that are ordered by address never
reach a page, because of data only numbers and text are shown. Another Python or package version gives other pages.
Members that a class inherits are left to the page of the class that defines them. A module of hundreds of
functions (torch, numpy) becomes one page per function and class, as its web site has it.

Not handled: crawling, WARC files, and the rendering of the user's own modules.
"""

from __future__ import annotations

import errno
import html
import importlib
import inspect
import os
import pydoc
import re
import subprocess
import sys
import sysconfig
import tempfile
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sekkei.core import atomic
from sekkei.core.errors import UserError


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FEW = _names("argparse collections csv datetime functools json logging pathlib random statistics string textwrap")
FEW_TOPICS = ("assert", "class", "exceptions", "for", "function", "if", "import", "strings", "try", "while", "with")

# Standard library modules that do nothing when imported. Those that this platform or version lacks are skipped.
STDLIB = _names("""
__future__ abc argparse array ast asyncio.base_events asyncio.events asyncio.exceptions asyncio.futures
asyncio.locks asyncio.protocols asyncio.queues asyncio.runners asyncio.streams asyncio.subprocess asyncio.tasks
asyncio.transports atexit base64 bdb binascii bisect builtins bz2 cProfile calendar cmath cmd code codecs codeop
collections collections.abc colorsys compileall concurrent.futures concurrent.futures.process
concurrent.futures.thread configparser contextlib contextvars copy copyreg csv ctypes ctypes.util curses.ascii
curses.textpad dataclasses datetime dbm dbm.dumb decimal difflib dis doctest email.charset email.contentmanager
email.encoders email.errors email.generator email.header email.headerregistry email.message email.mime.base
email.mime.multipart email.mime.text email.parser email.policy email.utils enum errno faulthandler fcntl filecmp
fileinput fnmatch fractions ftplib functools gc getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac
html html.entities html.parser http http.client http.cookiejar http.cookies http.server imaplib importlib
importlib.abc importlib.machinery importlib.metadata importlib.resources importlib.util inspect io ipaddress
itertools json json.decoder json.encoder keyword linecache locale logging logging.config logging.handlers lzma
mailbox marshal math mimetypes mmap modulefinder multiprocessing multiprocessing.connection
multiprocessing.managers multiprocessing.pool multiprocessing.process multiprocessing.queues
multiprocessing.shared_memory multiprocessing.synchronize netrc ntpath numbers operator optparse os os.path pathlib
pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats pty pwd py_compile pyclbr
queue quopri random re readline reprlib resource runpy sched secrets select selectors shelve shlex shutil
signal smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sys
sysconfig syslog tabnanny tarfile tempfile termios textwrap threading time timeit token tokenize tomllib trace
traceback tracemalloc tty types typing unicodedata unittest unittest.async_case unittest.case
unittest.loader unittest.mock unittest.result unittest.runner unittest.suite urllib.error urllib.parse
urllib.request urllib.response urllib.robotparser uuid venv warnings wave weakref webbrowser wsgiref.handlers
wsgiref.headers wsgiref.simple_server wsgiref.util wsgiref.validate xml.dom xml.dom.minidom xml.dom.pulldom
xml.etree.ElementTree xml.parsers.expat xml.sax xml.sax.handler xml.sax.saxutils xml.sax.xmlreader xmlrpc.client
xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
""")

# Reference of installed packages, skipped where absent.
PACKAGES = _names("""
jinja2.environment jinja2.exceptions jinja2.ext jinja2.filters jinja2.loaders jinja2.parser
jinja2.runtime jinja2.sandbox jinja2.utils safetensors.torch tokenizers tokenizers.decoders tokenizers.models
tokenizers.normalizers tokenizers.pre_tokenizers tokenizers.processors tokenizers.trainers
torch.Tensor torch.utils.checkpoint torch.utils.hooks
numpy.ctypeslib numpy.lib.format numpy.lib.stride_tricks
click.core click.decorators click.types psutil yaml
""")

# Modules of so many members that each gets its own page.
SPLIT = _names("""
numpy numpy.fft numpy.linalg numpy.polynomial.polynomial numpy.random
torch torch.autograd torch.distributed torch.distributions torch.fft torch.linalg torch.nn
torch.nn.functional torch.nn.init torch.nn.utils torch.optim torch.optim.lr_scheduler torch.special torch.utils.data
""")


@dataclass(frozen=True, kw_only=True)
class PagesConfig:
    """Which raw pages.

    Args:
        path: folder of the user's own `.html`, `.htm` and `.txt` files, searched recursively; None renders
            the embedded default.
        modules: "all" of the embedded default, or a "few" pages for a quick run. Without meaning under `path`.
    """

    path: str | None = None
    modules: Literal["all", "few"] = "all"


def render_pages(out: Path, config: PagesConfig, progress: Callable[[str, int, int], None] | None = None) -> int:
    """Write the embedded pages into the folder `out` (replaced as a whole when all are written).

    Args:
        progress: called as progress(page name, done, total).
    Returns:
        number of pages. Modules that this installation lacks are left out and reported as progress lines.
    Raises:
        UserError: the child process failed.
    """
    with atomic.new_folder(out) as folder, tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-P", "-m", "sekkei.data.pages", str(folder), config.modules]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()) as child:
            assert child.stdout is not None
            for line in child.stdout:
                done, total, name = line.rstrip("\n").split("\t")
                if progress:
                    progress(name, int(done), int(total))
        if child.returncode in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise OSError(child.returncode, os.strerror(child.returncode))
        if child.returncode:
            errors.seek(0)
            last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"rendering the embedded pages failed: {last[0]}; set data.pages.path to pages of your own")
        return sum(1 for _ in folder.iterdir())


def _environment() -> dict[str, str]:
    """The child's environment: nothing in it that could show on a page or differ between two runs."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON")) or k == "PYTHONPATH"}
    return env | {
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        "LC_ALL": "C",
        "TZ": "UTC",
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


# ---- from here on: the child ----

_ADDRESS = re.compile(r"(?: |&nbsp;)at(?: |&nbsp;)0x[0-9a-fA-F]{6,16}")
_BOOKKEEPING = frozenset(("__dict__", "__weakref__", "__module__", "__abstractmethods__", "__annotations__"))


class _PageWriter(pydoc.HTMLDoc):
    """pydoc's own HTML, without data whose text depends on the process."""

    def docother(self, object: Any, name: str | None = None, mod: str | None = None, *ignored: Any) -> str:
        return super().docother(object, name, mod, *ignored) if isinstance(object, int | float | str) else ""


def _worth_showing(name: str, attribute: Any) -> bool:
    """False for bookkeeping and for operators in C, whose text is the same in every class ("Return self<value.")."""
    return name not in _BOOKKEEPING and (name == "__init__" or not isinstance(attribute, types.WrapperDescriptorType))


def _scrubber() -> Callable[[str], str]:
    """Removes memory addresses and this machine's folders from a page."""
    roots = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path.home())}
    roots |= set(sysconfig.get_paths().values()) | set(sys.path)
    roots |= {os.path.realpath(root) for root in roots if root}
    found = sorted((html.escape(r) for r in roots if len(r) > 4), key=lambda r: (-len(r), r))
    paths = re.compile("|".join(map(re.escape, found)))
    # pydoc escapes the arrow of a class's signature twice
    return lambda page: _ADDRESS.sub("", paths.sub("/python", page)).replace("-&amp;gt;", "-&gt;")


def _locate(name: str) -> Any:
    """The module or class of dotted `name`.

    Raises:
        ImportError: this installation lacks it. A package that is broken raises whatever it raises.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        holder, _, last = name.rpartition(".")
        if holder and hasattr(found := importlib.import_module(holder), last):
            return getattr(found, last)
        raise


def _members(holder: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Public classes and functions of a module, or methods of a class, that have a docstring of their own."""
    root = name.partition(".")[0]
    for member in sorted(set(getattr(holder, "__all__", None) or dir(holder))):
        found = inspect.getattr_static(holder, member, None) if inspect.isclass(holder) else None
        found = getattr(holder, member, None) if found is None or not callable(found) else found
        if member.startswith("_") or inspect.ismodule(found) or not callable(found):
            continue
        home = getattr(found, "__module__", None) or root
        doc = vars(found).get("__doc__") if inspect.isclass(found) else getattr(found, "__doc__", None)
        named = isinstance(getattr(found, "__name__", None), str)
        if named and str(home).partition(".")[0] == root and isinstance(doc, str) and doc.strip():
            yield f"{name}.{member}", found


def _render_module(writer: _PageWriter, name: str) -> Iterable[tuple[str, str]]:
    """(page name, HTML) of one entry of the lists above."""
    holder = _locate(name)
    if name not in SPLIT:
        yield name, writer.page(pydoc.describe(holder), writer.document(holder, name))
        return
    for full, found in _members(holder, name):
        render = writer.document if inspect.isclass(found) or inspect.isroutine(found) else writer.docroutine
        yield full, writer.page(full, f"<h1>{html.escape(full)}</h1>\n{render(found, full.rpartition('.')[2])}")


def _topics(which: str) -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name in sorted(topics) if which == "all" else FEW_TOPICS:
        title = html.escape(name)
        head = f'<head><meta charset="utf-8"><title>{title}</title></head>'
        yield (
            f"topic.{name}",
            f"<!DOCTYPE html>\n<html>{head}\n<body><pre>{html.escape(topics[name])}</pre></body></html>\n",
        )


def _child(folder: Path, which: str) -> None:
    """Render into `folder`; report `done TAB total TAB name` lines on the standard output that we were given."""
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an imported module prints is not a report
    warnings.simplefilter("ignore")
    classify = pydoc.classify_class_attrs
    pydoc.classify_class_attrs = lambda cls: [a for a in classify(cls) if a[2] is cls and _worth_showing(a[0], a[3])]
    scrub, writer, taken = _scrubber(), _PageWriter(), set()
    names = sorted((*STDLIB, *PACKAGES, *SPLIT) if which == "all" else FEW)
    for done, name in enumerate([*names, "topics"], start=1):
        note, rendered = name, []
        try:
            for page, text in _topics(which) if name == "topics" else _render_module(writer, name):
                rendered.append((page, scrub(text)))
        except Exception as error:  # an absent or broken package costs its pages, not the run
            note = f"{name} (left out: {type(error).__name__}: {error})".replace("\n", " ").replace("\t", " ")
        for page, text in rendered:
            file = page if page.lower() not in taken else f"{page}-2"  # torch.Tensor, torch.tensor
            taken.add(page.lower())
            try:
                (folder / f"{file}.html").write_text(text, encoding="utf-8", newline="\n")
            except OSError as error:  # a full disk is the parent's to tell
                sys.exit(error.errno or 1)
        report.write(f"{done}\t{len(names) + 1}\t{note}\n")


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2])
