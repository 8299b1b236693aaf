"""The other side of benchmarks/data.py: datatrove's FineWeb pipeline on one core. Runs in an environment of its own.

    python benchmarks/data_peer.py WARCS OUT [--same resiliparse|trafilatura]

Without --same it is their published FineWeb example (examples/fineweb.py) with its defaults, less the language filter,
whose model is a download, and less the writers of excluded documents. With it the rules are those that ours has in this
row: words parted at spaces, lines without a full stop kept, language by py3langid, and one extractor for both.
OUT/kept.txt holds how many documents are left.
"""

from __future__ import annotations

import argparse
import gzip
import re
from pathlib import Path

import resiliparse.extract.html2text  # noqa: F401  # before the extractor's child is forked, so that it need not
import trafilatura  # noqa: F401
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import BaseExtractor
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LambdaFilter,
    URLFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

SECONDS = 30  # for a page; their second is not enough on a machine whose cores are shared, and every page is lost
SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")


class Spaces(WordTokenizer):
    """Words as what spaces part, sentences as what full stops end."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return SENTENCE_END.split(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in SENTENCE_END.finditer(text)]


class Resiliparse(BaseExtractor):
    """The call that ours makes."""

    name = "resiliparse"

    def __init__(self) -> None:
        super().__init__(timeout=SECONDS)

    def extract(self, text: str) -> str:
        from resiliparse.extract.html2text import extract_plain_text

        return extract_plain_text(text, preserve_formatting=True, main_content=True, alt_texts=False, links=False)


def in_language(minimum: float) -> LambdaFilter:
    """py3langid on the beginning, as ours asks it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return LambdaFilter(lambda document: model.classify(document.text[:2048])[1] >= minimum)


def filters(same: str) -> list:
    """From pages to the texts that deduplication sees."""
    if not same:
        return [
            URLFilter(),
            Trafilatura(favour_precision=True, timeout=SECONDS),
            GopherRepetitionFilter(),
            GopherQualityFilter(),
            C4QualityFilter(filter_no_terminal_punct=False),
            FineWebQualityFilter(),
        ]
    words = Spaces()
    precise = Trafilatura(favour_precision=True, timeout=SECONDS, deduplicate=False)
    extractor = Resiliparse() if same == "resiliparse" else precise
    return [
        extractor,
        in_language(0.65),
        GopherRepetitionFilter(language=words),
        GopherQualityFilter(language=words),
        C4QualityFilter(filter_no_terminal_punct=False, language=words),
        FineWebQualityFilter(language=words),
    ]


def run(*steps: object, logs: Path) -> None:
    LocalPipelineExecutor(pipeline=list(steps), tasks=1, workers=1, logging_dir=str(logs)).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("warcs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--same", choices=("resiliparse", "trafilatura"), default="")
    options = parser.parse_args()
    folders = {name: str(options.out / name) for name in ("texts", "signatures", "buckets", "remove", "kept")}
    logs = options.out / "logs"
    config = MinhashConfig(hash_config=HashConfig(hash_fc="xxhash", precision=64), num_buckets=14, hashes_per_bucket=8)
    language = {"language": Spaces()} if options.same else {}
    run(
        WarcReader(options.warcs, glob_pattern="*.warc.gz"),
        *filters(options.same),
        JsonlWriter(folders["texts"]),
        logs=logs / "1",
    )
    signature = MinhashDedupSignature(output_folder=folders["signatures"], config=config, **language)
    run(JsonlReader(folders["texts"]), signature, logs=logs / "2")
    buckets = MinhashDedupBuckets(input_folder=folders["signatures"], output_folder=folders["buckets"], config=config)
    LocalPipelineExecutor(pipeline=[buckets], tasks=14, workers=1, logging_dir=str(logs / "3")).run()
    cluster = MinhashDedupCluster(input_folder=folders["buckets"], output_folder=folders["remove"], config=config)
    run(cluster, logs=logs / "4")
    run(
        JsonlReader(folders["texts"]),
        MinhashDedupFilter(input_folder=folders["remove"]),
        PIIFormatter(),
        JsonlWriter(folders["kept"]),
        logs=logs / "5",
    )
    kept = 0
    for path in (options.out / "kept").rglob("*.jsonl.gz"):
        with gzip.open(path) as file:
            kept += sum(1 for _ in file)
    (options.out / "kept.txt").write_text(f"{kept}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
