"""`hub:` reads whatever the library `datasets` reads, by the same call, here on folders of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.text.pipeline.test_pipeline import content, prose

from sekkei.core.errors import UserError
from sekkei.core.progress import Console
from sekkei.text.pipeline import local
from sekkei.text.pipeline.plan import Plan
from sekkei.text.read.files import Read
from sekkei.text.read.hub import Address, address_of, fingerprint


def test_addresses() -> None:
    assert address_of("hub:o/n") == Address("o/n")
    assert address_of("hub:o/n:test:ja") == Address("o/n", "test", "ja")
    assert address_of(str(Address("o/n", "test", "ja", 3))) == Address("o/n", "test", "ja", 3)
    for bad in ("hub:", "hub::train", "hub:a:b:c:1:2"):
        with pytest.raises(UserError, match="must be hub:OWNER/NAME"):
            address_of(bad)


def test_rows_come_as_from_the_files_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        rows = [{"text": prose(10 * number + i), "url": f"https://e.org/{number}/{i}"} for i in range(5)]
        (folder / f"part-{number}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    out, plain = tmp_path / "out", tmp_path / "plain"
    plan = Plan(path=f"hub:{folder}", work=str(out / "work"), items=("extract", "exact_duplicates"))
    assert len(plan.tasks()) == 3
    _, written = local.run(plan, out, 1, Console(silent=True))
    assert written
    local.run(Plan(path=str(folder), work=str(plain / "w"), items=plan.items), plain, 1, Console(silent=True))
    documents, _ = content(out)
    assert [(d.text, d.meta) for d in documents] == [(d.text, d.meta) for d in content(plain)[0]]
    assert {d.source for d in documents} == {"set"}
    assert len({d.id for d in documents}) == 15
    assert not local.run(plan, out, 1, Console(silent=True))[1]  # nothing to do
    with (folder / "part-1.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": prose(99)}) + "\n")
    fingerprint.cache_clear()
    assert local.run(plan, out, 1, Console(silent=True))[1]
    assert len(content(out)[0]) == 16
    with pytest.raises(UserError, match="cannot be opened"):
        Plan(path="hub:/no/such/folder/here", work=str(out / "work2")).tasks()
    wrong = Plan(path=f"hub:{folder}:train", work=str(tmp_path / "w3"), items=("extract",), read=Read(text="body"))
    local.run(wrong, tmp_path / "o3", 1, Console(silent=True))
    assert {row.rule for row in content(tmp_path / "o3")[1]} == {"read.missing_column"}
