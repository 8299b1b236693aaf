"""A user's cleaned corpus is read as it was written, document by document, and what changed under it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.progress import Console
from sekkei.data.corpus import DataConfig, split_documents, stream_side
from sekkei.data.sources import SourceConfig
from sekkei.text.document import read_documents
from sekkei.text.pipeline import local
from sekkei.text.pipeline.plan import Plan


@pytest.fixture
def cleaned(tmp_path: Path) -> Path:
    """What `sekkei data clean` leaves of two folders of texts."""
    for folder, word in (("web", "harbour"), ("law", "statute")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        rows = [json.dumps({"text": f"The {word} number {i} of the long list is here."}) for i in range(40)]
        (tmp_path / "in" / folder / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "out"
    plan = Plan(path=str(tmp_path / "in"), work=str(out / "work"), items=("extract",))
    local.run(plan, out, 1, Console(silent=True))
    return out


def test_documents_come_as_they_were_written(cleaned: Path) -> None:
    written = [d for path in sorted(cleaned.glob("documents-*.parquet")) for d in read_documents(path)]
    assert list(SourceConfig(path=str(cleaned)).documents()) == written
    assert len(written) == 80
    law = list(SourceConfig(path=str(cleaned), source="law").documents())
    assert len(law) == 40
    assert {d.source for d in law} == {"law"}
    with pytest.raises(UserError, match="none of them is of source 'laws'; here are law, web"):
        list(SourceConfig(path=str(cleaned), source="laws").documents())


def test_a_digest_without_a_summary_is_that_of_the_same_files(cleaned: Path) -> None:
    config = SourceConfig(path=str(cleaned))
    before = config.digest()
    assert SourceConfig(path=str(cleaned), source="law").digest() != before
    (cleaned / "summary.json").unlink()
    assert config.digest() == before


def test_what_changed_is_told(cleaned: Path) -> None:
    config = SourceConfig(path=str(cleaned))
    (path,) = cleaned.glob("documents-*.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="differs from its checksum"):
        list(config.documents())
    (cleaned / "summary.json").unlink()
    with pytest.raises(UserError, match="no Parquet file"):
        list(config.documents())
    (cleaned / "summary.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="clean once more"):
        config.digest()
    path.unlink()
    with pytest.raises(UserError, match="holds no documents"):
        config.files()


def test_streamed_sides_are_those_of_the_list(cleaned: Path) -> None:
    documents = list(SourceConfig(path=str(cleaned)).documents())
    train, held = split_documents(documents, 20)
    assert list(stream_side(iter(documents), 20, held=False)) == train
    assert list(stream_side(iter(documents), 20, held=True)) == held
    assert train
    assert held


def test_sources_are_domains() -> None:
    config = DataConfig(sources={"web": SourceConfig(path="a")})
    assert config.domains == ("docs", "code", "math", "patterns", "recitals", "chains", "web")
    assert DataConfig().domains == ("docs", "code", "math", "patterns", "recitals", "chains")
    for bad in ("a b", "a.b", "chains", "docs"):
        with pytest.raises(ConfigError, match=r"sources\."):
            DataConfig(sources={bad: SourceConfig(path="a")})
