"""Two arms fused by rank, an order from a model, and judged queries from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sekkei.core.errors import UserError
from sekkei.llm.face import LLM
from sekkei.llm.scripted import Scripted
from sekkei.rag.chunk import ChunkConfig
from sekkei.rag.index import Index
from sekkei.rag.judged import Judged, Target, measure, ranking, read_judged
from sekkei.rag.retrieve import RRF_K, by_model, order_of, search


def test_fusion_is_the_sum_of_reciprocal_ranks(library: Index) -> None:
    question = "When was the tower of stone built?"
    text = [chunk.id for _, chunk in library.by_text(question, 100)]
    dense = [chunk.id for _, chunk in library.by_vector(question, 100)]
    hits = search(library, question, 99)
    assert {hit.chunk.id for hit in hits} == {*text, *dense}
    for hit in hits:
        places = [arm.index(hit.chunk.id) + 1 for arm in (text, dense) if hit.chunk.id in arm]
        assert hit.score == pytest.approx(sum(1 / (RRF_K + place) for place in places))
        assert sorted(hit.ranks.values()) == sorted(places)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.chunk.id for hit in search(library, question, 99, ("text",))] == text
    assert [hit.chunk.id for hit in search(library, question, 2, ("dense",))] == dense[:2]


def test_depth_limits_each_arm(library: Index) -> None:
    hits = search(library, "tower", 1, depth=1)
    assert len(hits) == 1
    assert len(search(library, "tower", 99, ("dense",))) == len(library.store)


@pytest.mark.parametrize(
    ("reply", "order"),
    [
        ("3 > 1 > 2", [2, 0, 1, 3]),
        ("[4], [4], [9], [0] then 2", [3, 1, 0, 2]),
        ("no idea", [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        ("99999999999999999999", [0, 1, 2, 3]),
    ],
)
def test_any_reply_gives_an_order_of_all(reply: str, order: list[int]) -> None:
    assert order_of(reply, 4) == order


def test_a_model_orders_the_best(library: Index) -> None:
    plain = search(library, "tower", 4)
    backend = Scripted(["4 > 3"])
    hits = search(library, "tower", 3, rerank=by_model(LLM(backend)))
    assert [hit.chunk.id for hit in hits] == [plain[place].chunk.id for place in (3, 2, 0)]
    (call,) = backend.calls
    assert call.messages[-1]["content"].count("\n</passage-") == min(6, len(library.store))
    assert not search(library, "tower", 3, (), rerank=by_model(LLM(Scripted([])))), "nothing found, nobody asked"


def test_a_passage_counts_where_a_chunk_overlaps_it(make_index) -> None:
    text = "alpha stands here. " * 20 + "omega stands there. " * 20
    index = make_index({"a.txt": text, "b.txt": "nothing of that"}, ChunkConfig(size=100, overlap=0))
    at = text.index("omega")
    omega, alpha = Target("a.txt", 2, at, at + 5), Target("a.txt", 1, 0, 5)
    hits = search(index, "omega", 99)
    names = ranking(hits, [alpha, omega])
    assert names[0] == omega.name
    assert alpha.name in names
    assert len(names) == len(set(names))
    figures = measure(
        index, [Judged("omega", (Target("a.txt", 1, at, len(text)),)), Judged("alpha", (Target("b.txt"),))], ("text",)
    )
    assert figures["recall@1"] == 0.5
    assert figures["mrr"] == 0.5


def test_a_judged_file_that_is_not_indexed_is_an_error(library: Index) -> None:
    with pytest.raises(UserError, match=r"judged file 'none\.md' is not in the index"):
        measure(library, [Judged("x", (Target("none.md"),))], ("text",))


def test_judged_queries_are_read_from_both_forms(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    target = {"path": "a.md", "start": 1, "end": 5, "grade": 2}
    rows.write_text(json.dumps({"query": "one", "relevant": [target]}) + "\n\n")
    assert read_judged(rows) == [Judged("one", (Target("a.md", 2, 1, 5),))]
    queries, judgements = tmp_path / "q.tsv", tmp_path / "qrels"
    queries.write_text("1\tone\n2\ttwo\n")
    judgements.write_text("1 0 a.md 3\n1 0 b.md 0\n")
    assert read_judged(queries, judgements) == [Judged("one", (Target("a.md", 3), Target("b.md", 0)))]


@pytest.mark.parametrize(
    ("queries", "judgements", "words"),
    [
        ("{", None, "q:1: a line is"),
        ('{"query": 3, "relevant": []}', None, "query and path are texts"),
        ('{"query": "x", "relevant": [{"file": "a"}]}', None, "q:1: a line is"),
        ("1\tone\n1\tagain", "", "q:2: each line is id<TAB>text"),
        ("1\tone", "2 0 a 1", "the query '2' is not in"),
        ("1\tone", "1 0 a", "j:1: a line is"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path: Path, queries: str, judgements: str | None, words: str) -> None:
    (tmp_path / "q").write_text(queries)
    if judgements is not None:
        (tmp_path / "j").write_text(judgements)
    with pytest.raises(UserError) as raised:
        read_judged(tmp_path / "q", None if judgements is None else tmp_path / "j")
    assert words in str(raised.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_judged(tmp_path / "none")
