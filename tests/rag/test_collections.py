"""The floors on two public collections, by the benchmark's own code (minutes, so slow)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sekkei.rag import embed

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
spec = importlib.util.spec_from_file_location("benchmark_rag", ROOT / "benchmarks" / "rag.py")
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


@pytest.mark.skipif(not (DATA / "cranfield").exists(), reason="../shared/data/cranfield is not there")
def test_cranfield_is_joined_by_the_order_of_the_queries() -> None:
    documents, queries, judged = benchmark.cranfield(DATA / "cranfield")
    assert (len(documents), len(queries), len(judged)) == (1400, 225, 225)
    assert queries["1"].startswith("what similarity laws must be obeyed")
    assert queries["225"].startswith("what design factors can be used to control lift-drag ratios")
    assert judged["1"]["0184"] > 0
    assert set().union(*judged.values()) <= set(documents)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cranfield").exists(), reason="../shared/data/cranfield is not there")
@pytest.mark.skipif(embed.default_embedder() != "minilm", reason=f"needs {embed.MINILM_INSTALL}")
def test_cranfield(tmp_path: Path) -> None:
    found = benchmark.measure_cranfield(DATA, tmp_path / "vectors.sqlite", tmp_path / "c")["binary"]
    assert found["hybrid"]["ndcg@10"] >= 0.43
    assert found["hybrid"]["ndcg@10"] > max(found["bm25"]["ndcg@10"], found["dense"]["ndcg@10"]) + 0.02


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "jsquad_valid.json").exists(), reason="../shared/data/jsquad_valid.json is not there")
def test_japanese_without_a_dictionary(tmp_path: Path) -> None:
    found = benchmark.measure_jsquad(DATA, tmp_path / "j")["binary"]
    assert min(row["recall@5"] for row in found.values()) >= 0.90


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "jsquad_valid.json").exists(), reason="../shared/data/jsquad_valid.json is not there")
def test_what_is_not_there_is_mostly_refused_and_what_is_there_is_not(tmp_path: Path) -> None:
    rows = benchmark.measure_refusal(DATA, tmp_path / "r")["limits"]
    (row,) = [row for row in rows if row["min_evidence"] == 0.6]
    assert row["unanswerable_refused"] >= 0.85
    assert row["answerable_refused"] <= 0.12
