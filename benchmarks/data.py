"""Cleaning beside datatrove: megabytes of pages per second of one core, and memory, on the same web archives.

    python benchmarks/data.py --prepare         the corpora alone, so that a measured run begins at once
    python benchmarks/data.py --peer /tmp/dtenv/bin/python [--megabytes 50] [--cases default:1,same:3] [--sizes 12,25]

The peer lives in an environment of its own: pip install 'datatrove==0.10.1' 'xxhash<4' resiliparse py3langid
trafilatura lxml_html_clean warcio faust-cchardet python-magic spacy nltk tokenizers pyahocorasick fasteners tldextract
ftfy regex.
Pages are made of real ones (../shared/data/warc, and what pydoc renders): each is a real page whose words are replaced,
a share of them, by others of its kind, so that there are new pages, near copies of every degree, and exact copies.
`same:3` asks for three runs of each side. What the result file has of the same corpus counts, and it is written after
every run: cases and sizes may be measured one by one, and a run that was cut off goes on. `--fresh` forgets what the
file has of the cases and sizes that are asked for. Memory asks for no quiet machine, so it may be measured apart:

    python benchmarks/data.py --cases ''                                      memory alone
    python benchmarks/data.py --peer … --sizes '' --fresh                     speed alone

    default     ours: the default blocks          theirs: the FineWeb pipeline (trafilatura, URL, Gopher, C4, FineWeb,
                                                  MinHash, PII), language left out (its model is a download)
    same        both: resiliparse by one call, py3langid, Gopher, C4, FineWeb, MinHash 14 × 8, e-mail and IP;
                words parted at spaces
    trafilatura the same rules behind trafilatura on both sides (`favor_precision`, no duplicates filter)

One process works at a time (datatrove's extractor works in a child while its parent waits). Runs alternate. CPU seconds
(user + system, of all processes) are what a core is busy for: other people's load changes the wall clock, not them.
Memory is private pages and a share of shared ones (PSS), looked at every 200 ms: the largest sum over the process tree
(`peak_mb`) and the largest single process (`peak_process_mb`). Ours is measured at every size of `--sizes`, by one
process for every case, and with two at the largest size; `documents` is how many the index of near duplicates held.
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
import shlex
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
from sekkei.data.pages import PagesConfig, render_pages
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
    pages = [path.read_bytes() for path in sorted(folder.iterdir())]
    manual = [data.decode("utf-8", "replace") for data in pages if 4_000 < len(data) < 200_000]
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


def commands(case: str, corpus: Path, work: Path, peer: str, workers: int = 1) -> dict[str, list[str]]:
    """What is run for a case, by side."""
    ours = [sys.executable, "-m", "sekkei", "data", "clean", str(corpus), "--out", str(work / "ours")]
    ours += ["--workers", str(workers)]
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
        peak = largest = 0
        while process.poll() is None:
            sizes = tree_memory(process.pid)
            peak, largest = max(peak, sum(sizes)), max(largest, *sizes, 0)
            time.sleep(0.2)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{log.read()[-3000:].decode(errors='replace')}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"wall_s": time.monotonic() - began, "cpu_s": cpu, "peak_mb": peak / 1e6, "peak_process_mb": largest / 1e6}
    return {key: round(value, 2 if key.endswith("_s") else 1) for key, value in found.items()}


def tree_memory(pid: int) -> list[int]:
    """Proportional set size of a process and of all below it, in bytes."""
    found = []
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            found.append(process.memory_full_info().pss)
    except psutil.Error:
        pass  # it has just ended
    return found


def kept(side: str, folder: Path) -> int:
    """Documents that a side left."""
    if side == "theirs":
        return int((folder / "kept.txt").read_text())
    return int(json.loads((folder / "summary.json").read_text())["documents"])


def measure(case: str, side: str, corpus: Path, megabytes: float, work: Path, peer: str, found: dict[str, Any]) -> None:
    """One run more of one side, and the medians of all its runs, into `found`."""
    shutil.rmtree(work / side, ignore_errors=True)
    run = timed(commands(case, corpus, work, peer)[side])
    print(f"{case:<12} {side:<7} {run}", flush=True)
    rows = [*found.get(side, {}).get("runs", []), run]
    median = {key: statistics.median(row[key] for row in rows) for key in run}
    rates = (("mb_per_cpu_s", "cpu_s"), ("mb_per_s", "wall_s"))
    found[side] = {**median, **{key: round(megabytes / median[of], 2) for key, of in rates}, "runs": rows}
    found.setdefault("kept", {})[side] = kept(side, work / side)
    if "ours" in found and "theirs" in found:
        found["ratio_cpu"] = round(found["ours"]["mb_per_cpu_s"] / found["theirs"]["mb_per_cpu_s"], 2)
        found["ratio_wall"] = round(found["ours"]["mb_per_s"] / found["theirs"]["mb_per_s"], 2)
        print(f"{case:<12} {found['ratio_cpu']} times their pages per CPU second", flush=True)


def memory_of(case: str, corpus: Path, work: Path, workers: int) -> dict[str, Any]:
    """Our peak memory over one corpus, and how many documents its index of near duplicates held."""
    shutil.rmtree(work / "ours", ignore_errors=True)
    run = timed(commands(case, corpus, work, "", workers)["ours"])
    blocks = {block["block"]: block for block in json.loads((work / "ours" / "summary.json").read_text())["blocks"]}
    about = {"pages": blocks["extract"]["in"], "documents": blocks["near_duplicates"]["in"]}
    return {**{key: run[key] for key in ("peak_mb", "peak_process_mb", "cpu_s")}, **about}


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
    parser.add_argument("--peer", default="", help="python of the environment that has datatrove")
    parser.add_argument("--megabytes", type=int, default=50, help="of the corpus that both sides clean")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, where a case does not say")
    parser.add_argument("--cases", default="default:1,same:3", help="default, same, trafilatura; CASE:RUNS")
    parser.add_argument("--sizes", default="12,25,50,100", help="megabytes at which our peak memory is measured")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sekkei-data-benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "data.json")
    parser.add_argument("--fresh", action="store_true", help="forget what the result file has of these cases and sizes")
    parser.add_argument("--prepare", action="store_true", help="only write the corpora")
    parser.add_argument("--index", type=int, default=0, help="only the bytes that an index of so many documents takes")
    options = parser.parse_args()
    if options.index:
        print(resolve_peak(options.index))
        return
    cases = {
        name: int(count or options.repeats)
        for name, _, count in (item.partition(":") for item in options.cases.split(",") if item)
    }
    sizes = [int(size) for size in options.sizes.split(",") if size]
    if cases and not options.peer and not options.prepare:
        parser.error("--cases needs --peer; --cases '' measures our memory alone")
    corpora = {size: prepared(size, options.work) for size in sorted({options.megabytes, *sizes})}
    if options.prepare:
        return
    about = corpora[options.megabytes][1]
    result = begun(options.out, about)
    result["commands"].append(shlex.join(["python", "benchmarks/data.py", *sys.argv[1:]]))
    if options.fresh:
        result["cases"] = {name: found for name, found in result["cases"].items() if name not in cases}
        result["memory"] = [row for row in result["memory"] if row["megabytes"] not in sizes]

    def save() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    for number in range(max(cases.values(), default=0)):
        for case in (name for name, count in cases.items() if number < count):
            found = result["cases"].setdefault(case, {})
            for side in ("ours", "theirs"):
                if len(found.get(side, {}).get("runs", [])) <= number:
                    folder = corpora[options.megabytes][0]
                    measure(case, side, folder, about["megabytes"], options.work, options.peer, found)
                    save()
    rows = [(case, size, 1) for case in cases or ("default", "same") for size in sizes]
    for case, size, workers in [*rows, *(("default", size, 2) for size in sizes[-1:])]:
        key = {"case": case, "megabytes": size, "processes": workers}
        if not any(key.items() <= row.items() for row in result["memory"]):
            result["memory"].append({**key, **memory_of(case, corpora[size][0], options.work, workers)})
            print(f"memory       {result['memory'][-1]}", flush=True)
            save()
    if "index_bytes_per_document" not in result:
        alone = [sys.executable, __file__, "--index", "500000"]  # in a process of its own
        done = subprocess.run(alone, check=True, capture_output=True, text=True)
        result["index_bytes_per_document"] = json.loads(done.stdout)
        save()
    print(options.out)


def prepared(size: int, work: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of a corpus, which is written where it is not there yet, and what is in it."""
    work.mkdir(parents=True, exist_ok=True)
    folder, about = work / f"pages-{size}", work / f"pages-{size}.json"
    if not about.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        about.write_text(json.dumps(make_corpus(folder, size, work)))
    return folder, json.loads(about.read_text())


def begun(path: Path, corpus: dict[str, Any]) -> dict[str, Any]:
    """What the result file has of this corpus, or an empty result."""
    result: dict[str, Any] = {"corpus": corpus, "cases": {}, "memory": [], "commands": []}
    if path.is_file() and (before := json.loads(path.read_text()))["corpus"] == corpus:
        result.update({key: before[key] for key in (*result, "versions", "index_bytes_per_document") if key in before})
    names = ("resiliparse", "FastWARC", "numpy", "pyarrow")
    result["machine"] = {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()}
    result["versions"] = {**result.get("versions", {}), **{name: importlib.metadata.version(name) for name in names}}
    return result


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
