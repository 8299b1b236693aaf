"""nDCG, recall and MRR: by hand, and equal to ranx on random rankings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sekkei.rag.metrics import ndcg, recall, reciprocal_rank, scores


def test_by_hand() -> None:
    grades = {"a": 3, "b": 2, "c": 1, "d": 0, "e": -1}
    ranking = ["x", "b", "e", "a"]
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg(ranking, grades, 10) == pytest.approx((2 / math.log2(3) + 3 / math.log2(5)) / ideal)
    assert ndcg(["a", "b"], grades, 2) == 1
    assert recall(ranking, grades, 2) == pytest.approx(1 / 3)
    assert recall(ranking, grades, 4) == pytest.approx(2 / 3)
    assert reciprocal_rank(ranking, grades) == 0.5
    assert reciprocal_rank(["x"], grades) == ndcg([], grades, 10) == 0


def test_a_query_without_ranking_counts_and_one_without_relevant_does_not() -> None:
    found = scores({"1": ["a"]}, {"1": {"a": 1}, "2": {"a": 1}, "3": {"a": 0}}, recall_at=(1,))
    assert found == {"queries": 2, "ndcg@10": 0.5, "recall@1": 0.5, "mrr": 0.5}


@pytest.mark.timeout(1800)  # ranx compiles itself at first use: half a minute of a core, minutes beside other work
def test_equal_to_ranx_on_random_rankings() -> None:
    ranx = pytest.importorskip("ranx", reason="the peer is test-only")
    generator = np.random.default_rng(0)
    names = [f"d{i}" for i in range(60)]
    judged, rankings = {}, {}
    for query in range(40):
        order = generator.permutation(60)
        chosen = order[: generator.integers(1, 25)]
        judged[f"q{query}"] = {names[i]: int(generator.integers(0, 5)) for i in chosen} | {names[order[-1]]: 1}
        rankings[f"q{query}"] = [names[i] for i in generator.permutation(60)[: generator.integers(1, 50)]]
    run = {query: {name: 1.0 / rank for rank, name in enumerate(row, 1)} for query, row in rankings.items()}
    theirs = ranx.evaluate(ranx.Qrels(judged), ranx.Run(run), ["ndcg@10", "recall@1", "recall@5", "recall@10", "mrr"])
    ours = scores(rankings, judged)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-12), name
