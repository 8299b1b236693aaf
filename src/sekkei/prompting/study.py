"""Inference-time study: one trained model, one set of problems, every strategy; accuracy against tokens spent.

    llm = LLM(open_run(folder, "sft"))
    rows = chain_study(llm, ChainConfig(), StudyConfig())     direct and chains of thought with 0, 1, 2, 4, 8 examples,
    figures(rows), table(rows), picture.study_svg(rows)       self-consistency k = 1, 4, 16, best-of-n, Tree of Thoughts

`measure` is the part that knows no task: named strategies over questions with a check each. All problems of a strategy
are under way at once, so that our engine decodes them in one batch. Every row has the four figures of its candidates
(tot.final_figures): any right (an oracle chooses: pass@k with k = all), the best ranked, the majority, a random one;
and `accuracy`, which is what the strategy answered. Intervals are Wilson's at 95% over problems. Tokens are means per
problem, read and written, as the backend counts them; a cached prefix is counted as if it were read anew.

It does not compare models, and it holds no reward model: one is handed in as a `Scorer` (scorers.reward).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal, get_args

from sekkei.core.errors import ConfigError
from sekkei.core.progress import Bar
from sekkei.core.seed import derive_seed
from sekkei.data.tasks import chain as data
from sekkei.llm.face import LLM, wait_for
from sekkei.llm.protocol import LLMError, Settings
from sekkei.prompting import scorers
from sekkei.prompting.best_of_n import BestOfN, Scorer
from sekkei.prompting.cot import ChainOfThought, Place
from sekkei.prompting.few_shot import Example, FewShot
from sekkei.prompting.self_consistency import SelfConsistency
from sekkei.prompting.solution import Solution, Strategy
from sekkei.prompting.tasks.chain import ChainTask, check, read_answer
from sekkei.prompting.thoughts import Likely, Sample
from sekkei.prompting.tot import SearchConfig, TreeOfThoughts, final_figures
from sekkei.tools.statistics import wilson

Family = Literal["direct", "cot", "self-consistency", "best-of-n", "tot"]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """How much is studied.

    Args:
        problems: how many. operations: their length. shots: numbers of examples, for direct and cot alike.
        places: where examples stand (cot.ChainOfThought); the first is that of the direct rows.
        samples: k of self-consistency. best_of: n. beam, candidates: of ToT (bfs); dfs has the same candidates.
        temperature: of all that is sampled; 1 = the model as it was trained. max_tokens: of a reply.
        pool: examples to choose from, drawn from the training side. seed: of everything.
    """

    problems: int = 64
    operations: int = 6
    shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    places: tuple[Place, ...] = ("turns", "user")
    samples: tuple[int, ...] = (1, 4, 16)
    best_of: int = 16
    beam: int = 5
    candidates: int = 8
    temperature: float = 1.0
    max_tokens: int = 128
    pool: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("problems", "operations", "best_of", "beam", "candidates", "max_tokens", "pool"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if not self.shots or min(self.shots) < 0 or max(self.shots) > self.pool:
            raise ConfigError("shots", f"got {list(self.shots)}, must list numbers from 0 to pool={self.pool}")
        if not self.places or len(set(self.places)) < len(self.places):
            raise ConfigError("places", f"got {list(self.places)}, must list some of {', '.join(get_args(Place))} once")
        if not self.samples or min(self.samples) < 1:
            raise ConfigError("samples", f"got {list(self.samples)}, must list numbers >= 1")
        if self.temperature <= 0:
            raise ConfigError("temperature", f"got {self.temperature}, must be > 0: equal samples say nothing")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy over all problems; shares are 0 … 1, tokens and calls are means per problem.

    Args:
        key: for figures. name: for people. family: for curves.
        answered: share of problems with any answer. any_of, top1, majority, mean: see tot.FinalFigures.
    """

    key: str
    name: str
    family: Family
    problems: int
    accuracy: float
    low: float
    high: float
    answered: float
    calls: float
    prompt_tokens: float
    completion_tokens: float
    any_of: float
    top1: float
    majority: float
    mean: float

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Entry:
    """A strategy with its names."""

    key: str
    family: Family
    strategy: Strategy
    name: str = ""


