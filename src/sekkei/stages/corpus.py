"""The first stages: raw pages -> clean documents -> tokenizer -> token shards.

data/        pages/ (raw HTML), cleaned/ (what is kept of it, and why), the other domains in parquet, facts.json
tokenizer/   Hugging Face layout
tokens/      one shard per domain and split
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core import config as loader
from sekkei.core.errors import UserError
from sekkei.data import corpus, pages
from sekkei.data.code import docstring_facts, read_code
from sekkei.data.recitals import recitals
from sekkei.data.shards import Writer
from sekkei.data.tasks import chain
from sekkei.recipes.imported import WORDS, folder_digest, read_imported
from sekkei.recipes.recipe import Recipe
from sekkei.stages.cleaning import block_keys, clean_pages, cleaned_documents, pages_digest
from sekkei.stages.run import Figures, Run, versions
from sekkei.text.document import Document, read_documents, write_documents
from sekkei.text.tokenizer import Tokenizer, train_tokenizer

FACTS = "facts.json"
SOURCES = "sources.json"  # digest of every folder of the user's own: what reads them again depends on it
DOCUMENTS_PER_BATCH = 256
TOKENIZER_SHARES = {"docs": 0.45, "code": 0.25, "math": 0.1, "patterns": 0.05, "chains": 0.15}
"""Of `tokenizer.train_bytes`: enough chains that their numbers and words become single tokens."""


@dataclass(frozen=True)
class DataStage:
    """Pages are rendered or read, cleaned and deduplicated; code is read, the other domains generated."""

    recipe: Recipe
    name: str = "data"
    version: int = 2
    together: bool = False
    reads: tuple[str, ...] = ()

    @property
    def config(self) -> Any:
        made_with = {**versions(), **{name: version(name) for name in ("numpy", "torch")}}
        data = {"data": loader.to_mapping(self.recipe.data), "blocks": block_keys(self.recipe.data.clean)}
        own = {"sources": self._sources} if self._sources else {}
        return {**data, "pages": self._own_pages, "made_with": made_with, **own}

    @cached_property
    def _own_pages(self) -> str | None:
        """Digest of the user's own pages, read once in a run."""
        own = self.recipe.data.pages.path
        return pages_digest(Path(own)) if own else None

    @cached_property
    def _sources(self) -> dict[str, str]:
        """Digest of every source of the user's own."""
        return {name: source.digest() for name, source in self.recipe.data.sources.items()}

    def run(self, run: Run, out: Path) -> Figures:
        config = self.recipe.data
        with ThreadPoolExecutor(1) as aside:  # pages are rendered by a process of their own: this one has a core free
            made = aside.submit(corpus.generated, config, self.recipe.seed)
            raw = self._pages(run, out)
        figures = clean_pages(config.clean, raw, out, run.console)
        own = {"docs": list(cleaned_documents(out)), "code": read_code(config.code)}
        domains = {**own, **made.result()}
        held = config.heldout_percent
        known = [doc for name in own for doc in corpus.split_documents(domains[name], held)[0]]
        domains["recitals"] = recitals(known, config.generated.recitals, self.recipe.seed)
        for name, documents in domains.items():
            if name != "docs":
                write_documents(out / f"{name}.parquet", documents)
        if self._sources:
            atomic.write_json(out / SOURCES, self._sources)
        facts = docstring_facts(config.facts)
        atomic.write_json(out / FACTS, facts)
        for name, documents in domains.items():
            figures[f"data.bytes.{name}"] = sum(len(doc.text.encode()) for doc in documents)
        figures["data.facts"] = len(facts)
        return figures

    def _pages(self, run: Run, out: Path) -> Path:
        config = self.recipe.data.pages
        if config.path is not None:
            return Path(config.path)
        folder = out / "pages"
        if not folder.is_dir():  # written as a whole, so it is complete where it exists
            with run.console.bar("data pages", 0) as bar:
                pages.render_pages(folder, config, lambda name, done, total: bar.update(done, name))
        return folder


def documents_of(data: Path, domain: str) -> list[Document]:
    """The documents of one of the house's domains, in the data stage's folder."""
    return list(cleaned_documents(data)) if domain == "docs" else read_documents(data / f"{domain}.parquet")


def read_facts(data: Path) -> list[tuple[str, str]]:
    """(name, sentence) facts of the data stage."""
    return [(name, sentence) for name, sentence in json.loads((data / FACTS).read_text(encoding="utf-8"))]


