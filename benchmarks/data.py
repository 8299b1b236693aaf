"""Cleaning beside datatrove: megabytes of pages per second of one core, and memory, on the same web archives.

    python benchmarks/data.py --peer /tmp/dtenv/bin/python [--megabytes 50] [--repeats 3] [--cases same]

The peer lives in an environment of its own: pip install 'datatrove==0.10.1' 'xxhash<4' resiliparse py3langid
trafilatura lxml_html_clean warcio faust-cchardet python-magic spacy nltk tokenizers pyahocorasick fasteners tldextract
ftfy regex.
Pages are made of real ones (../shared/data/warc, and what pydoc renders): each is a real page whose words are replaced,
a share of them, by others of its kind, so that there are new pages, near copies of every degree, and exact copies.
Cases may be run one by one: runs are added to those that the result file has of the same
corpus.

    default     ours: the default blocks          theirs: the FineWeb pipeline (trafilatura, URL, Gopher, C4, FineWeb,
                                                  MinHash, PII), language left out (its model is a download)
    same        both: resiliparse by one call, py3langid, Gopher, C4, FineWeb, MinHash 14 × 8, e-mail and IP;
                words parted at spaces
    trafilatura the same rules behind trafilatura on both sides (`favor_precision`, no duplicates filter)

One process works at a time (datatrove's extractor works in a child while its parent waits). Runs alternate. CPU seconds
(user + system, of all processes) are what a core is busy for: other people's load changes the wall clock, not them.
Memory is the largest sum of private and shared pages (PSS) over the process tree, looked at every 200 ms.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sekkei.core.seed import derive_seed
from sekkei.data.pages import PagesConfig, read_pages, render_pages
from sekkei.text.blocks.block import Marks
from sekkei.text.blocks.duplicates import ExactDuplicates, NearDuplicates
from sekkei.text.page import Page
from sekkei.text.read.warc import read_warc

ROOT = Path(__file__).parents[1]
WARC = ROOT.parent / "shared" / "data" / "warc" / "sample-0000.warc.gz"
FILE_BYTES = 4_000_000
CHANGED = ((0.55, 0.6), (0.15, 0.1), (0.12, 0.02), (0.10, 0.005), (0.08, 0.0))  # (share of pages, of their words)
SAME = """
read: {}
blocks:
  - extract: {extractor: EXTRACTOR}
  - language
  - gopher_repetition
  - gopher_quality
  - c4
  - fineweb
  - near_duplicates
  - scrub: {kinds: [email, ip]}
