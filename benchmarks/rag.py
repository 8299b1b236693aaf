"""How well retrieval finds, on two public collections, through the same code as `sekkei rag`.

    OMP_NUM_THREADS=1 python benchmarks/rag.py [--data ../shared/data] [--out benchmarks/results/rag.json]

Cranfield (1,400 abstracts, 225 queries, English): every abstract is a file, indexed with MiniLM; BM25, dense and both
fused, as nDCG@10, recall and MRR. A file's rank is that of its best chunk. Judgements name queries by their order in
`cran.qry`, not by the `.I` ids. Grades: the file's code 1 (complete answer) to 4 (minimum interest) count as 4 to 1,
and "binary" counts all four as 1.

JSQuAD (Japanese Wikipedia paragraphs with questions): every paragraph is a file, indexed without dictionary or model
(BM25 over character bigrams; hashed n-grams as vectors); recall@5 of the paragraph that a question was written for.

`refusal` asks what "not in the documents" costs: every other article of JSQuAD is left out of the index, and 200
questions are asked of either half. For each limit of the evidence (answer.py) it gives the share of unanswerable
questions that are refused, of answerable ones that are refused, and of answerable ones that go on to the model with
the right paragraph among the passages. No model is asked.

`study` is rag/study.py on docstring questions of this Python's standard library, with MiniLM: by extraction where no
model is named, else by `--model` (runs/NAME, https://HOST/v1#MODEL), `--plain` for small ones.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.progress import Console
from sekkei.llm.open import open_llm
from sekkei.rag.answer import DEFAULT, grounds
from sekkei.rag.chunk import ChunkConfig
from sekkei.rag.embed import Cached, Embedder, find_embedder
from sekkei.rag.index import Index
from sekkei.rag.metrics import scores
from sekkei.rag.retrieve import ARMS, search
from sekkei.rag.store import LanceStore
from sekkei.rag.study import StudyConfig, docstring_study, figures, trade_off

ROOT = Path(__file__).resolve().parents[1]
ASKED = 200  # questions of either half in "refusal"; a share moves by 3 points or less
MODES = {"bm25": ("text",), "dense": ("dense",), "hybrid": ARMS}


def cranfield(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Documents, queries and graded judgements of the collection, by name."""
    documents = {}
    for record in re.split(r"^\.I ", (folder / "cran.all.1400").read_text(), flags=re.MULTILINE)[1:]:
        number, title, text = re.match(r"(\d+)\n\.T\n(.*?)\.A\n.*?\.W\n(.*)", record, re.DOTALL).groups()  # type: ignore[union-attr]
        documents[f"{int(number):04}"] = f"{' '.join(title.split())}\n\n{text.strip()}\n"
    bodies = re.findall(
        r"^\.I .*?\n\.W\n(.*?)(?=^\.I |\Z)", (folder / "cran.qry").read_text(), re.MULTILINE | re.DOTALL
    )
    queries = {str(order): " ".join(body.split()) for order, body in enumerate(bodies, 1)}
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "cranqrel").read_text().splitlines():
        query, document, code = map(int, line.split())
        if 1 <= code <= 4:
            judged.setdefault(str(query), {})[f"{document:04}"] = 5 - code
    return documents, queries, judged


def jsquad(path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]], dict[str, str]]:
    """Paragraphs, questions, judgements, and paragraph -> article."""
    documents, queries, judged, article_of = {}, {}, {}, {}
    for number, article in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        for place, paragraph in enumerate(article["paragraphs"]):
            name = f"{number:03}-{place:02}"
            documents[name] = paragraph["context"].replace(" [SEP] ", "\n\n") + "\n"
            article_of[name] = article["title"]
            for question in paragraph["qas"]:
                queries[question["id"]] = question["question"]
                judged[question["id"]] = {name: 1}
    return documents, queries, judged, article_of


def index_of(documents: Mapping[str, str], embedder: Embedder, folder: Path) -> Index:
    """Every document as one file of a folder, indexed as `sekkei rag index` does it."""
    files = folder / "files"
    files.mkdir(parents=True)
    for name, text in documents.items():
        (files / f"{name}.txt").write_text(text, encoding="utf-8")
    index = Index.create(LanceStore(str(folder / "index")), embedder, files, ChunkConfig())
    with Console().bar("index", len(documents)) as bar:
        index.update(lambda done, total, name: bar.update(done, name))
    return index


