"""A judge's part of the reward: somebody who reads answers scores all of a rollout at once.

    groups ─ question, answers in words ─► grade (handed down by the stage: judge/reward.py) ─► reward += weight · score

It comes after the functions of rollout.py, which look at one answer each, since a judge compares answers of a group,
and answers hundreds of calls at once. What has no score is left out of its group, never scored 0: a reply that cannot
be read is counted under `reward_errors/judge_unread`; a call that failed stops the run or, with `reward_errors: skip`,
is counted under `reward_errors/judge`, as a reward function that raises. An answer that did not end, or says
nothing, is no matter for a judge: its score is 0, the least there is.

It does not handle judges of single steps, or of conversations of several turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from sekkei.core.errors import UserError
from sekkei.engine.request import Completion
from sekkei.objectives.reward import reward_groups
from sekkei.objectives.rollout import Group, OnError, group_figures
from sekkei.train.objective import Context

UNREAD = "unread"
NAME = "judge"


class Verdict(NamedTuple):
    """score: 0 to 1, None without one; why: then UNREAD, or in words why the call failed. JSON values."""

    score: float | None
    why: str = ""


Asked = Sequence[tuple[str, Sequence[str | None]]]
"""Of each group: its question, and its answers; None is an answer that nobody has to read."""

Grade = Callable[[Asked], tuple[Sequence[Sequence[Verdict]], dict[str, int]]]
"""A verdict for every answer, and counts of what it took; the same on every rank."""


class Scored(Protocol):
    """What of an objective's settings says who scores answers beside the prompt's own judge."""

    @property
    def reward_model(self) -> float: ...
    @property
    def micro_tokens(self) -> int: ...


class Judged:
    """A judge, and the place of its scores in the reward.

    Args:
        grade: who reads. read: an answer in words, None where it did not end or says nothing.
        weight: of the score in the reward. on_error: what a failed call does, see the header.
    """

    def __init__(
        self, grade: Grade, read: Callable[[Completion], str | None], weight: float, on_error: OnError
    ) -> None:
        self.grade, self.read, self.weight, self.on_error = grade, read, weight, on_error
        self._counts: Counter[str] = Counter()

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with "rewards/judge", and its part of "reward", in the figures of every answer that has a score.

        Raises:
            UserError: a call failed, and `on_error` is "stop".
        """
        texts = [(group.prompt.text, [self.read(answer) for answer in group.completions]) for group in groups]
        if not all(question for question, _ in texts):
            raise RuntimeError("a judge reads the question, and a prompt has no text")
        verdicts, counts = self.grade(texts)
        self._counts.update(counts)
        return [self._with(group, [Verdict(*v) for v in found]) for group, found in zip(groups, verdicts, strict=True)]

    def figures(self) -> dict[str, float]:
        """Counts since the last call of this, under "judge/…"."""
        found = {f"{NAME}/{name}": float(count) for name, count in sorted(self._counts.items())}
        self._counts.clear()
        return found

    def _with(self, group: Group, verdicts: Sequence[Verdict]) -> Group:
        kept, figures, failures = [], [], list(group.failures)
        for completion, values, verdict in zip(group.completions, group.figures, verdicts, strict=True):
            if verdict.score is not None:
                reward = values["reward"] + self.weight * verdict.score
                figures.append({**values, "reward": reward, f"rewards/{NAME}": verdict.score})
                kept.append(completion)
            elif verdict.why != UNREAD and self.on_error == "stop":
                raise UserError(f"the reward function {NAME!r} failed: {verdict.why}")
            else:
                failures.append(f"{NAME}_{UNREAD}" if verdict.why == UNREAD else NAME)
        failed = group.failed + len(group.completions) - len(kept)
        return replace(group, completions=tuple(kept), figures=tuple(figures), failed=failed, failures=tuple(failures))


def scored_groups(ctx: Context, groups: list[Group], config: Scored, judged: Judged | None) -> list[Group]:
    """With the reward model's part of the reward and the judge's, as far as there is one."""
    if config.reward_model:
        groups = reward_groups(ctx, groups, config.reward_model, config.micro_tokens)
    return groups if judged is None else judged(groups)


def scored_figures(groups: Sequence[Group], judged: Judged | None) -> dict[str, float]:
    """Figures of a rollout, the judge's counts among them."""
    counts = {} if judged is None else judged.figures()
    return {**group_figures(groups), **counts}