@dataclass(frozen=True)
class TokenizerStage:
    """Learns byte-level BPE merges from the training side of every domain; or takes the imported folder's."""

    recipe: Recipe
    name: str = "tokenizer"
    version: int = 1
    together: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data",) if self.recipe.imported is None else ()

    @property
    def config(self) -> Any:
        made_with = version("tokenizers")
        if self.recipe.imported is not None:
            return {"imported": folder_digest(Path(self.recipe.imported), *WORDS), "made_with": made_with}
        percent = self.recipe.data.heldout_percent
        return {"tokenizer": self.recipe.tokenizer, "heldout_percent": percent, "made_with": made_with}

    def run(self, run: Run, out: Path) -> Figures:
        folder = self.recipe.imported
        tokenizer = self._learned(run) if folder is None else read_imported(Path(folder)).tokenizer
        tokenizer.save(out)
        return {"tokenizer.vocab_size": tokenizer.vocab_size}

    def _learned(self, run: Run) -> Tokenizer:
        texts = list(self._texts(run.artifact("data")))
        with run.console.bar("tokenizer", 1) as bar:
            tokenizer = train_tokenizer(texts, self.recipe.tokenizer, whole=chain.words(self.recipe.data.chain))
            bar.update(1)
        return tokenizer

    def _texts(self, data: Path) -> Iterator[str]:
        config = self.recipe.data
        shares = {**TOKENIZER_SHARES, **{name: source.tokenizer_share for name, source in config.sources.items()}}
        for name, share in shares.items():
            train: Iterable[Document]
            if name in config.sources:
                train = corpus.stream_side(config.sources[name].documents(), config.heldout_percent, held=False)
            else:
                train, _ = corpus.split_documents(documents_of(data, name), config.heldout_percent)
            budget = share * self.recipe.tokenizer.train_bytes
            for document in train:
                if budget <= 0:
                    break
                text = document.text.encode()[: int(budget)].decode(errors="ignore")
                yield text
                budget -= len(text.encode())


@dataclass(frozen=True)
class TokensStage:
    """Documents become ids: <|bos|> text <|end|>, in one shard per domain and split."""

    recipe: Recipe
    name: str = "tokens"
    version: int = 1
    together: bool = False
    reads: tuple[str, ...] = ("data", "tokenizer")

    @property
    def config(self) -> Any:
        told = {"specials": sorted(self._trusted() - corpus.TRUSTED)}
        return {"heldout_percent": self.recipe.data.heldout_percent, **(told if told["specials"] else {})}

    def _trusted(self) -> frozenset[str]:
        """Domains whose special tokens are special."""
        return corpus.TRUSTED | {name for name, source in self.recipe.data.sources.items() if source.specials}

    def run(self, run: Run, out: Path) -> Figures:
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        config = self.recipe.data
        ratio: Figures = {}
        with run.console.bar("tokens", len(config.domains)) as bar, atomic.new_folder(out / "shards") as folder:
            writer = Writer(folder, tokenizer.vocab_size)
            for number, name in enumerate(config.domains, start=1):
                for split, side in self._sides(run.artifact("data"), name).items():
                    size = Size()
                    trusted = name in self._trusted()
                    writer.write(f"{name}.{split}", encode_documents(tokenizer, size.of(side), trusted))
                    tokens = writer.tokens[f"{name}.{split}"] - 2 * size.documents
                    if tokens < 1:
                        raise UserError(f"data.sources.{name}: no document is left for {split}: it needs more of them")
                    ratio[f"tokenizer.bytes_per_token.{name}"] = size.bytes / tokens  # held out comes last
                bar.update(number, name)
            writer.close()
        counts = {f"tokens.{name}": count for name, count in writer.tokens.items() if name.endswith(".train")}
        return {**counts, **ratio}

    def _sides(self, data: Path, name: str) -> dict[str, Iterable[Document]]:
        """Documents of both sides of a domain; a source's are streamed."""
        percent = self.recipe.data.heldout_percent
        source = self.recipe.data.sources.get(name)
        if source is None:
            train, held = corpus.split_documents(documents_of(data, name), percent)
            return {"train": train, "heldout": held}
        return {
            split: corpus.stream_side(source.documents(), percent, split == "heldout") for split in ("train", "heldout")
        }


class Size:
    """Counts documents and bytes of text that pass by."""

    def __init__(self) -> None:
        self.documents = self.bytes = 0

    def of(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self.documents += 1
            self.bytes += len(document.text.encode())
            yield document


def encode_documents(tokenizer: Tokenizer, documents: Iterable[Document], trusted: bool) -> Iterator[list[int]]:
    """Ids of documents with their first and last token; special tokens in untrusted text stay text."""
    source = iter(documents)
    while texts := [document.text for document in islice(source, DOCUMENTS_PER_BATCH)]:
        for ids in tokenizer.encode_many(texts, trusted):
            yield [tokenizer.bos_id, *ids, tokenizer.end_id]


def splits_of(shards: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The shards of one split, by domain."""
    return {name.removesuffix(f".{split}"): shard for name, shard in shards.items() if name.endswith(f".{split}")}