def rankings(index: Index, queries: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Mode -> query -> files, the best first."""
    found: dict[str, dict[str, list[str]]] = {mode: {} for mode in MODES}
    with Console().bar("search", len(queries)) as bar:
        for done, (name, question) in enumerate(queries.items()):
            bar.update(done)
            for mode, arms in MODES.items():
                hits = search(index, question, k=100, arms=arms)
                found[mode][name] = list(dict.fromkeys(Path(hit.chunk.path).stem for hit in hits))
    return found


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def measure_cranfield(data: Path, cache: Path, folder: Path) -> dict[str, Any]:
    documents, queries, judged = cranfield(data / "cranfield")
    embedder = Cached(find_embedder("minilm"), cache)
    began = time.perf_counter()
    index = index_of(documents, embedder, folder)
    built = time.perf_counter() - began
    found = rankings(index, queries)
    binary = {query: dict.fromkeys(grades, 1) for query, grades in judged.items()}
    return {
        "documents": len(documents),
        "chunks": len(index.store),
        "embedder": embedder.name,
        "graded": {mode: rounded(scores(found[mode], judged)) for mode in MODES},
        "binary": {mode: rounded(scores(found[mode], binary)) for mode in MODES},
        "machine": {"index_seconds": round(built, 1)},
    }


def measure_jsquad(data: Path, folder: Path) -> dict[str, Any]:
    documents, queries, judged, _ = jsquad(data / "jsquad_valid.json")
    index = index_of(documents, find_embedder("hash"), folder)
    found = rankings(index, queries)
    return {
        "documents": len(documents),
        "chunks": len(index.store),
        "embedder": index.embedder.name,
        "binary": {mode: rounded(scores(found[mode], judged)) for mode in MODES},
    }


def measure_refusal(data: Path, folder: Path) -> dict[str, Any]:
    documents, queries, judged, article_of = jsquad(data / "jsquad_valid.json")
    articles = sorted(set(article_of.values()))
    kept = set(articles[::2])
    index = index_of({n: t for n, t in documents.items() if article_of[n] in kept}, find_embedder("hash"), folder)
    sides: dict[bool, list[tuple[float, float, bool]]] = {True: [], False: []}
    names = sorted(queries)
    random.Random(0).shuffle(names)
    with Console().bar("refusal", 2 * ASKED) as bar:
        for name in names:
            (right,) = judged[name]
            side = sides[article_of[right] in kept]
            if len(side) < ASKED:
                hits = search(index, queries[name], k=6)
                side.append((*grounds(queries[name], hits), any(Path(hit.chunk.path).stem == right for hit in hits)))
                bar.update(sum(map(len, sides.values())))
    rows = []
    for limit in [step / 10 for step in range(11)]:
        keep = {
            side: [share >= limit or near >= DEFAULT.min_similarity for share, near, _ in found]
            for side, found in sides.items()
        }
        right_kept = [held and found for held, (*_, found) in zip(keep[True], sides[True])]
        row = {
            "min_evidence": limit,
            "unanswerable_refused": 1 - sum(keep[False]) / ASKED,
            "answerable_refused": 1 - sum(keep[True]) / ASKED,
            "answerable_with_right_passage": sum(right_kept) / ASKED,
        }
        rows.append(rounded(row))
    return {"embedder": "hash", "questions": 2 * ASKED, "min_similarity": DEFAULT.min_similarity, "limits": rows}


def measure_study(model: str | None, plain: bool, cache: Path, folder: Path) -> dict[str, Any]:
    embedder, llm = Cached(find_embedder("minilm"), cache), open_llm(model) if model else None
    with Console().bar("study", 120) as bar:
        outcomes = docstring_study(llm, folder, config=StudyConfig(plain=plain), embedder=embedder, progress=bar.update)
    return {
        "model": model or "extraction",
        "documents": len(list((folder / "documents").iterdir())),
        "at_default_limit": figures(outcomes, min_evidence=DEFAULT.min_evidence),
        "trade_off": trade_off(outcomes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "rag.json")
    parser.add_argument("--cache", type=Path, default=None, help="keep MiniLM's vectors in this file for the next run")
    parser.add_argument("--only", choices=["cranfield", "jsquad", "refusal", "study"], default=None)
    parser.add_argument("--model", default=None, help="who answers in the study")
    parser.add_argument("--plain", action="store_true", help="prompts for small models in the study")
    args = parser.parse_args()
    result = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        cache = args.cache or here / "vectors.sqlite"
        parts = {
            "cranfield": lambda: measure_cranfield(args.data, cache, here / "cranfield"),
            "jsquad": lambda: measure_jsquad(args.data, here / "jsquad"),
            "refusal": lambda: measure_refusal(args.data, here / "refusal"),
            "study": lambda: measure_study(args.model, args.plain, cache, here / "study"),
        }
        for name, part in parts.items():
            if args.only in (None, name):
                result[name] = part()
                print(name, json.dumps(result[name], indent=1), flush=True)
                atomic.write_json(args.out, result)  # after each part: a run takes minutes


if __name__ == "__main__":
    main()
