"""Chunks in Qdrant, in its local mode: the same index as in Lance, and one that mends itself after a cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from sekkei.core.errors import UserError
from sekkei.rag.chunk import ChunkConfig
from sekkei.rag.embed import Hashed
from sekkei.rag.index import Index
from sekkei.rag.retrieve import search
from sekkei.rag.store import open_store

qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
from sekkei.rag.qdrant import QdrantStore  # noqa: E402

CONFIG = ChunkConfig(size=120, overlap=20)


@pytest.fixture
def store() -> QdrantStore:
    return QdrantStore("local/documents", qdrant_client.QdrantClient(":memory:"))


@pytest.fixture
def index(store: QdrantStore, library: Index) -> Index:
    """The files of `library`, in Qdrant."""
    made = Index.create(store, Hashed(), library.root, library.config)
    made.update()
    return made


def test_it_holds_what_lance_holds(index: Index, library: Index) -> None:
    assert index.store.files() == library.store.files()
    assert len(index.store) == len(library.store)
    question = "painted every seven years"
    ours, theirs = index.by_vector(question, 99), library.by_vector(question, 99)
    assert [chunk for _, chunk in ours] == [chunk for _, chunk in theirs]
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-5)
    assert index.store.settings() == library.store.settings()


@pytest.mark.parametrize(
    ("question", "path"),
    [("When was the tolls taken?", "bridge.txt"), ("checksum", "code.py"), ("北海道の雨季", "nihon.txt")],
)
def test_words_and_pairs_find_their_file(index: Index, question: str, path: str) -> None:
    assert index.by_text(question, 3)[0][1].path == path
    assert search(index, question, 1)[0].chunk.path == path
    assert index.by_text("the of and", 3) == []
    assert index.by_text("zzzz", 3) == []


def test_text_scores_are_bm25_with_a_constant_mean(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    import math

    from sekkei.rag import qdrant
    from sekkei.rag.store import words

    rows = [chunk for _, chunk in index.by_vector("anything", 99)]
    counted = {chunk.id: qdrant._counted(words(chunk)) for chunk in rows}
    found = index.by_text("tower", 9)
    holds = sum("tower" in said for said in counted.values())
    idf = math.log(1 + (len(rows) - holds + 0.5) / (holds + 0.5))
    assert len(found) == holds
    for score, chunk in found:
        said = counted[chunk.id]
        times = said.count("tower")
        norm = qdrant.K1 * (1 - qdrant.B + qdrant.B * len(said) / qdrant.MEAN_LENGTH)
        # the settings are a point too, so a server may count one document more
        assert score == pytest.approx(idf * times * (qdrant.K1 + 1) / (times + norm), rel=0.15)


def test_updates_follow_the_folder(store: QdrantStore, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name} stands here with its neighbours. " * 20)
    index = Index.create(store, Hashed(), tmp_path, CONFIG)
    index.update()
    before = len(store)
    (tmp_path / "a.txt").write_text("short now")
    (tmp_path / "b.txt").unlink()
    report = index.update()
    assert (report.changed, report.removed, report.unchanged) == (["a.txt"], ["b.txt"], ["c.txt"])
    assert set(store.files()) == {"a.txt", "c.txt"}
    assert len(store) == before // 3 + 1
    assert [chunk.text for _, chunk in index.by_text("short", 9)] == ["short now"]
    again = index.update()
    assert again.added + again.changed + again.removed == []


@pytest.mark.parametrize("where", ["between two requests", "before the old rows go"])
def test_a_commit_that_is_cut_off_is_done_again(
    store: QdrantStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr("sekkei.rag.qdrant.BATCH", 2)
    (tmp_path / "a.txt").write_text("the old words stand here. " * 30)
    index = Index.create(store, Hashed(), tmp_path, CONFIG)
    index.update()
    (tmp_path / "a.txt").write_text("other words are found. " * 30)
    name, allowed = ("upsert", 1) if where == "between two requests" else ("delete", 0)
    real, calls = getattr(store.client, name), []

    def cut(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) > allowed:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(store.client, name, cut)
        with pytest.raises(KeyboardInterrupt):
            index.update()
    assert store.files() == {"a.txt": ""}, "two versions: neither is believed"
    assert index.update().changed == ["a.txt"]
    assert all("other" in chunk.text for _, chunk in index.by_vector("words", 99))
    assert index.update().unchanged == ["a.txt"]


def test_a_collection_of_somebody_else_is_left_alone(store: QdrantStore, tmp_path: Path) -> None:
    models = store.models
    store.client.create_collection("documents", models.VectorParams(size=2, distance=models.Distance.DOT))
    with pytest.raises(UserError, match="is not sekkei's"):
        Index.create(store, Hashed(), tmp_path, CONFIG)
    assert store.client.collection_exists("documents")


def test_wrong_addresses_are_one_line() -> None:
    with pytest.raises(UserError, match="HOST:PORT/COLLECTION"):
        open_store("qdrant+localhost:6333")
    with pytest.raises(UserError, match=r"qdrant\+http://127\.0\.0\.1:9/docs: ") as raised:
        open_store("qdrant+http://127.0.0.1:9/docs").settings()
    assert "\n" not in str(raised.value)
