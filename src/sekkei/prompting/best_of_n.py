"""Best of n: sample n chains, let a scorer judge each, take the best.

    best       argmax over samples of score(question, reply)                       (Cobbe et al. 2021, section 4.2)
    weighted   argmax over answers of the sum of the scores of the samples that give it     (Li et al. 2023, DiVeRSe)

The scorer is a callable, plain or async: a verifier that runs the answer, a reward model, a judge. It is handed in from
above (`scorers.py` has some), so it may come from a floor that this one cannot see. What it costs in tokens is counted
where it asks through the meter that it is given. Samples without an answer are judged too; where all are without one,
so is the result.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sekkei.core.errors import ConfigError
from sekkei.llm.face import LLM
from sekkei.llm.protocol import LLMError, Reply, Settings
from sekkei.prompting.cot import ChainOfThought, whole_text
from sekkei.prompting.solution import Meter, Solution, Status, flat_tree


class Scorer(Protocol):
    """How good a reply is; higher is better."""

    def __call__(self, meter: Meter, question: str, reply: Reply, /) -> float | Awaitable[float]: ...


def _sampled() -> ChainOfThought:
    return ChainOfThought(settings=Settings(temperature=0.7))


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """Ask `n` times and choose.

    Args:
        scorer: see `Scorer`. chain: how each sample is asked for; temperature above 0.
        choose: see the header. scorer_name: for tables.
    """

    scorer: Scorer
    chain: ChainOfThought = field(default_factory=_sampled)
    n: int = 16
    choose: Literal["best", "weighted"] = "best"
    scorer_name: str = ""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError("n", f"got {self.n}, must be >= 1")
        if self.n > 1 and self.chain.settings.temperature == 0:
            raise ConfigError("temperature", "is 0: all samples would be the same; best-of-n needs it above 0")

    @property
    def name(self) -> str:
        return f"best of {self.n}{f' ({self.scorer_name})' if self.scorer_name else ''}"

    async def solve(self, llm: LLM, question: str) -> Solution:
        meter = Meter(llm)
        found = await self.chain.sample(meter, question, self.n, 0)
        scores = [await self._score(meter, question, reply) for reply, _ in found]
        best = self._choose([answer for _, answer in found], scores)
        order = sorted(range(len(found)), key=lambda i: (i != best, -scores[i], i))
        rows: list[tuple[str, str | None, float | None, Status]] = []
        for i, (reply, answer) in enumerate(found):
            rows.append((whole_text(reply), answer, scores[i], "answer" if i == best else "pruned"))
        return Solution(
            answer=found[best][1],
            candidates=tuple(found[i][1] for i in order),
            nodes=flat_tree(question, rows),
            cost=meter.cost,
            log=tuple(meter.log),
            reply=found[best][0].text,
        )

    async def _score(self, meter: Meter, question: str, reply: Reply) -> float:
        made = self.scorer(meter, question, reply)
        value = float(await made if inspect.isawaitable(made) else made)
        if math.isnan(value):
            raise LLMError(f"{self.name}: the scorer gave no number for a reply")
        return value

    def _choose(self, answers: list[str | None], scores: list[float]) -> int:
        """Index of the chosen sample; of equals the first."""
        rated = [i for i, answer in enumerate(answers) if answer is not None] or list(range(len(answers)))
        if self.choose == "weighted":
            weight: dict[str | None, float] = defaultdict(float)
            for i in rated:
                weight[self._canon(answers[i])] += scores[i]
            top = max(weight.values())
            rated = [i for i in rated if weight[self._canon(answers[i])] == top]
        return max(rated, key=lambda i: (scores[i], -i))

    def _canon(self, answer: str | None) -> str | None:
        return None if answer is None else self.chain.canon(answer)