"""
_TEXT = re.compile(r">([^<>{}]{24,})<")
_WORD = re.compile(r"[A-Za-z]{2,}")


def real_pages(work: Path) -> list[list[str]]:
    """HTML of a crawl and of pydoc, two lists."""
    crawl = []
    for item in read_warc(WARC, "sample", "crawl", 8_000_000):
        if isinstance(item, Page) and item.html:
            content = item.content
            crawl.append(content if isinstance(content, str) else content.decode("utf-8", "replace"))
    folder = work / "pydoc"
    if not folder.is_dir():
        render_pages(folder, PagesConfig())
    manual = [data.decode("utf-8", "replace") for _, data in read_pages(folder) if 4_000 < len(data) < 200_000]
    return [crawl, manual]


def make_corpus(folder: Path, megabytes: int, work: Path) -> dict[str, Any]:
    """Write web archives of at least `megabytes` of HTML; returns what is in them."""
    kinds = [[page for page in pages if page] for pages in real_pages(work)]
    words = [_WORD.findall(" ".join(" ".join(_TEXT.findall(page)) for page in pages[:300])) for pages in kinds]
    folder.mkdir(parents=True)
    written = count = number = 0
    file, held = None, 0
    while written < megabytes * 1_000_000:
        rng = random.Random(derive_seed("benchmark page", count))
        kind = 0 if rng.random() < 0.5 else 1
        page = rng.choice(kinds[kind])
        share = rng.choices([p for _, p in CHANGED], [w for w, _ in CHANGED])[0]
        data = changed(page, share, words[kind], rng).encode()
        if file is None or held > FILE_BYTES:
            file, held, number = (folder / f"part-{number:04d}.warc.gz").open("wb"), 0, number + 1
        file.write(record(data, count))
        held, written, count = held + len(data), written + len(data), count + 1
    assert file is not None
    file.close()
    return {"megabytes": round(written / 1e6, 1), "pages": count, "files": number}


def changed(page: str, share: float, words: list[str], rng: random.Random) -> str:
    """The page with a share of the words of its text replaced by words of its kind."""

    def word(match: re.Match[str]) -> str:
        return rng.choice(words) if rng.random() < share else match.group()

    return _TEXT.sub(lambda match: f">{_WORD.sub(word, match.group(1))}<", page) if share else page


def record(data: bytes, number: int) -> bytes:
    """One response record as a gzip member."""
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(data)
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://site{number % 997}.example.org/p/{number}\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n"
        "WARC-Identified-Payload-Type: text/html\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http) + len(data)}\r\n\r\n"
    )
    packer = zlib.compressobj(6, wbits=31)
    return packer.compress(head.encode() + http + data + b"\r\n\r\n") + packer.flush()


def commands(case: str, corpus: Path, work: Path, peer: str) -> dict[str, list[str]]:
    """What is run for a case, by side."""
    ours = [sys.executable, "-m", "sekkei", "data", "clean", str(corpus), "--out", str(work / "ours"), "--workers", "1"]
    theirs = [peer, str(ROOT / "benchmarks" / "data_peer.py"), str(corpus), str(work / "theirs")]
    if case != "default":
        extractor = "resiliparse" if case == "same" else "trafilatura"
        blocks = work / f"{case}.yaml"
        blocks.write_text(SAME.replace("EXTRACTOR", extractor), encoding="utf-8")
        ours += ["--blocks", str(blocks)]
        theirs += ["--same", extractor]
    return {"ours": ours, "theirs": theirs}


def timed(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds, and peak memory in MB, of a command and its children."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.2)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{log.read()[-3000:].decode(errors='replace')}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.monotonic() - began, 2), "cpu_s": round(cpu, 2), "peak_mb": round(peak / 1e6, 1)}


def tree_memory(pid: int) -> int:
    """Proportional set size of a process and all below it, in bytes."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        pass  # it has just ended
    return total


def kept(case_work: Path) -> dict[str, int]:
    """Documents that each side left."""
    from pyarrow import parquet

    ours = sum(parquet.ParquetFile(path).metadata.num_rows for path in (case_work / "ours").glob("documents-*.parquet"))
    return {"ours": ours, "theirs": int((case_work / "theirs" / "kept.txt").read_text())}


def compare(case: str, corpus: Path, megabytes: float, work: Path, peer: str, found: dict[str, Any]) -> None:
    """One run of each side more, and the medians of all runs so far, into `found`."""
    for side, command in commands(case, corpus, work, peer).items():
        shutil.rmtree(work / side, ignore_errors=True)
        run = timed(command)
        rows = [*found.get(side, {}).get("runs", []), run]
        print(f"{case:<12} {side:<7} {run}", flush=True)
        median = {key: statistics.median(row[key] for row in rows) for key in run}
        rates = (("mb_per_cpu_s", "cpu_s"), ("mb_per_s", "wall_s"))
        found[side] = {**median, **{key: round(megabytes / median[of], 2) for key, of in rates}, "runs": rows}
    found["kept"] = kept(work)
    found["ratio_cpu"] = round(found["ours"]["mb_per_cpu_s"] / found["theirs"]["mb_per_cpu_s"], 2)
    found["ratio_wall"] = round(found["ours"]["mb_per_s"] / found["theirs"]["mb_per_s"], 2)


