"""Rolling out is loading data: prompts go to the engine, answers come back scored.

A prompt carries its own judge, a callable that the stage hands down (a verifier, a reward model): this
floor knows of no task. Seeds are hashes of (stage seed, step, prompt), so a resumed run draws the same
answers from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.train.objective import Context

Judge = Callable[[Completion], Mapping[str, float]]
"""A completion's figures; "reward" is the one that is optimised, the others are logged."""


@dataclass(frozen=True)
class Prompt:
    """Token ids of a question, and how its answers are judged."""

    ids: tuple[int, ...]
    judge: Judge


@dataclass(frozen=True)
class Group:
    """A prompt's sampled answers with their figures, in order."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    figures: tuple[Mapping[str, float], ...]

    @property
    def rewards(self) -> list[float]:
        return [figures["reward"] for figures in self.figures]


def roll_out(ctx: Context, prompts: Sequence[Prompt], sampling: Sampling, samples: int) -> list[Group]:
    """Sample `samples` answers to each prompt and judge them.

    Raises:
        UserError: a judge gave no finite reward.
    """
    if ctx.generate is None:
        raise RuntimeError("this objective needs an engine: list it in `needs`")
    requests = [
        Request(prompt_ids=p.ids, sampling=sampling, n=samples, seed=derive_seed("rollout", ctx.seed, ctx.step, i))
        for i, p in enumerate(prompts)
    ]
    groups = []
    for prompt, completions in zip(prompts, ctx.generate(requests), strict=True):
        figures = tuple(dict(prompt.judge(completion)) for completion in completions)
        for values in figures:
            if not abs(values.get("reward", float("nan"))) < float("inf"):
                raise UserError(f"a reward function returned {values.get('reward')}: rewards must be finite numbers")
        groups.append(Group(prompt, tuple(completions), figures))
    return groups
