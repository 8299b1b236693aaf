"""An index is what its folder is: after every kind of change, after being cut off, and at an object-store address."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import bm25s
import numpy as np
import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.rag.chunk import ChunkConfig
from sekkei.rag.embed import Hashed
from sekkei.rag.index import Index
from sekkei.rag.store import LanceStore, words
from sekkei.rag.tokens import tokens

Make = Callable[..., Index]
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()  # noqa: SIM905


def contents(index: Index) -> set[tuple[str, int, int, str]]:
    rows = index.store.table.search().limit(None).to_list()  # type: ignore[attr-defined]
    return {(row["path"], row["start"], row["end"], row["text"]) for row in rows}


def fresh(index: Index, folder: Path) -> Index:
    """The same folder indexed from nothing."""
    made = Index.create(LanceStore(str(folder)), Hashed(), index.root, index.config)
    made.update()
    return made


def test_an_update_does_what_has_changed_and_no_more(make_index: Make, tmp_path: Path) -> None:
    files = {f"{name}.txt": f"{name} stands here with its neighbours. " * 30 for name in WORDS}
    index = make_index(files, ChunkConfig(size=300, overlap=30))
    root = index.root
    (root / "beta.txt").write_text("beta is short now")
    (root / "gamma.txt").unlink()
    (root / "new's.txt").write_text("a name with a quote")
    (root / "delta.txt").write_bytes(bytes(range(256)))
    (root / "void.txt").write_text("\n")
    shutil.move(root / "zeta.txt", root / "moved.txt")
    report = index.update()
    assert (report.added, report.changed) == (["moved.txt", "new's.txt"], ["beta.txt"])
    assert report.removed == ["gamma.txt", "zeta.txt", "delta.txt"]
    assert [failure.path for failure in report.failures] == ["delta.txt"]
    assert report.empty == ["void.txt"]
    assert len(report.unchanged) == 6
    assert contents(index) == contents(fresh(index, tmp_path / "again"))
    (root / "new's.txt").unlink()
    assert index.update().removed == ["new's.txt"]
    again = index.update()
    assert again.added + again.changed + again.removed == []
    assert again.chunks == 0


def test_search_after_updates_scores_as_a_fresh_index(make_index: Make, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sentence = lambda: " ".join(generator.choice(WORDS, 12))  # noqa: E731
    index = make_index({f"{i:02}.txt": sentence() for i in range(30)})
    for i in range(0, 30, 3):
        (index.root / f"{i:02}.txt").write_text(sentence())
    for i in range(1, 30, 3):
        (index.root / f"{i:02}.txt").unlink()
    index.update()
    other = fresh(index, tmp_path / "again")
    for word in WORDS:
        ours, theirs = (sorted((c.path, round(s, 4)) for s, c in one.by_text(word, 99)) for one in (index, other))
        assert ours == theirs
        assert ours


def test_text_scores_are_bm25(make_index: Make) -> None:
    generator = np.random.default_rng(1)
    files = {f"{i:02}.txt": " ".join(generator.choice(WORDS, generator.integers(5, 40))) for i in range(40)}
    index = make_index(files)
    rows = sorted((chunk for _, chunk in index.by_vector("alpha", 99)), key=lambda chunk: chunk.path)
    peer = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    corpus = [words(chunk).split() for chunk in rows]
    peer.index(corpus, show_progress=False)
    for query in ("alpha beta", "kappa", "theta iota zeta"):
        ours = {chunk.path: score for score, chunk in index.by_text(query, 99)}
        theirs = dict(zip([chunk.path for chunk in rows], peer.get_scores(tokens(query)), strict=True))
        theirs = {path: score for path, score in theirs.items() if score > 0}
        assert set(ours) == set(theirs)
        ratio = [ours[path] / theirs[path] for path in ours]
        # Lance keeps document lengths in a byte of its own scale, so scores differ by some per cent
        assert np.std(ratio) / np.mean(ratio) < 0.06
        assert max(ours, key=ours.__getitem__) in sorted(theirs, key=theirs.__getitem__)[-3:]


def test_vectors_are_found_exactly(library: Index) -> None:
    found = library.by_vector("painted every seven years", 99)
    direct = Hashed().embed([chunk.context for _, chunk in found]) @ Hashed().embed(["painted every seven years"])[0]
    assert [score for score, _ in found] == pytest.approx(direct.tolist(), abs=1e-5)
    assert direct.tolist() == sorted(direct, reverse=True)
    assert found[0][1].heading == "The tower > Colours"


def test_many_rows_get_an_approximate_index(tmp_path: Path) -> None:
    store = LanceStore(str(tmp_path / "index"), ann_rows=300)
    folder = tmp_path / "files"
    folder.mkdir()
    generator = np.random.default_rng(2)
    for i in range(320):
        (folder / f"{i:03}.txt").write_text(" ".join(generator.choice(WORDS, 9)) + f" number {i} {i * 7919}")
    index = Index.create(store, Hashed(), folder, ChunkConfig())
    index.update()
    kinds = {found.index_type for found in store.table.list_indices()}
    assert any("HNSW" in kind.upper() for kind in kinds), kinds
    hit = sum(index.by_vector(text.read_text(), 1)[0][1].path == text.name for text in sorted(folder.iterdir())[:50])
    assert hit >= 48


def test_an_update_that_is_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekkei.rag.index.BATCH", 4)
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(f"document {i} of twelve")
    index = Index.create(LanceStore(str(tmp_path / "index")), Hashed(), folder, ChunkConfig())

    def stop(done: int, total: int, name: str) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.update(stop)
    opened = Index(LanceStore(str(tmp_path / "index")), Hashed())
    assert len(opened.store) == 8, "two whole batches"
    assert len(opened.by_text("document", 99)) == 8, "what was committed is found before it is indexed"
    report = opened.update()
    assert (len(report.added), len(report.unchanged)) == (4, 8)
    assert len(opened.by_text("twelve", 99)) == 12


def test_a_commit_that_fails_changes_nothing(make_index: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_index({"a.txt": "old words", "b.txt": "others"})
    before = contents(index)
    (index.root / "a.txt").write_text("new words")

    def broken(*_: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(index.store, "_arrow", broken)
    with pytest.raises(UserError, match="disk on fire"):
        index.update()
    assert contents(index) == before


def test_a_reader_sees_what_a_writer_commits(make_index: Make, tmp_path: Path) -> None:
    index = make_index({"a.txt": "first words"})
    reader = Index(LanceStore(str(tmp_path / "index")), Hashed())
    (index.root / "b.txt").write_text("second words")
    index.update()
    assert {chunk.path for _, chunk in reader.by_text("words", 9)} == {"a.txt", "b.txt"}


def test_an_object_store_address_is_opened_by_lance() -> None:
    store = LanceStore("memory://sekkei-test")
    assert store.settings() is None
    index = Index.create(store, Hashed(), Path(__file__).parent, ChunkConfig())
    index.update()
    assert len(store) > 20
    assert index.by_text("object store address", 1)[0][1].path == Path(__file__).name


def test_an_unreachable_bucket_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "r", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true", "OBJECT_STORE_CLIENT_MAX_RETRIES": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="s3://sekkei-no-bucket") as raised:
        LanceStore("s3://sekkei-no-bucket/x").files()
    assert "\n" not in str(raised.value)


def test_looking_does_not_make_a_folder(tmp_path: Path) -> None:
    assert LanceStore(str(tmp_path / "none")).settings() is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="sekkei rag index"):
        Index(LanceStore(str(tmp_path / "none")), Hashed())
    with pytest.raises(UserError, match="holds no index"):
        LanceStore(str(tmp_path / "none")).files()


def test_other_settings_are_refused(make_index: Make, tmp_path: Path) -> None:
    index = make_index({"a.txt": "words"}, ChunkConfig(size=100, overlap=10))
    other = Hashed()
    other.name = "another"  # type: ignore[misc]
    with pytest.raises(ConfigError, match="the index was made with hash"):
        Index(index.store, other)
    with pytest.raises(ConfigError, match="size 100, overlap 10"):
        index.check(index.root, ChunkConfig())
    with pytest.raises(UserError, match="the index is of"):
        index.check(tmp_path, index.config)
    index.check(index.root, ChunkConfig(size=100, overlap=10))


def test_tokens_beyond_what_the_embedder_reads_are_refused(tmp_path: Path) -> None:
    short = Hashed()
    short.max_tokens = 64  # type: ignore[assignment]
    store = LanceStore(str(tmp_path / "index"))
    with pytest.raises(ConfigError, match="reads only the first 64"):
        Index.create(store, short, tmp_path, ChunkConfig(size=65, overlap=0, unit="tokens"))
    (tmp_path / "a.txt").write_text("one two three four five six seven")
    index = Index.create(store, short, tmp_path, ChunkConfig(size=3, overlap=0, unit="tokens"))
    index.update()
    assert {text for *_, text in contents(index)} == {"one two three", "four five six", "seven"}


def test_a_chunk_is_looked_up_in_its_file(make_index: Make) -> None:
    index = make_index({"a.txt": "words of the file"})
    ((_, chunk),) = index.by_text("words", 9)
    assert index.document_of(chunk).text == "words of the file"
    (index.root / "a.txt").write_text("other words")
    with pytest.raises(UserError, match="has changed since it was indexed"):
        index.document_of(chunk)
    (index.root / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt: "):
        index.document_of(chunk)


def test_tokens_of_scripts_without_spaces_are_pairs() -> None:
    assert tokens("The B-tree's 索引は速い") == ["the", "b", "tree", "s", "索引", "引は", "は速", "速い"]
    assert tokens("ＡＢＣ ｶﾀｶﾅ・語 snake_case x" + "y" * 99) == [
        "abc",
        "カタ",
        "タカ",
        "カナ",
        "語",
        "snake",
        "case",
        "x" + "y" * 39,
    ]
    assert tokens(" \n—…") == []
