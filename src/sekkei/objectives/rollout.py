"""Rolling out is loading data: prompts go to the engine, answers come back scored.

A prompt carries its own judge, a callable that the stage hands down (a verifier, a reward model): this
floor knows of no task. Seeds are hashes of (stage seed, step, prompt), so a resumed run draws the same
answers from the same weights. Every completion carries the sampler's log-probs and the hash of the weights that drew
it; a rollout drawn from two sets of weights is refused. Samples for a policy gradient are drawn by temperature alone:
top-k and top-p cut the distribution that the loss would have to know.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.objectives.tool_use import Played, Tool, own_tokens, play
from sekkei.train.objective import Context

Judge = Callable[[Completion], Mapping[str, float]]
"""A completion's figures; "reward" is the one that is optimised, the others are logged."""

Reward = Callable[[Completion], float]
OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Prompt:
    """Token ids of a question, and how its answers are judged. text: the question in words, for those who read."""

    ids: tuple[int, ...]
    judge: Judge
    text: str = ""


@dataclass(frozen=True)
class Group:
    """A prompt's sampled answers with their figures, in order.

    failed: answers left out, which could not be judged; failures: of each, the reward function's name ("" unknown).
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    figures: tuple[Mapping[str, float], ...]
    failed: int = 0
    failures: tuple[str, ...] = ()

    @property
    def rewards(self) -> list[float]:
        return [figures["reward"] for figures in self.figures]

    @property
    def has_spread(self) -> bool:
        return len(self.figures) > 1 and max(self.rewards) != min(self.rewards)


class RewardFailedError(Exception):
    """A reward function raised, or gave no finite number. name: which."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the reward function {name!r} {why}")
        self.name = name


def weighted(functions: Mapping[str, tuple[Reward, float]]) -> Judge:
    """Several reward functions as one judge: "reward" is their weighted sum, "rewards/<name>" each by itself.

    A function that raises or gives no finite number fails the answer, by name; see `roll_out`, `on_error`.
    """

    def value(name: str, function: Reward, completion: Completion) -> float:
        try:
            found = float(function(completion))
        except UserError:
            raise
        except Exception as error:
            raise RewardFailedError(name, f"raised {type(error).__name__}: {error}") from error
        if not math.isfinite(found):
            raise RewardFailedError(name, f"returned {found}: rewards must be finite numbers")
        return found

    def judge(completion: Completion) -> Mapping[str, float]:
        found = {name: value(name, function, completion) for name, (function, _) in functions.items()}
        total = sum(found[name] * weight for name, (_, weight) in functions.items())
        return {"reward": total, **{f"rewards/{name}": value for name, value in found.items()}}

    return judge


def roll_out(
    ctx: Context,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    samples: int,
    first: int = 0,
    on_error: OnError = "stop",
    exact: bool = True,
    tool: Tool | None = None,
) -> list[Group]:
    """Sample `samples` answers to each prompt and judge them.

    Args:
        first: number of the first prompt within the step, for the seeds. on_error: what happens to an answer whose
            reward function raises or gives no finite number: the run stops, or the answer is left out and counted.
        exact: refuse sampling whose log-probs a trainer cannot recompute. tool: that the policy may call.
    Raises:
        UserError: a judge gave no finite reward; the engine changed its weights during the rollout.
        ConfigError: see `exact`.
    """
    if ctx.generate is None:
        raise RuntimeError("this objective needs an engine: list it in `needs`")
    if exact:
        check_exact(sampling)
    requests = rollout_requests(ctx.seed, ctx.step, prompts, sampling, samples, first)
    answered = ctx.generate(requests) if tool is None else play(ctx.generate, requests, tool)
    return judged_groups(prompts, answered, on_error)


def rollout_requests(
    seed: int, step: int, prompts: Sequence[Prompt], sampling: Sampling, samples: int, first: int = 0
) -> list[Request]:
    """What the engine is asked for step `step`; see `roll_out`."""
    return [
        Request(prompt_ids=p.ids, sampling=sampling, n=samples, seed=derive_seed("rollout", seed, step, first + i))
        for i, p in enumerate(prompts)
    ]


def judged_groups(
    prompts: Sequence[Prompt], answered: Sequence[Sequence[Completion]], on_error: OnError = "stop"
) -> list[Group]:
    """Each prompt with its answers, judged; see `roll_out` for what is raised."""
    if len({completion.weights_hash for completions in answered for completion in completions}) > 1:
        raise UserError("one rollout holds answers of different weights: the engine was refreshed in between")
    return [_judged(p, completions, on_error) for p, completions in zip(prompts, answered, strict=True)]


