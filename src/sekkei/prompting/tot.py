"""Tree of Thoughts (Yao et al. 2023): search over partial solutions that a model proposes and values.

    BFS (algorithm 1)   S_0 = {x};  for t = 1 … T:  S'_t = {[s, z] : s in S_(t-1), z in G(s, k)}
                        V_t = V(S'_t);  S_t = the b best of S'_t
    DFS (algorithm 2)   for s' in G(s, k), best first:  if V(s') > v_th: go into s', else prune it with all below;
                        at depth T write the state down as an output and go back

G (generate) and V (evaluate) are callables: `thoughts.py` makes them of a model's prompts (sample or propose; value
or vote), an exact solver can stand in for either. A state is any hashable value; equal states met again in the same
step are one (the published program gives the second value 0). Values are compared as they are; of equals, the one
made first goes first.

Two departures, both stated where results are shown: a state that is final before depth T waits in the frontier as it
is, and the answer is read from the final state by `answer` (the published program asks the model to write it).
`final_figures` reports what the published "success rate" means (any of b final states) beside top-1, majority and mean.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, Literal, Protocol, TypeVar

from sekkei.core.errors import ConfigError
from sekkei.llm.face import LLM
from sekkei.prompting.solution import Meter, Node, Solution
from sekkei.tools.statistics import majority

S = TypeVar("S", bound=Hashable)
Generate = Callable[[Meter, S, int], Awaitable[list[S]]]
Evaluate = Callable[[Meter, list[S]], Awaitable[list[float]]]


class Problem(Protocol[S]):
    """What a task tells the search about its states."""

    def start(self, question: str) -> S:
        """Raises UserError where `question` is none of this task."""
        ...

    def show(self, state: S) -> str:
        """The last thought, for the tree."""
        ...

    def final(self, state: S) -> bool:
        """Nothing can follow."""
        ...

    def answer(self, state: S) -> str | None:
        """What a final state answers; None where it does not."""
        ...


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How the tree is walked.

    Args:
        algorithm: "bfs" or "dfs". depth: T, most thoughts on a path. candidates: k of G.
        beam: b (bfs). threshold: v_th, a child must be valued above it (dfs).
        outputs: stop after so many outputs (dfs). visits: stop after so many expanded states (dfs; the paper's
            crosswords use 100).
    """

    algorithm: Literal["bfs", "dfs"] = "bfs"
    depth: int = 3
    candidates: int = 5
    beam: int = 5
    threshold: float = 0.0
    outputs: int = 1
    visits: int = 100

    def __post_init__(self) -> None:
        for key in ("depth", "candidates", "beam", "outputs", "visits"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")


@dataclass(frozen=True, kw_only=True)
class TreeOfThoughts(Generic[S]):
    """The strategy.

    Args:
        problem: the task. generate, evaluate: G and V. search: how.
    """

    problem: Problem[S]
    generate: Generate[S]
    evaluate: Evaluate[S]
    search: SearchConfig = SearchConfig()

    @property
    def name(self) -> str:
        search = self.search
        return f"tot bfs b={search.beam}" if search.algorithm == "bfs" else "tot dfs"

    async def solve(self, llm: LLM, question: str) -> Solution:
        walk = _Walk(self, Meter(llm), question)
        finals = await (walk.breadth_first() if self.search.algorithm == "bfs" else walk.depth_first())
        finals.sort(key=lambda node: -(node.value or 0.0))  # stable: of equals the one found first
        answers = [self.problem.answer(walk.states[node.id]) for node in finals]
        if finals:
            walk.mark_answer(finals[0])
        for node, answer in zip(finals, answers):
            node.note = "no answer" if answer is None else f"answer {answer}"
        return Solution(
            answer=answers[0] if answers else None,
            candidates=tuple(answers),
            nodes=tuple(walk.nodes),
            cost=walk.meter.cost,
            log=tuple(walk.meter.log),
            reply=answers[0] or "" if answers else "",
        )


class _Walk(Generic[S]):
    """One search: the nodes made so far and what they stand for."""

    def __init__(self, tot: TreeOfThoughts[S], meter: Meter, question: str) -> None:
        self.tot, self.meter = tot, meter
        self.nodes: list[Node] = []
        self.states: list[S] = []
        self.root = self._add(None, tot.problem.start(question), question)
        self.root.status = "root"

    async def breadth_first(self) -> list[Node]:
        """Algorithm 1; the frontier after the last step."""
        search, final = self.tot.search, self.tot.problem.final
        frontier = [self.root]
        for _ in range(search.depth):
            if all(final(self.states[node.id]) for node in frontier):
                break
            candidates, seen = [], set()
            for node in frontier:
                if final(self.states[node.id]):
                    candidates.append(node)
                    seen.add(self.states[node.id])
                    continue
                candidates += [child for child in await self._children(node) if self._fresh(child, seen)]
            if not candidates:
                return []
            await self._judge(candidates)
            ranked = sorted(candidates, key=lambda node: -(node.value or 0.0))
            frontier = ranked[: search.beam]
            for node in ranked[search.beam :]:
                node.status = "pruned"
        for node in frontier:
            node.status = "final"
        return frontier

    async def depth_first(self) -> list[Node]:
        """Algorithm 2; the outputs in the order in which they were written down."""
        outputs: list[Node] = []
        visits = 0

        async def descend(node: Node, depth: int) -> bool:
            """Whether the search is over."""
            nonlocal visits
            search = self.tot.search
            if depth > search.depth or self.tot.problem.final(self.states[node.id]):
                node.status = "final"
                outputs.append(node)
                return len(outputs) >= search.outputs
            if visits >= search.visits:
                return True
            visits += 1
            seen: set[S] = set()
            children = [child for child in await self._children(node) if self._fresh(child, seen)]
            if children:
                await self._judge(children)
            ranked = sorted(children, key=lambda child: -(child.value or 0.0))
            for child in ranked:
                child.status = "kept" if (child.value or 0.0) > search.threshold else "pruned"
            for child in ranked:
                if child.status == "kept" and await descend(child, depth + 1):
                    return True
            return False

        await descend(self.root, 1)
        return outputs

    def mark_answer(self, node: Node) -> None:
        node.status = "answer"

    async def _children(self, node: Node) -> list[Node]:
        states = await self.tot.generate(self.meter, self.states[node.id], self.tot.search.candidates)
        return [self._add(node.id, state, self.tot.problem.show(state)) for state in states]

    async def _judge(self, nodes: Sequence[Node]) -> None:
        values = await self.tot.evaluate(self.meter, [self.states[node.id] for node in nodes])
        for node, value in zip(nodes, values, strict=True):
            node.value = value

    def _fresh(self, node: Node, seen: set[S]) -> bool:
        state = self.states[node.id]
        if state in seen:
            node.status = "duplicate"
            return False
        seen.add(state)
        return True

    def _add(self, parent: int | None, state: S, text: str) -> Node:
        node = Node(len(self.nodes), parent, text)
        self.nodes.append(node)
        self.states.append(state)
        return node


@dataclass(frozen=True)
class FinalFigures:
    """Shares over problems: the same final states counted in four ways.

    any_of: at least one final state is right (an oracle chooses; this is what the ToT paper reports for Game of 24).
    top1: the best valued one is. majority: the most frequent answer is. mean: a final state drawn at random is.
    """

    problems: int
    any_of: float
    top1: float
    majority: float
    mean: float


def final_figures(
    solutions: Sequence[Solution], checks: Sequence[Callable[[str], bool]], canon: Callable[[str], str] = str.strip
) -> FinalFigures:
    """Count what the candidates of each solution are worth.

    Args:
        checks: per solution, whether an answer is right. canon: what equal answers share, for the majority.
    """
    rows = []
    for solution, check in zip(solutions, checks, strict=True):
        answers = solution.candidates
        right = [answer is not None and check(answer) for answer in answers]
        vote = majority([None if answer is None else canon(answer) for answer in answers])
        chosen = next((a for a in answers if a is not None and canon(a) == vote), None)
        rows.append((any(right), right[:1] == [True], chosen is not None and check(chosen), fmean(right or [0.0])))
    if not rows:
        return FinalFigures(0, 0.0, 0.0, 0.0, 0.0)
    return FinalFigures(len(rows), *(fmean(map(float, column)) for column in zip(*rows)))
