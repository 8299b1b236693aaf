"""From names to a strategy: which task a question is, how this model is asked for it, which search.

    kind_of("4 9 10 13")                                   game24
    kind_of("start at 7, add 3, modulo 23")                chain
    kind_of("How many …?")                                 words
    build(StrategyConfig(strategy="tot"), llm, question)   -> a Strategy

Two kinds of models are asked in two ways. One that continues an assistant's turn and scores a given text (our own
engine) is taken as trained on think blocks: questions go to it bare, chains of thought are its think blocks, and on
chain problems the Tree of Thoughts continues them line by line and values each line by its probability. Any other is
asked in words. `exact` lets the solver of the Game of 24 stand in for both proposals and values; no model is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sekkei.core.errors import ConfigError, UserError
from sekkei.llm.protocol import Capabilities, Reply, Settings
from sekkei.prompting import scorers
from sekkei.prompting.best_of_n import BestOfN, Scorer
from sekkei.prompting.cot import ANSWER_FORM, ChainOfThought, Extract, read_answer
from sekkei.prompting.few_shot import BM25, Example, FewShot, Similarity
from sekkei.prompting.self_consistency import SelfConsistency
from sekkei.prompting.solution import Strategy
from sekkei.prompting.tasks import chain, game24, steps
from sekkei.prompting.thoughts import Likely, Propose, Sample, Value, Vote
from sekkei.prompting.tot import SearchConfig, TreeOfThoughts

Kind = Literal["chain", "game24", "words"]
Name = Literal["direct", "cot", "self-consistency", "best-of-n", "tot"]
RULES = {
    "chain": "Apply the operations from left to right. Every result is taken modulo the number that is named last: the "
    "remainder after division by it, never negative.",
    "game24": "Combine the four numbers to exactly 24 with + - * / and brackets; use each number exactly once. The "
    "answer is the expression, as 4 * (10 - (13 - 9)).",
    "words": "",
}


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """How a question is to be solved.

    Args:
        strategy: which. samples: of self-consistency and best-of-n.
        shots, select, order, balance: examples, see few_shot.FewShot.
        choose_by: what best-of-n goes by, the model's own log-probabilities, its judgement, or a scorer that is handed
            to `build` (a reward model).
        algorithm, depth, candidates, beam, threshold, visits: of the search, see tot.SearchConfig; depth and threshold
            None = the task's own.
        generate, evaluate: "auto" = what the task and the model allow (propose before sample; likely, value, vote).
        exact: the exact solver in place of a model.
        temperature: of everything that is sampled; direct and cot are greedy. max_tokens: of a reply. seed: of all.
    """

    strategy: Name = "cot"
    samples: int = 16
    shots: int = 0
    select: Literal["random", "nearest", "diverse"] = "nearest"
    order: Literal["best_last", "best_first", "shuffled"] = "best_last"
    balance: bool = False
    choose_by: Literal["likelihood", "judge", "reward"] = "likelihood"
    algorithm: Literal["bfs", "dfs"] = "bfs"
    depth: int | None = None
    candidates: int = 5
    beam: int = 5
    threshold: float | None = None
    visits: int = 100
    generate: Literal["auto", "propose", "sample"] = "auto"
    evaluate: Literal["auto", "value", "vote", "likely"] = "auto"
    exact: bool = False
    temperature: float = 0.7
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ConfigError("shots", f"got {self.shots}, must be >= 0 examples")
        if self.samples < 1:
            raise ConfigError("samples", f"got {self.samples}, must be >= 1")
        if self.exact and self.strategy != "tot":
            raise ConfigError("exact", f"stands in for a search's parts, {self.strategy} has none; use tot")


def kind_of(question: str) -> Kind:
    """Which of the tasks a question is."""
    readers: tuple[tuple[Kind, Callable[[str], Any]], ...] = (
        ("chain", chain.parse_question),
        ("game24", game24.parse_numbers),
    )
    for kind, read in readers:
        try:
            read(question)
        except UserError:
            continue
        return kind
    return "words"


def checked(kind: Kind, question: str, answer: str | None) -> bool | None:
    """Whether an answer is right; None where nobody can know."""
    if kind == "words":
        return None
    if answer is None:
        return False
    if kind == "chain":
        return chain.check(question, answer)
    return game24.check(game24.parse_numbers(question), answer)


def trained(can: Capabilities) -> bool:
    """Whether a model is asked as our own are; see the header."""
    return can.continues and can.loglikelihood


def build(
    config: StrategyConfig,
    can: Capabilities,
    question: str,
    pool: tuple[Example, ...] = (),
    kind: Kind | None = None,
    scorer: Scorer | None = None,
    similarity: Similarity = BM25(),  # noqa: B008 (it holds two numbers and never changes)
) -> Strategy:
    """The strategy for one question.

    Args:
        can: of the model that will be asked. pool: examples, for shots > 0. kind: None = what the question is.
        scorer: for choose_by reward. similarity: how alike questions and examples are.
    Raises:
        UserError: the parts do not go together; the message names the key and the remedy.
    """
    kind = kind or kind_of(question)
    if config.shots and not pool:
        raise ConfigError("shots", f"got {config.shots}, but there are no examples to show; hand in some")
    if config.strategy == "tot":
        return _tree(config, can, kind, question)
    shots = None
    if config.shots:
        shots = FewShot(
            pool=pool, k=config.shots, select=config.select, order=config.order, balance=config.balance,
            similarity=similarity, seed=config.seed,
        )  # fmt: skip
    if config.strategy == "self-consistency":
        return SelfConsistency(chain=chain_of_thought(config, can, kind, shots), k=config.samples)
    if config.strategy == "best-of-n":
        asked = chain_of_thought(config, can, kind, shots, logprobs=config.choose_by == "likelihood")
        if config.choose_by == "reward" and scorer is None:
            raise ConfigError(
                "choose_by", "got reward, but no reward model was named; name a run's, as runs/NAME#reward"
            )
        own = {"likelihood": scorers.likelihood, "judge": scorers.judge}
        scorer = scorer if scorer is not None and config.choose_by == "reward" else own[config.choose_by]()
        return BestOfN(scorer=scorer, chain=asked, n=config.samples, scorer_name=config.choose_by)
    return chain_of_thought(config, can, kind, shots)


def chain_of_thought(
    config: StrategyConfig, can: Capabilities, kind: Kind, shots: FewShot | None = None, logprobs: bool = False
) -> ChainOfThought:
    """One asking: greedy where it stands alone, sampled where it is part of a strategy."""
    own = trained(can)
    alone = config.strategy in ("direct", "cot")
    return ChainOfThought(
        reasoning="no" if config.strategy == "direct" else "think" if own else "written",
        shots=shots,
        instruction="" if own else RULES[kind],
        form="" if own else ANSWER_FORM,
        empty_blocks=own,
        second_ask=not own,
        settings=Settings(
            temperature=0.0 if alone else config.temperature,
            max_tokens=config.max_tokens,
            seed=config.seed,
            logprobs=logprobs,
        ),
        extract=_reader(kind, own),
    )


def _reader(kind: Kind, own: bool) -> Extract:
    if kind == "chain" and own:
        return chain.read_answer
    if kind == "game24":
        return _expression
    return read_answer


def _expression(reply: Reply) -> str | None:
    """The last expression of a finished reply: behind "answer:", else its last line."""
    if reply.finish_reason == "length" or not reply.text.strip():
        return None
    line = reply.text.strip().splitlines()[-1]
    found = line.rpartition(":")[2].strip().strip("`*$ .")
    return found if any(sign in found for sign in "+-*/×÷") else None


def _tree(config: StrategyConfig, can: Capabilities, kind: Kind, question: str) -> Strategy:
    if config.exact and kind != "game24":
        raise ConfigError("exact", f"only the Game of 24 has an exact solver, {question[:60]!r} is none")
    own = trained(can) and kind == "chain"
    task: Any = {"chain": chain.ChainTask(native=own), "game24": game24.Game24(), "words": steps.Steps()}[kind]
    generate, evaluate = config.generate, config.evaluate
    if generate == "auto":
        generate = "propose" if hasattr(task, "propose_messages") else "sample"
    if evaluate == "auto":
        evaluate = "likely" if own else "value"
    needs = {"propose": "propose_messages", "sample": "sample_messages", "value": "value_messages"}
    needs |= {"vote": "vote_messages", "likely": "last_thought"}
    for key, chosen in (("generate", generate), ("evaluate", evaluate)):
        if not hasattr(task, needs[chosen]):
            raise ConfigError(key, f"{chosen} is not something that the task {kind} offers; leave it at auto")
    settings = Settings(temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed)
    makers: dict[str, Callable[[], Any]] = {
        "propose": lambda: Propose(task=task, settings=settings),
        "sample": lambda: Sample(task=task, settings=settings),
        "value": lambda: Value(task=task, settings=settings, times=1 if kind == "chain" else 3),
        "vote": lambda: Vote(task=task, settings=settings),
        "likely": lambda: Likely(task=task),
    }
    exact = config.exact
    return TreeOfThoughts(
        problem=task,
        generate=game24.exact_generate if exact else makers[generate](),
        evaluate=game24.exact_evaluate if exact else makers[evaluate](),
        search=_search(config, kind, question),
    )


def _search(config: StrategyConfig, kind: Kind, question: str) -> SearchConfig:
    """Depth: a chain has as many thoughts as operations, four numbers take three, words get eight.

    Threshold of a depth-first search: above what the task's worst verdict is worth.
    """
    depth = {"chain": 0, "game24": 3, "words": 8}[kind] or len(chain.parse_question(question).operations)
    worst = (
        0.5 if config.exact else {"chain": 0.6, "game24": 3 * game24.IMPOSSIBLE, "words": 3 * game24.IMPOSSIBLE}[kind]
    )
    return SearchConfig(
        algorithm=config.algorithm,
        depth=config.depth or depth,
        candidates=config.candidates,
        beam=config.beam,
        threshold=worst if config.threshold is None else config.threshold,
        visits=config.visits,
    )
