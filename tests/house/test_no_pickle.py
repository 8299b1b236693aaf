"""Nothing in src/sekkei reads code out of data: no pickle in any dress, no eval, no unsafe YAML.

Checkpoints are safetensors and JSON, recipes are YAML through `safe_load`. A model or a recipe from
a stranger can therefore be opened.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "sekkei"
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BUILTINS = {"eval", "exec"}
CALLS = {
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "builtins.eval",
    "builtins.exec",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "pandas.read_pickle",
}


def dangers(source: str) -> Iterator[str]:
    """`line: what` for everything that could run code out of data."""
    tree = ast.parse(source)
    real = _real_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{name}" for name in names]
            for name in names:
                if name.split(".")[0] in MODULES or name in CALLS:
                    yield f"{node.lineno}: imports {name}"
        elif isinstance(node, ast.Call):
            name = _dotted(node.func, real)
            if name in CALLS or name in BUILTINS:
                yield f"{node.lineno}: calls {name}"
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("allow_pickle", "trust_remote_code") and not off:
                    yield f"{node.lineno}: {keyword.arg}"


def _real_names(tree: ast.AST) -> dict[str, str]:
    """Local name -> module, for `import torch as t`."""
    return {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname
    }


def _dotted(node: ast.expr, real: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return real.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, real)}.{node.attr}"
    return ""


def test_source_reads_no_code_from_data() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert files
    found = [f"{path.relative_to(SOURCE)}:{danger}" for path in files for danger in dangers(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from cloudpickle import dumps",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=True)",
        "from torch import load",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval('1')",
        "exec(code)",
        "import marshal",
        "import shelve",
    ],
)
def test_a_planted_danger_is_found(source: str) -> None:
    assert list(dangers(source))


@pytest.mark.parametrize(
    "source", ["model.eval()", "import yaml\nyaml.safe_load(text)", "np.load('x', allow_pickle=False)", "json.load(f)"]
)
def test_a_harmless_line_passes(source: str) -> None:
    assert list(dangers(source)) == []