def resolve_peak(documents: int) -> str:
    """Peak resident bytes that `resolve` adds, per document, of both kinds of duplicates (as JSON)."""
    found = {}
    for block in (ExactDuplicates(), NearDuplicates()):
        rng = np.random.Generator(np.random.PCG64(1))
        units = []
        folder = Path(tempfile.mkdtemp(prefix="sekkei-index-"))
        for start in range(0, documents, 10_000):
            names = ["digest"] if block.name == "exact_duplicates" else [f"band{i:02d}" for i in range(block.bands)]
            arrays = {}
            for name in names:
                path = folder / f"{start}-{name}.npy"
                np.save(path, rng.integers(0, 1 << 62, (10_000, 2 if name == "digest" else 8), dtype=np.uint64))
                arrays[name] = np.load(path, mmap_mode="r")
            order = rng.integers(0, 1 << 62, (10_000, 2), dtype=np.uint64)
            units.append(Marks(order, arrays, str))
        process = psutil.Process()
        base = process.memory_info().rss - process.memory_info().shared
        peak = _while_sampling(lambda block=block, units=units: block.resolve(units), process)
        found[block.name] = round((peak - base) / documents + 16, 1)  # and the 16 bytes of its order
        shutil.rmtree(folder)
    return json.dumps(found)


def _while_sampling(work: Any, process: psutil.Process) -> int:
    """Largest private memory while `work` runs."""
    import threading

    peak, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            info = process.memory_info()
            peak[0] = max(peak[0], info.rss - info.shared)

    thread = threading.Thread(target=look)
    thread.start()
    work()
    stop.set()
    thread.join()
    return peak[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of the environment that has datatrove")
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default="default,same,trafilatura")
    parser.add_argument("--sizes", default="12,25,50,100", help="megabytes at which our peak memory is measured")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sekkei-data-benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "data.json")
    parser.add_argument("--index", type=int, default=0, help="only the bytes that an index of so many documents takes")
    options = parser.parse_args()
    if options.index:
        print(resolve_peak(options.index))
        return
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    corpora = {}
    for size in sorted({options.megabytes, *(int(size) for size in options.sizes.split(",") if size)}):
        folder, about = work / f"pages-{size}", work / f"pages-{size}.json"
        if not about.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            about.write_text(json.dumps(make_corpus(folder, size, work)))
        corpora[size] = (folder, json.loads(about.read_text()))
    folder, about = corpora[options.megabytes]
    result: dict[str, Any] = {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {
            name: importlib.metadata.version(name) for name in ("resiliparse", "FastWARC", "numpy", "pyarrow")
        },
        "corpus": about,
        "cases": {},
    }
    if options.out.is_file() and (before := json.loads(options.out.read_text()))["corpus"] == about:
        result = {**before, "commands": before["commands"]}  # cases may be run one by one
    result.setdefault("commands", []).append(" ".join(["python", "benchmarks/data.py", *sys.argv[1:]]))

    def save() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    for _ in range(options.repeats):
        for case in filter(None, options.cases.split(",")):
            of_case = result["cases"].setdefault(case, {})
            compare(case, folder, about["megabytes"], work, options.peer, of_case)
            print(f"{case:<12} {of_case['ratio_cpu']} times their pages per CPU second", flush=True)
            save()
    for size in (int(size) for size in options.sizes.split(",") if size):
        shutil.rmtree(work / "ours", ignore_errors=True)
        memory = timed(commands("default", corpora[size][0], work, options.peer)["ours"])["peak_mb"]
        result.setdefault("peak_mb_by_corpus_mb", {})[str(size)] = memory
        print(f"memory {size} MB: {memory} MB", flush=True)
        save()
    if "index_bytes_per_document" not in result:
        alone = [sys.executable, __file__, "--peer", options.peer, "--index", "500000"]  # in a process of its own
        done = subprocess.run(alone, check=True, capture_output=True, text=True)
        result["index_bytes_per_document"] = json.loads(done.stdout)
        save()
    print(options.out)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
