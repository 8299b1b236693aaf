from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sekkei.core.atomic import sha256
from sekkei.core.errors import UserError
from sekkei.data import pages
from sekkei.data.pages import FEW, FEW_TOPICS, PagesConfig, render_pages


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "few"
    render_pages(folder, PagesConfig(modules="few"))
    return folder


def test_two_processes_write_the_same_bytes(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"TZ": "Asia/Tokyo", "COLUMNS": "200", "PYTHONHASHSEED": "7", "LANG": "C"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('the working folder must not be imported from')\n")
    calls: list[tuple[str, int, int]] = []
    count = render_pages(tmp_path / "out" / "again", PagesConfig(modules="few"), lambda *call: calls.append(call))
    assert sha256(tmp_path / "out" / "again") == sha256(few)
    assert count == len(list(few.iterdir())) == len(FEW) + len(FEW_TOPICS)
    assert calls[-1][1:] == (len(FEW) + 1, len(FEW) + 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["json.py", "out"]  # nothing else was written


def test_pages_hold_nothing_of_this_machine(few: Path) -> None:
    text = "\n".join(path.read_text() for path in few.iterdir())
    for secret in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)):
        assert secret not in text
    assert "at 0x" not in text.replace("&nbsp;", " ")
    assert "environ({" not in text


def test_a_child_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    (broken / "pydoc.py").parent.mkdir()
    (broken / "pydoc.py").write_text("raise RuntimeError('this pydoc is broken')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken), str(Path(pages.__file__).parents[2])]))
    with pytest.raises(UserError, match=r"this pydoc is broken; set data\.pages\.path") as caught:
        render_pages(tmp_path / "out", PagesConfig(modules="few"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_default(tmp_path: Path) -> None:
    first = render_pages(tmp_path / "one", PagesConfig())
    assert render_pages(tmp_path / "two", PagesConfig()) == first > 1000
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    size = sum(p.stat().st_size for p in (tmp_path / "one").iterdir())
    assert 2e6 < size < 20e6
