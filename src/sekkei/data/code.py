"""Source code that every Python carries: the standard library's own files, and facts read from its docstrings.

`read_code` gives `.py` files as documents of source "code". `docstring_facts` gives short true statements,

    ("json.dumps", "Serialize obj to a JSON formatted string.")

out of which the instruction stage makes questions and answers. Both read source text only (`ast`, no import), so
neither depends on what a module does when it is imported, and both are pure functions of the installed files.

Not handled: languages other than Python, licences of other people's code (the standard library is under the
PSF licence), and extension modules, which have no source here.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sekkei.core.errors import ConfigError, UserError
from sekkei.text.document import Document

# Tests, other people's code, tables and generated data, programs that are no library.
EXCLUDED_FOLDERS = (
    *("__pycache__", "_pyrepl", "config", "dist-packages", "encodings", "ensurepip", "idlelib", "lib-dynload"),
    *("lib2to3", "msilib", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo"),
)
# Poems and side effects; files written when Python was built, with paths of the machine that built it.
_EXCLUDED_FILE = re.compile(r"(antigravity|this|turtle|__phello__|_sysconfigdata.*|_sysconfig_vars.*)\.py")
# Removed from later Pythons or private in all but name: nothing to teach.
_DEAD = re.compile(r"(asynchat|asyncore|cgi|cgitb|crypt|ctypes\.macholib|distutils|imp|smtpd|xdrlib)\b")
MAX_FACT_CHARS = 90


# Modules that a newcomer asks about first.
_MUCH_USED_NAMES = (
    "argparse base64 bisect calendar collections contextlib copy csv dataclasses datetime difflib enum fnmatch",
    "functools getpass glob gzip hashlib heapq hmac html ipaddress json locale logging operator pathlib pickle",
    "platform pprint queue random re secrets shlex shutil socket statistics string subprocess tempfile textwrap",
    "threading timeit traceback types uuid warnings weakref webbrowser zipfile",
)
MUCH_USED = frozenset(name for line in _MUCH_USED_NAMES for name in line.split())


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """How much source code.

    Args:
        max_bytes: upper bound on the files' bytes. Where the library is larger (about 10 MB), files are taken in the
            order of a hash of their path, so that the choice is spread over all packages; None takes all.
    """

    max_bytes: int | None = 2_000_000

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 10_000:
            raise ConfigError(
                "max_bytes", f"{self.max_bytes} holds hardly one file; give 10000 or more, or null for all"
            )


def read_code(config: CodeConfig) -> list[Document]:
    """Standard library sources as documents sorted by id; `id` is the path inside the library, lang "python".

    Raises:
        UserError: this installation carries no standard library sources.
    """
    root, names = _library()
    sizes = {name: (root / name).stat().st_size for name in names}
    names = [name for name in names if sizes[name]]  # an empty __init__.py is no document
    if config.max_bytes is not None:
        candidates, names, left = sorted(names, key=_spread), [], config.max_bytes
        for name in candidates:
            if sizes[name] <= left:
                names.append(name)
                left -= sizes[name]
    return [Document(id=name, text=_read(root / name), source="code", lang="python") for name in sorted(names)]


def docstring_facts(max_items: int) -> list[tuple[str, str]]:
    """(qualified name, first sentence of its docstring) of public functions and classes, sorted by name.

    Every sentence is one line of at most 90 ASCII characters, begins with a capital, ends in a full stop and is said of
    one name only. If there are more than `max_items`, those of much used modules come first, then a hash chooses.

    Raises:
        UserError: this installation carries no standard library sources.
    """
    facts: dict[str, str] = {}
    owner: dict[str, str | None] = {}
    root, paths = _library()
    for path in paths:
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if module.startswith("_") or "." in module or _DEAD.match(module):  # short names only: module.function
            continue
        for name, sentence in _module_facts(_read(root / path)):
            facts[f"{module}.{name}"] = sentence
            owner[sentence] = None if sentence in owner else f"{module}.{name}"
    unique = [name for name, sentence in facts.items() if owner[sentence] == name]
    chosen = sorted(unique, key=lambda name: (name.partition(".")[0] not in MUCH_USED, _spread(name)))[:max_items]
    return sorted((name, facts[name]) for name in chosen)


def first_sentence(docstring: str) -> str | None:
    """The first sentence of a docstring as plain text, or None if it does not make a fact (see `docstring_facts`)."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    paragraph = re.sub(r":\w+:`~?([^`]+)`", r"\1", paragraph)  # reStructuredText roles
    paragraph = re.sub(r"``([^`]+)``|`([^`']+)[`']", lambda m: m[1] or m[2], paragraph)  # literals
    paragraph = re.sub(r"(?<![\w*])\*(\w+)\*(?![\w*])", r"\1", paragraph)  # emphasis, not *args
    match = re.match(r"(.+?(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)\.)(?= ['\"A-Z(]|$)", paragraph)
    sentence = match[1] if match else ""
    told = len(sentence.split()) >= 4 and sentence[:1].isupper() and sentence.isascii()
    signature = re.match(r"[\w.]+\(", sentence) or "->" in sentence or ">>>" in sentence
    vague = re.match(
        r"(See|Deprecated|Internal|Private|Helper|TODO|XXX|Like|Same|This|Ditto|As)\b", sentence, re.IGNORECASE
    )
    ends_well = sentence.endswith(".") and not sentence.endswith("..")
    return sentence if told and ends_well and not signature and not vague and len(sentence) <= MAX_FACT_CHARS else None


def _module_facts(text: str) -> Iterator[tuple[str, str]]:
    """(name, sentence) of a module's public functions and classes, in source order; the last definition wins."""
    tree = ast.parse(text)
    public = _declared_public(tree)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or (public is not None and node.name not in public):
            continue
        sentence = first_sentence(ast.get_docstring(node) or "")
        if sentence:
            yield node.name, sentence


def _declared_public(tree: ast.Module) -> set[str] | None:
    """The names in a literal `__all__`, with literal additions; None if there is none, or it is computed."""
    names: set[str] | None = None
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if (
            not isinstance(target, ast.Name)
            or target.id != "__all__"
            or not isinstance(node, ast.Assign | ast.AugAssign)
        ):
            continue
        if isinstance(node.value, ast.List | ast.Tuple):
            found = {c.value for c in node.value.elts if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            names = (names or set()) | found
    return names


def _library() -> tuple[Path, list[str]]:
    """The standard library's folder and the paths in it that are wanted, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [p.relative_to(root).as_posix() for p in root.rglob("*.py")] if root.is_dir() else []
    wanted = sorted(p for p in found if not _excluded(p))
    if not wanted:
        raise UserError(f"{root}: this Python carries no standard library sources; use a Python that does")
    return root, wanted


def _read(path: Path) -> str:
    with tokenize.open(path) as file:  # honours the file's coding line
        return file.read()


def _excluded(path: str) -> bool:
    *folders, name = path.split("/")
    return bool(_EXCLUDED_FILE.fullmatch(name)) or any(
        f in EXCLUDED_FOLDERS or f.startswith("config-") for f in folders
    )


def _spread(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
