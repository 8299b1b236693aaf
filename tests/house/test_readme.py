"""Every command in README.md works.

The commands are the lines of its ```sh blocks. Those that start with `sekkei` are run one after the
other, with `smoke` in the place of `laptop`, in a folder where `runs/smoke` is a finished run, and
without a keyboard. Lines that set up the machine are only checked: a make target has to exist.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sekkei.recipes.recipe import load

ROOT = Path(__file__).parents[2]
SETUP = ("git clone ", "cd ", "pip install ", "python3 -m venv ", "source ", ". ")


def commands(markdown: str) -> list[str]:
    """The commands of every ```sh block: comments and blank lines left out, continuations joined."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                uncommented = re.sub(r"\s+#\s.*$", "", line).strip()
                found += [part.strip() for part in uncommented.split("&&")]
    return found


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def readme() -> str:
    path = ROOT / "README.md"
    assert path.exists(), "README.md is missing"
    return path.read_text()


def test_readme_has_the_first_commands() -> None:
    found = commands(readme())
    assert "make run" in found
    assert any(command.startswith("sekkei run ") for command in found)
    for command in found:
        if command.startswith("make "):
            assert command.split()[1] in make_targets(), f"README: no such target: {command}"
        else:
            assert command.startswith(("sekkei", *SETUP)), f"README: nobody checks this command: {command}"


def test_readme_commands_work(smoke_run: Path) -> None:
    todo = [command.replace("laptop", "smoke") for command in commands(readme()) if command.startswith("sekkei")]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in todo:
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=smoke_run.parents[1],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"README: {command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"


def test_readme_recipes_validate(tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n# (\S+?):.*?\n(.*?)^```", readme(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    for name, text in blocks:
        (tmp_path / name).write_text(text)
        load(str(tmp_path / name))


def test_commands_are_found() -> None:
    text = (
        "# x\n```sh\n# a comment\nmake run   # forty minutes\n\ngit clone u && cd sekkei\nsekkei run a \\\n  --b\n```\n"
    )
    assert commands(text) == ["make run", "git clone u", "cd sekkei", "sekkei run a    --b"]
    assert commands("```python\nsekkei\n```\n") == []
    assert {"run", "test", "help"} <= make_targets()
    with pytest.raises(ValueError, match="No closing quotation"):
        commands("```sh\nsekkei chat 'open\n```\n")
