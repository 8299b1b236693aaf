"""PPO with a critic, written against the contracts: does the one loop carry it? (Type-checked and run by the tests.)

Two models, two losses, one objective; several epochs over one rollout; per-token advantages from GAE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sekkei.data.batch import Batch
from sekkei.engine.request import Sampling
from sekkei.model.output import Output
from sekkei.objectives.grpo import group_samples
from sekkei.objectives.rollout import Prompt, roll_out
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import Ops
from sekkei.train.objective import Context, Loss, Mean, Metrics, Objective, Update


@dataclass(frozen=True)
class PolicyLoss:
    clip: float = 0.2
    wants: frozenset[str] = frozenset({"logprobs"})
    temperature: float = 1.0

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": batch.mask.sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        ratio = (out.logprobs - batch.extra["old"]).exp()
        gain = batch.extra["gae"]
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = -(torch.minimum(ratio * gain, clipped * gain) * batch.mask).sum()
        return {"tokens": loss}, {"ratio": Mean((ratio.detach() * batch.mask).sum(), batch.mask.sum())}


@dataclass(frozen=True)
class ValueLoss:
    wants: frozenset[str] = frozenset({"values"})
    temperature: float = 1.0

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": batch.mask.sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.values is not None
        return {"tokens": (0.5 * (out.values - batch.extra["returns"]) ** 2 * batch.mask).sum()}, {}


class PPO:
    needs: frozenset[str] = frozenset({"engine", "critic", "reference"})

    def __init__(self, prompts: Sequence[Prompt], epochs: int, kl: float) -> None:
        self.prompts, self.epochs, self.kl = prompts, epochs, kl

    def next_step(self, ctx: Context) -> list[Update]:
        groups = roll_out(ctx, self.prompts, Sampling(max_tokens=8), 4)
        batches = [self._advantages(batch, ctx) for batch in pack_samples(group_samples(groups), 1024)]
        updates = []
        for _ in range(self.epochs):
            updates.append(Update("critic", batches, ValueLoss()))
            updates.append(Update("policy", batches, PolicyLoss()))
        return updates

    def _advantages(self, batch: Batch, ctx: Context) -> Batch:
        old = ctx.score("policy", batch, frozenset({"logprobs"}), 1.0).logprobs
        reference = ctx.score("reference", batch, frozenset({"logprobs"}), 1.0).logprobs
        values = ctx.score("critic", batch, frozenset({"values"}), 1.0).values
        assert old is not None
        assert reference is not None
        assert values is not None
        reward = batch.extra["advantages"] - self.kl * (old - reference)
        gain = torch.zeros_like(reward)
        ahead = torch.zeros(reward.shape[0])
        for t in reversed(range(reward.shape[1])):
            ahead = (reward[:, t] - values[:, t] + 0.95 * ahead) * batch.mask[:, t]
            gain[:, t] = ahead
        return batch.with_extra(old=old, gae=gain, returns=gain + values)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self.kl *= 1.1 if metrics.get("ratio", 1.0) > 1.2 else 1.0

    def step_metrics(self) -> Mapping[str, float]:
        return {"kl_coefficient": self.kl}

    def state_dict(self) -> dict[str, Any]:
        return {"kl": self.kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kl = state["kl"]


def fits(objective: PPO, policy: PolicyLoss, value: ValueLoss) -> tuple[Objective, Loss, Loss]:
    """The type checker's question."""
    return objective, policy, value
