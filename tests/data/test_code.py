from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.data.code import CodeConfig, docstring_facts, first_sentence, read_code

CAP = 300_000


@pytest.fixture(scope="module")
def facts() -> list[tuple[str, str]]:
    return docstring_facts(10_000)


def test_code_is_the_library_itself_under_a_cap() -> None:
    documents = read_code(CodeConfig(max_bytes=CAP))
    size = sum(len(d.text.encode()) for d in documents)
    assert 0.9 * CAP < size <= CAP
    assert [d.id for d in documents] == sorted(d.id for d in documents)
    root = Path(sysconfig.get_path("stdlib"))
    for document in documents:
        assert (document.source, document.lang) == ("code", "python")
        assert document.text == (root / document.id).read_text(encoding="utf-8")
        ast.parse(document.text)
    assert documents == read_code(CodeConfig(max_bytes=CAP))
    assert len({d.id.split("/")[0] for d in documents}) > 10  # spread, not the first of the alphabet


def test_all_of_it_leaves_out_what_is_no_library() -> None:
    names = {d.id for d in read_code(CodeConfig(max_bytes=None))}
    assert {"json/encoder.py", "heapq.py", "asyncio/tasks.py"} < names
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data"}
    assert not names & {"this.py", "antigravity.py"}
    assert not any("_sysconfigdata" in name for name in names)


def test_facts_are_short_plain_true_sentences(facts: list[tuple[str, str]]) -> None:
    assert len(facts) > 500
    assert facts == sorted(facts)
    assert len({sentence for _, sentence in facts}) == len(facts)
    for name, sentence in facts:
        assert sentence.isascii()
        assert len(sentence) <= 90
        assert sentence.endswith(".")
        assert sentence[0].isupper()
        assert not {"\n", "`"} & set(sentence)
        assert "._" not in name
    told = dict(facts)
    assert told["heapq.heappop"] == "Pop the smallest item off the heap, maintaining the heap invariant."
    assert told["json.dump"].startswith("Serialize obj as a JSON formatted stream to fp")


def test_fewer_facts_are_a_part_of_all(facts: list[tuple[str, str]]) -> None:
    some = docstring_facts(40)
    assert len(some) == 40
    assert set(some) < set(facts)  # two calls: the choice does not move


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the ``name`` of *obj*.\n\nMore.", "Return the name of obj."),
        ("Read :class:`~io.Reader` data,\n   e.g. from a file. Then stop.", "Read io.Reader data, e.g. from a file."),
        ("Read one whole file. 'fp' must be open.", "Read one whole file."),
        ("f(x) -> the value of x, and more.", None),
        ("no capital at the start here.", None),
        ("Does not end in a full stop", None),
        ("Too short.", None),
        ("And so on and so forth...", None),
        ("Café prices are returned here.", None),
        ("Word " * 30 + ".", None),
        ("", None),
    ],
)
def test_first_sentence(docstring: str, sentence: str | None) -> None:
    assert first_sentence(docstring) == sentence


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="max_bytes: 10 "):
        CodeConfig(max_bytes=10)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no standard library sources"):
        read_code(CodeConfig())
