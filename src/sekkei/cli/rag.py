"""`sekkei rag ACTION`: make a folder of documents searchable, search it, and measure how well that works."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sekkei.core.errors import ConfigError, UserError

if TYPE_CHECKING:
    from sekkei.rag.index import Index
    from sekkei.rag.retrieve import Arm, Rerank

INDEX = "rag-index"
IndexOption = Annotated[str, typer.Option("--index", help="folder of the index, s3://… or qdrant+http://…")]
ModeOption = Annotated[str, typer.Option(help="hybrid, text (BM25) or dense")]
RerankOption = Annotated[
    str | None, typer.Option(help="let this model order the best: runs/NAME or https://HOST/v1#MODEL")
]


def index(
    folder: Annotated[Path, typer.Argument(help="folder with txt, md, html, pdf, py and ipynb files")],
    address: IndexOption = INDEX,
    embedder: Annotated[
        str | None, typer.Option(help="minilm, hash, https://HOST/v1#MODEL or a model's folder")
    ] = None,
    size: Annotated[int, typer.Option(help="most characters (or tokens) of a chunk")] = 1600,
    overlap: Annotated[int, typer.Option(help="most that neighbours share")] = 200,
    unit: Annotated[str, typer.Option(help="characters, or tokens of the embedder")] = "characters",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="throw away what the index holds")] = False,
    cache: Annotated[Path | None, typer.Option(help="keep vectors here [default: in ~/.cache/sekkei]")] = None,
) -> None:
    """Bring an index to what a folder holds: new and changed files are read, missing ones are removed.

    Without --embedder: what the index was made with, else minilm where its wheel is installed, else hash. Calling it
    again costs only what has changed.

    \b
    Examples:
      sekkei rag index docs
      sekkei rag index docs --index docs-index --embedder hash --size 800
      sekkei rag index notes --embedder https://api.openai.com/v1#text-embedding-3-small
      sekkei rag index docs --index s3://bucket/docs-index
    """
    from sekkei.core.config import from_mapping
    from sekkei.core.progress import Console
    from sekkei.rag.chunk import ChunkConfig
    from sekkei.rag.embed import Cached, default_embedder, find_embedder
    from sekkei.rag.index import Index
    from sekkei.rag.read import READERS, files_of
    from sekkei.rag.store import open_store

    config = from_mapping(ChunkConfig, {"size": size, "overlap": overlap, "unit": unit}, "chunk")
    names = files_of(folder)  # a wrong folder is said before a model is loaded
    if not names:  # also where an index exists: more likely a disk that is not mounted than a wish to remove all
        raise UserError(f"{folder}: holds no file that can be read (known: {', '.join(sorted(READERS))})")
    store, console = open_store(address), Console()
    settings = None if rebuild else store.settings()
    name = embedder or (settings["embedder"] if settings else default_embedder())
    if not embedder and not settings:
        console.say(f"embedder: {name}")
    made = Cached(find_embedder(name), cache or cache_folder() / "vectors.sqlite")
    if settings is None:
        opened = Index.create(store, made, folder, config)
    else:
        opened = Index(store, made)
        opened.check(folder, config)
    with console.bar("rag index", len(names)) as bar:
        report = opened.update(lambda done, _total, file: bar.update(done, file))
    for failure in report.failures:
        console.say(f"not readable: {failure.path}: {failure.reason}")
    counts = {
        "added": report.added,
        "changed": report.changed,
        "removed": report.removed,
        "unchanged": report.unchanged,
    }
    words = ", ".join(f"{len(paths)} {word}" for word, paths in counts.items())
    left_out = f", {len(report.empty)} empty" if report.empty else ""
    print(f"{address}: {words}{left_out}, {len(report.failures)} not readable; {len(store):,} chunks")


def search(
    question: Annotated[str, typer.Argument(help="what to look for")],
    address: IndexOption = INDEX,
    k: Annotated[int, typer.Option("-k", help="how many chunks")] = 5,
    mode: ModeOption = "hybrid",
    rerank: RerankOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per chunk")] = False,
) -> int:
    """Print the chunks that fit a question best, with file and characters. The exit code is 1 if there is none.

    \b
    Examples:
      sekkei rag search "how is a checkpoint written"
      sekkei rag search "索引" --mode text -k 3 --json
    """
    from dataclasses import asdict

    from sekkei.rag.retrieve import search as find

    opened = open_index(address)
    hits = find(opened, question, k, arms_of(mode), rerank=reranker(rerank))
    for number, hit in enumerate(hits, 1):
        if as_json:
            print(json.dumps(asdict(hit), ensure_ascii=False))
            continue
        chunk, ranks = hit.chunk, ", ".join(f"{arm} {rank}" for arm, rank in hit.ranks.items())
        print(f"{number}. {where(chunk.path, chunk.place, chunk.start, chunk.end)}  {chunk.heading}  ({ranks})")
        print("\n".join(f"   {line}" for line in chunk.text.splitlines()), end="\n\n")
    if not hits and not as_json:
        print("nothing found")
    return 0 if hits else 1


def evaluate(
    queries: Annotated[Path, typer.Argument(help="judged queries, as JSON lines; or id<TAB>text, with --judgements")],
    judgements: Annotated[Path | None, typer.Option(help="TREC judgements: id 0 path grade")] = None,
    address: IndexOption = INDEX,
    rerank: RerankOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures to this file")] = None,
) -> None:
    """nDCG@10, recall and MRR of BM25, dense and hybrid search against judged queries.

    A line of QUERIES is {"query": "…", "relevant": [{"path": "a.md", "start": 10, "end": 80, "grade": 2}]}; without
    start and end the whole file is relevant. With --rerank there is a fourth row: hybrid, reordered by that model.

    \b
    Examples:
      sekkei rag eval judged.jsonl
      sekkei rag eval queries.tsv --judgements judgements.txt --json figures.json
    """
    from sekkei.core import atomic
    from sekkei.core.progress import Console
    from sekkei.rag.judged import measure, read_judged

    judged, opened = read_judged(queries, judgements), open_index(address)
    modes = {mode: (arms_of(mode), None) for mode in ("text", "dense", "hybrid")}
    if rerank:
        modes["reranked"] = (arms_of("hybrid"), reranker(rerank))
    figures, console = {}, Console()
    for mode, (arms, order) in modes.items():
        with console.bar(f"rag eval {mode}", len(judged)) as bar:
            figures[mode] = measure(opened, judged, arms, bar.update, order)
    names = [name for name in figures["text"] if name != "queries"]
    print(f"{figures['text']['queries']} queries  " + "".join(f"{name:>11}" for name in names))
    for mode, row in figures.items():
        print(f"{mode:<12}" + "".join(f"{row[name]:>11.3f}" for name in names))
    if json_file is not None:
        atomic.write_json(json_file, figures)
        print(f"figures: {json_file}")


def open_index(address: str) -> Index:
    """The index at an address, with the embedder that it was made with.

    Raises:
        UserError: there is none.
    """
    from sekkei.rag.embed import find_embedder
    from sekkei.rag.index import Index
    from sekkei.rag.store import open_store

    store = open_store(address)
    settings = store.settings()
    if settings is None:
        raise ConfigError("--index", f"{address} holds no index; make one with sekkei rag index DIR --index {address}")
    return Index(store, find_embedder(settings["embedder"]))


def arms_of(mode: str) -> tuple[Arm, ...]:
    """The arms of a mode's name."""
    modes: dict[str, tuple[Arm, ...]] = {"hybrid": ("text", "dense"), "text": ("text",), "dense": ("dense",)}
    if mode not in modes:
        raise ConfigError("--mode", f"got {mode}, must be one of {', '.join(modes)}")
    return modes[mode]


def where(path: str, place: str, start: int, end: int) -> str:
    """A citation as people read it: docs/a.pdf, page 3 [120:480]."""
    return f"{path}{f', {place}' if place else ''} [{start}:{end}]"


def reranker(spec: str | None) -> Rerank | None:
    if spec is None:
        return None
    from sekkei.llm.open import open_llm
    from sekkei.rag.retrieve import by_model

    return by_model(open_llm(spec))


def cache_folder() -> Path:
    """Where vectors are kept between indexes: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sekkei"


COMMANDS = {"index": index, "search": search, "eval": evaluate}
