"""The text that a model reads before it is taught anything: domains, each split into train and held out.

    docs      cleaned pages                      (pages.py -> text/pipeline)
    code      source of the standard library     (code.py)
    math      generated problems with solutions  (tasks/maths.py)
    patterns  symbol mappings, learnable only from context (tasks/patterns.py)
    recitals  passages of the training side of docs and code, said again (recitals.py)
    chains    solved chain arithmetic in the think format, without roles, and its tables (tasks/chain.py)

and, by name, sources of the user's own: folders that `sekkei data clean` wrote (sources.py). They are streamed.

Documents fall on one side of the split by a hash of their id. Generated chains of the held-out side of
the *task's* own split never appear here at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.code import CodeConfig
from sekkei.data.pages import PagesConfig
from sekkei.data.sources import SourceConfig
from sekkei.data.tasks import chain, held_out, maths, patterns
from sekkei.data.tasks.calculator import CalculatorConfig
from sekkei.data.tasks.chain import ChainConfig
from sekkei.data.tasks.patterns import PatternConfig
from sekkei.text.document import Document
from sekkei.text.pipeline import declare
from sekkei.text.read.files import Read

DOMAINS = ("docs", "code", "math", "patterns", "recitals", "chains")
TABLE_SHARE, TABLE_FACTS = 0.3, 32  # tables are five times as long: two thirds of the domain's tokens
TRUSTED = frozenset({"chains"})  # domains whose special tokens are special
PAGE_BLOCKS: tuple[Any, ...] = (
    {"extract": {"skip_elements": ["td.extra", "td.multicolumn"]}},  # pydoc's tables of links
    {"language": {"keep": ["en"], "min_probability": 0.5}},
    "reference",
    "exact_duplicates",
    "near_duplicates",
)
"""For pages of reference: signatures and tables are no fault, and C4's rules about lines would take most of them."""


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """How pages become the domain `docs`: the blocks of `sekkei data clean`, in their order.

    Args:
        read: how files become pages. blocks: names, or names with parameters (`sekkei data blocks` lists all).
    """

    read: Read = field(default_factory=lambda: Read(source="pages"))
    blocks: tuple[Any, ...] = PAGE_BLOCKS

    def __post_init__(self) -> None:
        declare.parse(self.blocks)


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """How many documents of each generated domain."""

    math: int = 20_000
    patterns: int = 10_000
    recitals: int = 15_000
    chains: int = 30_000

    def __post_init__(self) -> None:
        for key in ("math", "patterns", "recitals", "chains"):
            if getattr(self, key) < 10:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 10: one in some dozens is held out")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Everything that becomes training text. `heldout_percent` of the documents of each domain are held out.

    `sources` are domains of the user's own, by the name that mixtures use.
    """

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    pages: PagesConfig = field(default_factory=PagesConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)
    code: CodeConfig = field(default_factory=CodeConfig)
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    patterns: PatternConfig = field(default_factory=PatternConfig)
    calculator: CalculatorConfig = field(default_factory=CalculatorConfig)
    facts: int = 2_000
    heldout_percent: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.heldout_percent <= 50:
            raise ConfigError("heldout_percent", f"got {self.heldout_percent}, must be between 1 and 50")
        if self.facts < 1:
            raise ConfigError("facts", f"got {self.facts}, must be >= 1")
        for name in self.sources:
            if not name.isidentifier():
                raise ConfigError(f"sources.{name}", "is no name: letters, digits and _ only")
            if name in DOMAINS:
                raise ConfigError(f"sources.{name}", f"is a domain of the house; those are {', '.join(DOMAINS)}")

    @property
    def domains(self) -> tuple[str, ...]:
        """Names that a mixture may use: the house's, then the user's."""
        return (*DOMAINS, *self.sources)


def generated(config: DataConfig, seed: int) -> dict[str, list[Document]]:
    """The documents of the generated domains."""
    makers: dict[str, Callable[[random.Random], str]] = {
        "math": maths.maths_document,
        "patterns": lambda rng: patterns.pattern_document(rng, config.patterns),
        "chains": lambda rng: chain_document(rng, config.chain),
    }
    domains = {}
    for name, make in makers.items():
        count = getattr(config.generated, name)
        texts = [make(random.Random(derive_seed("generated", name, seed, i))) for i in range(count)]
        unique = dict.fromkeys(texts)  # a text that came twice must not stand on both sides of the split
        domains[name] = [Document(id=f"{name}/{i}", text=text, source=name, lang="en") for i, text in enumerate(unique)]
    return domains


def chain_document(rng: random.Random, config: ChainConfig) -> str:
    """A solved chain in the think format, every style equally frequent, no roles; or a table of single facts."""
    if rng.random() < TABLE_SHARE:
        return chain.table(rng, config, TABLE_FACTS)
    problem = chain.sample_problem(rng, rng.choice(config.train_operations), "train", config)
    _, thought, answer = chain.solved(problem, rng.choice(chain.STYLES))
    return f"{chain.opening(problem)}{thought}</think>{answer}"


def split_documents(documents: Sequence[Document], percent: int) -> tuple[list[Document], list[Document]]:
    """(train, held out) by a hash of the text; where chance left a side empty, one document goes over.

    Raises:
        ConfigError: fewer than two documents.
    """
    if len(documents) < 2:
        raise ConfigError("data", f"{len(documents)} documents are left of a domain: it needs 2, one of them held out")
    held = [doc for doc in documents if held_out("document", doc.text, percent)]
    train = [doc for doc in documents if not held_out("document", doc.text, percent)]
    if not held:
        held = [train.pop()]
    if not train:
        train = [held.pop()]
    return train, held


def stream_side(documents: Iterable[Document], percent: int, held: bool) -> Iterator[Document]:
    """The documents of one side of the split, one by one; the same sides as `split_documents`, no side filled up."""
    return (document for document in documents if held_out("document", document.text, percent) == held)