def measure(
    llm: LLM,
    entries: Sequence[Entry],
    questions: Sequence[str],
    check: Callable[[str, str], bool],
    bar: Bar | None = None,
) -> list[Row]:
    """Every strategy over every question.

    Args:
        check: (question, answer) -> right. bar: of len(entries) * len(questions) units.
    Raises:
        LLMError: the model cannot be asked, or its budget is spent.
    """
    if not questions:
        raise ConfigError("questions", "there are none; a study needs at least one")
    rows = []
    for place, entry in enumerate(entries):
        begun = place * len(questions)

        def tell(done: int, begun: int = begun, key: str = entry.key) -> None:
            if bar is not None:
                bar.update(begun + done, key)

        solutions = wait_for(_all(entry.strategy, llm, questions, tell))
        rows.append(_row(entry, questions, solutions, check))
    return rows


async def _all(strategy: Strategy, llm: LLM, questions: Sequence[str], tell: Callable[[int], None]) -> list[Solution]:
    """One solution per question, all under way at once; the first failure cancels the rest and is raised as itself."""
    done = 0

    async def one(question: str) -> Solution:
        nonlocal done
        found = await strategy.solve(llm, question)
        done += 1
        tell(done)
        return found

    tasks = [asyncio.ensure_future(one(question)) for question in questions]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def _row(
    entry: Entry, questions: Sequence[str], solutions: Sequence[Solution], check: Callable[[str, str], bool]
) -> Row:
    checks = [lambda answer, question=question: check(question, answer) for question in questions]
    right = sum(s.answer is not None and is_right(s.answer) for s, is_right in zip(solutions, checks, strict=True))
    low, high = wilson(right, len(questions))
    four = final_figures(solutions, checks)
    return Row(
        key=entry.key,
        name=entry.name or entry.strategy.name,
        family=entry.family,
        problems=len(questions),
        accuracy=right / len(questions),
        low=low,
        high=high,
        answered=fmean(s.answer is not None for s in solutions),
        calls=fmean(s.cost.calls for s in solutions),
        prompt_tokens=fmean(s.cost.prompt_tokens for s in solutions),
        completion_tokens=fmean(s.cost.completion_tokens for s in solutions),
        any_of=four.any_of,
        top1=four.top1,
        majority=four.majority,
        mean=four.mean,
    )


def chain_problems(task: data.ChainConfig, config: StudyConfig) -> list[data.ChainProblem]:
    """`config.problems` different problems of the held-out side."""
    rng = random.Random(derive_seed("inference study", config.seed, config.operations))
    found: dict[str, data.ChainProblem] = {}
    for _ in range(100 * config.problems):
        if len(found) == config.problems:
            break
        problem = data.sample_problem(rng, config.operations, "test", task)
        found.setdefault(problem.question, problem)
    if len(found) < config.problems:
        raise ConfigError("problems", f"{config.problems} problems of {config.operations} operations are not to be had")
    return list(found.values())


def chain_examples(task: data.ChainConfig, config: StudyConfig) -> tuple[Example, ...]:
    """Solved problems of the training side, as long as the asked ones where training has that length."""
    rng = random.Random(derive_seed("inference study examples", config.seed))
    length = config.operations if config.operations in task.train_operations else max(task.train_operations)
    made = []
    for _ in range(config.pool):
        question, thought, answer = data.solved(data.sample_problem(rng, length, "train", task), "every")
        made.append(Example(question=question, answer=answer, reasoning=thought))
    return tuple(made)


