"""Several tasks on one model: what can be asked of it, one after the other, each finished task kept at once.

    subject + tasks ──check──> each: read items, ask, score, look for overlap ──> Outcome ──> parts/TASK-KEY.json

A part is written when its task is finished, under a key of everything that it depends on (task, digest of its file,
the model's name with the hash of its weights, the settings), so the same command after a cut takes what is there.
Replies themselves are cached by `llm/cache.py` in the same folder, so a task that was cut off asks only for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.config import read_yaml, to_mapping
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.progress import Console
from sekkei.evals import chains, choice, code, heldout, instructions, legacy, maths, needle, overlap
from sekkei.evals.items import chosen
from sekkei.evals.local import LocalBackend, LocalModel
from sekkei.evals.outcome import Outcome, figures, from_json, mean
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings
from sekkei.objectives.conversations import HUB

FORMAT = 1  # of parts and results
TASKS = {
    "bpb": "held-out bits per byte per domain, of the run's own data or of a text file",
    "maths": "problems in GSM8K's format",
    "choice": "multiple choice by log-likelihood",
    "ifeval": "checkable instructions in IFEval's format",
    "code": "programs with tests, in HumanEval's or MBPP's format",
    "needle": "a needle in a haystack over length and depth, in a passage of our own or a text file",
    "chain": "the reasoning task of our own models: thinking, direct, on a budget",
    "legacy": "BLEU, chrF, ROUGE against references, for comparison",
}
NEEDS_FILE = ("maths", "choice", "ifeval", "code", "legacy")
GENERATED = ("needle", "chain")
ENDPOINT_LENGTHS = (512, 1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of `TASKS`, and its file where it has one."""

    name: str
    file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """How tasks are asked.

    Args:
        samples: replies per item. temperature: None: 0 for one sample, 0.8 for several. top_p, max_tokens, thinking:
            as llm/protocol.py. ks: of pass@k. limit: items of a task, drawn by the seed; None: all.
        prompt: template with {question} for maths and choice, "" = their own.
        tokens, context: of bpb, per domain and per window (0 = the model's own). lengths, depths, trials: of the needle
            (lengths empty: powers of two up to the model's context). problems, budgets: of the chain task.
    """

    samples: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int = 512
    thinking: bool = True
    seed: int = 0
    ks: tuple[int, ...] = (1,)
    limit: int | None = None
    prompt: str = ""
    tokens: int = 60_000
    context: int = 0
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    trials: int = 8
    problems: int = 128
    budgets: tuple[int, ...] = chains.BUDGETS

    def __post_init__(self) -> None:
        for key in ("samples", "max_tokens", "tokens", "trials", "problems"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError("limit", f"got {self.limit}, must be >= 1")
        if not self.ks or not all(1 <= k <= self.samples for k in self.ks):
            raise ConfigError("ks", f"got {list(self.ks)}, must be from 1 to samples={self.samples}")

    def settings(self, samples: int) -> Settings:
        """Of sampling, for a task that takes so many samples."""
        temperature = self.temperature if self.temperature is not None else 0.8 if samples > 1 else 0.0
        return Settings(
            temperature=temperature, top_p=self.top_p, max_tokens=self.max_tokens, seed=self.seed, n=samples,
            thinking=self.thinking,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Who is measured: something that answers, and the model behind it where it is on this machine."""

    llm: LLM
    local: LocalModel | None = None
    backend: LocalBackend | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> bool:
        """It only continues text."""
        return self.local is not None and self.local.chat is None


def parse_tasks(text: str) -> list[Task]:
    """Tasks of "bpb,maths:FILE,…".

    Raises:
        UserError: an unknown task, a missing or needless file, a task twice.
    """
    tasks = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, place = part.partition(":")
        if name not in TASKS:
            raise UserError(f"--tasks {part}: no such task; known: {', '.join(TASKS)}")
        file = Path(place) if place else None
        if file is None and name in NEEDS_FILE:
            raise UserError(f"--tasks {name}: needs a file of {TASKS[name]}, as {name}:FILE")
        if file is not None and name == "chain":
            raise UserError("--tasks chain: takes no file; its problems are generated")
        if file is not None and not file.is_file():
            raise UserError(f"--tasks {part}: {file} is no file")
        tasks.append(Task(name=name, file=file))
    if not tasks:
        raise UserError(f"--tasks names nothing; known: {', '.join(TASKS)}")
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--tasks: {twice} stands there twice; measure one file at a time")
    return tasks


def check_tasks(tasks: Sequence[Task], subject: Subject) -> None:
    """Refuse what this subject cannot do, before anything is asked.

    Raises:
        UserError: names the task, what it needs, and the remedy.
    """
    for task in tasks:
        if task.name == "bpb" and subject.local is None:
            raise UserError(f"bpb: needs the model itself, {subject.llm.name} only writes; name its folder")
        if task.name == "choice" and not subject.llm.capabilities.loglikelihood:
            raise UserError(
                f"choice: needs log-likelihoods, {subject.llm.name} only writes; name the model's folder, or run "
                "lm-eval through /v1/completions (docs/evaluation.md)"
            )
        if task.name == "chain" and (subject.local is None or subject.local.own is None or subject.base):
            raise UserError("chain: needs an aligned model of a sekkei run (its own tokenizer and chat template)")


def measure(
    subject: Subject,
    tasks: Sequence[Task],
    config: SuiteConfig,
    work: Path | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """All tasks in order.

    Args:
        work: folder of finished parts; None keeps none.
    Raises:
        UserError: as `check_tasks`, a file's mistake, or an endpoint's.
    """
    console = console or Console(silent=True)
    check_tasks(tasks, subject)
    found = []
    for task in tasks:
        part = work / f"{task.name}-{_key(task, subject, config)}.json" if work is not None else None
        if part is not None and part.is_file():
            console.say(f"{task.name}: already measured, {part}")
            found.append(from_json(json.loads(part.read_text(encoding="utf-8"))))
            continue
        outcome = _run(task, subject, config, console)
        if subject.local is not None and subject.local.run_dir is not None and task.name not in GENERATED:
            console.say(f"{task.name}: looking for its items in the training data, all of which is read")
        outcome = with_overlap(outcome, subject)
        if part is not None:
            atomic.write_json(part, outcome.as_json())
        found.append(outcome)
    return found


def results(
    subject: Subject, tasks: Sequence[Task], config: SuiteConfig, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Everything as plain JSON values, for the result file."""
    files = [
        {"file": str(task.file), "sha256": atomic.sha256(task.file)} if task.file is not None else {} for task in tasks
    ]
    return {
        "format": FORMAT,
        "model": {"name": subject.llm.name, **subject.about},
        "config": to_mapping(config),
        "figures": figures(outcomes),
        "tasks": [outcome.as_json() | file for outcome, file in zip(outcomes, files)],
    }


def _key(task: Task, subject: Subject, config: SuiteConfig) -> str:
    digest = atomic.sha256(task.file) if task.file is not None else ""
    return atomic.sha256_json([FORMAT, task.name, digest, subject.llm.name, to_mapping(config)])[:16]


def _run(task: Task, subject: Subject, config: SuiteConfig, console: Console) -> Outcome:
    llm, many, one = subject.llm, config.settings(config.samples), config.settings(1)
    if task.name == "bpb":
        return _bits(task, subject, config, console)
    if task.name == "needle":
        return _needle(task, subject, config, console)
    if task.name == "chain":
        return _chain(subject, config, console)
    assert task.file is not None
    templates = {"prompt": config.prompt} if config.prompt else {}
    asked: dict[str, tuple[Callable[[Path], list[Any]], Callable[[list[Any], Callable[[int], None]], Outcome]]] = {
        "maths": (
            maths.read_problems,
            lambda items, tell: maths.evaluate_maths(llm, items, many, ks=config.ks, progress=tell, **templates),
        ),
        "choice": (
            choice.read_choices,
            lambda items, tell: choice.evaluate_choices(llm, items, one, progress=tell, **templates),
        ),
        "ifeval": (
            instructions.read_instructed,
            lambda items, tell: instructions.evaluate_instructions(llm, items, one, tell),
        ),
        "code": (
            code.read_exercises,
            lambda items, tell: code.evaluate_code(llm, items, many, base=subject.base, ks=config.ks, progress=tell),
        ),
        "legacy": (legacy.read_referenced, lambda items, tell: legacy.evaluate_legacy(llm, items, one, tell)),
    }
    read, evaluate = asked[task.name]
    items = chosen(read(task.file), config.limit, config.seed)
    steps = 2 if task.name == "code" else 1
    with console.bar(task.name, steps * len(items)) as bar:
        return evaluate(items, bar.update)


def _bits(task: Task, subject: Subject, config: SuiteConfig, console: Console) -> Outcome:
    assert subject.local is not None
    if task.file is None:
        documents = heldout.heldout_documents(subject.local, config.tokens, config.seed)
    else:
        documents = heldout.text_documents(subject.local, task.file, config.tokens)
    with console.bar("bpb", sum(map(len, documents.values()))) as bar:
        return heldout.evaluate_bits(subject.local, documents, config.context or None, config.seed, bar.update)


def _needle(task: Task, subject: Subject, config: SuiteConfig, console: Console) -> Outcome:
    local, most = subject.local, subject.llm.capabilities.max_context
    lengths = config.lengths
    if not lengths and most is not None:
        lengths = (*(2**power for power in range(6, most.bit_length()) if 2**power < most), most)[-5:]
    grid = needle.NeedleConfig(lengths=lengths or ENDPOINT_LENGTHS, depths=config.depths, trials=config.trials)
    hay = heldout.read_text(task.file) if task.file is not None else ""
    settings = config.settings(1)
    count = None
    if local is not None:

        def count(text: str) -> int:
            return len(local.prompt([{"role": "user", "content": text}], settings.thinking))

    total = len(grid.lengths) * len(grid.depths) * grid.trials
    with console.bar("needle", total) as bar:
        return needle.evaluate_needle(subject.llm, grid, settings, count, hay, bar.update)


def _chain(subject: Subject, config: SuiteConfig, console: Console) -> Outcome:
    assert subject.local is not None
    assert subject.local.own is not None
    assert subject.backend is not None
    with console.bar("chain", 1) as bar:
        outcome = chains.evaluate_chain(
            subject.backend.engine,
            subject.local.own,
            chains.chains_of(subject.local.run_dir),
            problems=config.problems,
            max_tokens=min(config.max_tokens, 128),
            budgets=config.budgets,
            seed=config.seed,
        )
        bar.update(1)
    return outcome


def _training_data(local: LocalModel) -> tuple[Iterator[str], str]:
    """What a run's model was trained on, as far as it is at hand, and what that is.

    Raises:
        UserError: the run's pretraining documents, or a file of the user's own, are not there any more.
    """
    assert local.run_dir is not None
    files, recipe = heldout.tuning_files(local), read_yaml(local.run_dir / "recipe.yaml")
    here = [path for path in files if not path.startswith(HUB)]
    documents = chain(heldout.training_texts(local), *(heldout.file_texts(path) for path in here))
    told = ", ".join([f"{local.run_dir}: pretraining documents", *here])
    unseen = [path for path in files if path not in here]
    unseen += ["what the imported checkpoint was trained on"] if recipe.get("imported") else []
    return documents, told + (f" (not searched: {', '.join(unseen)})" if unseen else "")


def with_overlap(outcome: Outcome, subject: Subject) -> Outcome:
    """The outcome with what of its items stands in the training data, and its figures without those items."""
    if outcome.task in GENERATED:
        return replace(outcome, overlap={"overlap": "none by construction", "why": "the items are generated"})
    if subject.local is None or subject.local.run_dir is None:
        return replace(outcome, overlap=overlap.unknown("the training data of this model are not at hand"))
    try:
        found = overlap.overlap(outcome.texts, *_training_data(subject.local))
    except UserError as error:
        return replace(outcome, overlap=overlap.unknown(str(error)))
    places = set(found["places"])
    if 0 < len(places) < outcome.items:
        clean = {
            name: [score for place, score in enumerate(scores) if place not in places]
            for name, scores in outcome.scores.items()
        }
        found["figures_without"] = {name: to_mapping(mean(scores)) for name, scores in clean.items()}
    return replace(outcome, overlap=found)