def _judged(prompt: Prompt, completions: Sequence[Completion], on_error: OnError) -> Group:
    kept, figures = [], []
    failures: list[str] = []
    for completion in completions:
        try:
            values = dict(prompt.judge(completion))
        except UserError:
            raise
        except Exception as error:
            named = isinstance(error, RewardFailedError)
            if on_error == "stop":
                why = str(error) if named else f"a reward function raised {type(error).__name__}: {error}"
                raise UserError(why) from error
            failures.append(error.name if isinstance(error, RewardFailedError) else "")
            continue
        reward = values.get("reward")
        if reward is not None and math.isfinite(reward):
            kept.append(completion)
            figures.append(values)
        elif on_error == "stop":
            raise UserError(f"a reward function returned {reward}: rewards must be finite numbers")
        else:
            failures.append("")
    return Group(prompt, tuple(kept), tuple(figures), len(failures), tuple(failures))


def check_exact(sampling: Sampling) -> None:
    """Refuse sampling that a policy gradient cannot use.

    Raises:
        ConfigError: top-k, top-p or temperature 0.
    """
    if sampling.top_p < 1 or sampling.top_k > 0:
        key, value = ("top_p", sampling.top_p) if sampling.top_p < 1 else ("top_k", sampling.top_k)
        raise ConfigError(
            key,
            f"got {value}: log-probs are those before the cut, so every ratio of the loss would miss the mass kept; "
            "sample by temperature alone",
        )
    if sampling.temperature <= 0:
        raise ConfigError("temperature", f"got {sampling.temperature}, must be > 0: greedy answers have no spread")


def check_policy(model: object) -> None:
    """Refuse a policy whose forward pass is random.

    Raises:
        ConfigError: it has dropout: its distance from a reference, or from itself before an update, would be the
            dropout's noise.
    """
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout) and module.p > 0 and module.training:
                raise ConfigError(
                    "dropout",
                    f"{name} drops {module.p} of its inputs; it must be 0 where a policy is compared with a reference, "
                    "or with itself before an update",
                )


def overlong_penalty(tokens: int, max_tokens: int, buffer: int) -> float:
    """DAPO's soft punishment (Yu et al. 2025, eq. 13): from 0 at max_tokens - buffer linearly to -1 at max_tokens."""
    return -min(max(tokens - (max_tokens - buffer), 0) / buffer, 1.0)


def group_figures(groups: Sequence[Group]) -> dict[str, float]:
    """Means of every figure that the judges gave, over the answers that have it; spread of the groups, lengths.

    completion_tokens: that the policy wrote. tool_calls, tool_tokens: per answer; tool_errors: share of all calls.
    Reward functions by name ("rewards/…") have their standard deviation too; reward_errors: answers that were left out,
    and by the function that failed.
    """
    answers = [figures for group in groups for figures in group.figures]
    names = sorted({name for figures in answers for name in figures})
    result: dict[str, float] = {}
    for name in names:
        values = [figures[name] for figures in answers if name in figures]
        result[name] = statistics.fmean(values)
        if name.startswith("rewards/"):
            result[f"{name}/std"] = statistics.pstdev(values)
    failed = sum(group.failed for group in groups)
    if failed:
        result["reward_errors"] = float(failed)
        named = Counter(name for group in groups for name in group.failures if name)
        result.update({f"reward_errors/{name}": float(count) for name, count in sorted(named.items())})
    groups = [group for group in groups if group.completions]
    completions = [completion for group in groups for completion in group.completions]
    if not completions:
        raise UserError("no answer of a whole rollout could be judged: every reward function failed")
    result["reward_std"] = statistics.fmean([statistics.pstdev(group.rewards) for group in groups])
    result["zero_spread"] = statistics.fmean([max(g.rewards) == min(g.rewards) for g in groups])
    result["completion_tokens"] = statistics.fmean([sum(own_tokens(c)) for c in completions])
    result["ended"] = statistics.fmean([c.finish_reason == "stop" for c in completions])
    played = [c for c in completions if isinstance(c, Played)]
    if played:
        result["tool_calls"] = statistics.fmean([c.calls for c in played])
        result["tool_errors"] = sum(c.failed for c in played) / max(sum(c.calls for c in played), 1)
        result["tool_tokens"] = statistics.fmean([len(c.token_ids) - sum(c.own) for c in played])
    return result
