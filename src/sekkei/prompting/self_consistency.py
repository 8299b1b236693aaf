"""Self-consistency (Wang et al. 2022): sample many chains of thought, normalise their answers, take the majority.

Early stop, in batches (a batch is one call with n samples):

    sure       stop when the samples that are left cannot change the majority: the answer is that of all k
    beta       stop when P(the leader's true share > the runner-up's) >= `confidence`, where with v1 and v2 votes
               P = 1 - I_1/2(v1 + 1, v2 + 1), a uniform prior on the two   (Aggarwal et al. 2023, Adaptive-Consistency)
    never      all k samples

Samples without a readable answer cost tokens and do not vote. Of equally frequent answers the one seen first wins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sekkei.core.errors import ConfigError
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Reply, Settings
from sekkei.prompting.cot import ChainOfThought, whole_text
from sekkei.prompting.solution import Meter, Solution, flat_tree
from sekkei.tools.statistics import majority


def _sampled() -> ChainOfThought:
    return ChainOfThought(settings=Settings(temperature=0.7))  # Wang et al. 2022, section 3.1


@dataclass(frozen=True, kw_only=True)
class SelfConsistency:
    """Ask up to `k` times.

    Args:
        chain: how each sample is asked for; its temperature must be above 0.
        k: most samples. batch: samples of one call. stop, confidence: see the header.
    """

    chain: ChainOfThought = field(default_factory=_sampled)
    k: int = 16
    batch: int = 4
    stop: Literal["sure", "beta", "never"] = "sure"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.chain.settings.temperature == 0:
            raise ConfigError("temperature", "is 0: all samples would be the same; self-consistency needs it above 0")
        if self.k < 1 or self.batch < 1:
            raise ConfigError("k", f"k={self.k} and batch={self.batch} must be >= 1")
        if not 0.5 < self.confidence < 1:
            raise ConfigError("confidence", f"got {self.confidence}, must be in (0.5, 1)")

    @property
    def name(self) -> str:
        return f"self-consistency {self.k}"

    async def solve(self, llm: LLM, question: str) -> Solution:
        meter = Meter(llm)
        found: list[tuple[Reply, str | None]] = []
        votes: list[str | None] = []
        while len(found) < self.k:
            count = min(self.batch, self.k - len(found))
            found += await self.chain.sample(meter, question, count, len(found))
            votes = [None if answer is None else self.chain.canon(answer) for _, answer in found]
            if self._settled(votes):
                break
        winner = majority(votes)
        place = votes.index(winner) if winner is not None else 0
        rows = [
            (whole_text(reply), answer, None, "answer" if i == place and winner is not None else _fate(vote, winner))
            for i, ((reply, answer), vote) in enumerate(zip(found, votes))
        ]
        return Solution(
            answer=found[place][1] if winner is not None else None,
            candidates=tuple(answer for _, answer in found),
            nodes=flat_tree(question, rows),
            cost=meter.cost,
            log=tuple(meter.log),
            reply=found[place][0].text,
        )

    def _settled(self, votes: Sequence[str | None]) -> bool:
        if self.stop == "never":
            return False
        counts = [count for _, count in Counter(vote for vote in votes if vote is not None).most_common(2)]
        first, second = (*counts, 0, 0)[:2]
        if self.stop == "beta":
            return first > 0 and leads(first, second) >= self.confidence
        return first - second > self.k - len(votes)


def leads(first: int, second: int) -> float:
    """P(p > 1/2) for p ~ Beta(first + 1, second + 1): how sure the leader is ahead of the runner-up.

    For whole numbers it is a binomial tail: Σ over j <= first of C(n, j) / 2^n with n = first + second + 1.
    """
    n = first + second + 1
    return sum(math.comb(n, j) for j in range(first + 1)) / 2**n


def _fate(vote: str | None, winner: str | None) -> Literal["kept", "pruned"]:
    return "kept" if vote is not None and vote == winner else "pruned"