def chain_entries(
    config: StudyConfig, examples: tuple[Example, ...], scorer: Scorer | None = None, scorer_name: str = "reward"
) -> list[Entry]:
    """The strategies of the study, for a model that was trained on chains with think blocks.

    Args:
        scorer: for best-of-n, None = the model's own log-probabilities alone.
    """
    greedy = Settings(max_tokens=config.max_tokens, seed=config.seed)
    sampled = replace(greedy, temperature=config.temperature)

    def asked(
        reasoning: Literal["no", "think"], settings: Settings, shots: int = 0, place: Place = config.places[0]
    ) -> ChainOfThought:
        shown = FewShot(pool=examples, k=shots, select="random", order="shuffled", seed=config.seed) if shots else None
        return ChainOfThought(
            reasoning=reasoning, shots=shown, place=place, form="", empty_blocks=True, second_ask=False,
            settings=settings, extract=read_answer, canon=str.strip,
        )  # fmt: skip

    entries = [
        Entry(f"direct.shots{k}", "direct", asked("no", greedy, k), f"direct, {k} examples") for k in config.shots
    ]
    for i, place in enumerate(config.places):
        ending, where = ("", "") if i == 0 else (f".{place}", f" in the {place} turn")
        entries += [
            Entry(f"cot{ending}.shots{k}", "cot", asked("think", greedy, k, place), f"CoT, {k} examples{where}")
            for k in config.shots
            if k or i == 0  # without examples all places are one
        ]
    for k in config.samples:
        voted = SelfConsistency(chain=asked("think", sampled), k=k, batch=k, stop="never")
        entries.append(Entry(f"self_consistency.k{k}", "self-consistency", voted))
    most = max(config.samples)
    if most > 4:
        early = SelfConsistency(chain=asked("think", sampled), k=most, batch=4, stop="sure")
        name = f"self-consistency {most}, early stop"
        entries.append(Entry(f"self_consistency.k{most}_early", "self-consistency", early, name))
    judges = {"likelihood": scorers.likelihood()} | ({scorer_name: scorer} if scorer is not None else {})
    for name, judge in judges.items():
        chain = asked("think", replace(sampled, logprobs=name == "likelihood"))
        best = BestOfN(scorer=judge, chain=chain, n=config.best_of, scorer_name=name)
        entries.append(Entry(f"best_of.{name}.n{config.best_of}", "best-of-n", best))
    task = ChainTask(native=True)
    generate = Sample(task=task, settings=replace(sampled, max_tokens=32))
    for algorithm in ("bfs", "dfs"):
        search = SearchConfig(
            algorithm=algorithm, depth=config.operations, candidates=config.candidates, beam=config.beam, threshold=0.6
        )
        tree = TreeOfThoughts(problem=task, generate=generate, evaluate=Likely(task=task), search=search)
        entries.append(Entry(f"tot.{algorithm}", "tot", tree, f"ToT {algorithm.upper()}"))
    return entries


def chain_study(
    llm: LLM,
    task: data.ChainConfig,
    config: StudyConfig,
    scorer: Scorer | None = None,
    scorer_name: str = "reward",
    bar: Bar | None = None,
) -> list[Row]:
    """The whole study on held-out chain problems.

    Args:
        llm: our own model behind the engine (it must continue and score a text). bar: see `units`.
    Raises:
        LLMError: it cannot, or its context is too short for the examples.
    """
    if not (llm.capabilities.continues and llm.capabilities.loglikelihood):
        raise LLMError(f"{llm.name} cannot continue and score a text, which ToT on chains needs; study a run folder")
    entries = chain_entries(config, chain_examples(task, config), scorer, scorer_name)
    questions = [problem.question for problem in chain_problems(task, config)]
    return measure(llm, entries, questions, check, bar)


def units(config: StudyConfig, with_scorer: bool = False) -> int:
    """Solutions that a study makes, for its progress bar."""
    scorer: Scorer | None = scorers.verifier(lambda _, __: True) if with_scorer else None
    return config.problems * len(chain_entries(config, (), scorer))


def figures(rows: Sequence[Row], prefix: str = "inference") -> dict[str, float]:
    """Flat figures for results.json: {prefix}.{key}.accuracy, .low, .high, .tokens and the four of the candidates."""
    found: dict[str, float] = {}
    for row in rows:
        for name in ("accuracy", "low", "high", "tokens"):
            found[f"{prefix}.{row.key}.{name}"] = getattr(row, name)
        if row.family not in ("direct", "cot"):
            for name in ("any_of", "top1", "majority", "mean"):
                found[f"{prefix}.{row.key}.{name}"] = getattr(row, name)
    return found


def rows_as_data(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """Plain mappings, one per row, `tokens` included."""
    return [{**asdict(row), "tokens": row.tokens} for row in rows]


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [
        "| strategy | accuracy (95%) | tokens | calls | any of | top-1 | majority | mean |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        four = " | ".join(f"{value:.0%}" for value in (row.any_of, row.top1, row.majority, row.mean))
        interval = f"{row.accuracy:.0%} ({row.low:.0%}–{row.high:.0%})"
        lines.append(f"| {row.name} | {interval} | {row.tokens:,.0f} | {row.calls:.1f} | {four} |")
    return "\n".join(lines)
