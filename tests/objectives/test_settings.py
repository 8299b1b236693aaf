"""Settings that would do nothing are refused, and so is dropout where a policy is compared with something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch
from sekkei.model.output import Output
from sekkei.objectives.grpo import GRPO, GRPOConfig
from sekkei.objectives.kto import KTO, Feedback, KTOConfig
from sekkei.objectives.online_dpo import OnlineDPO, OnlineDPOConfig
from sekkei.objectives.pair_loss import DPOLoss
from sekkei.objectives.ppo import PPO, PPOConfig
from sekkei.objectives.preference import Pair, Preference
from sekkei.objectives.rollout import Prompt, check_policy
from sekkei.objectives.sft import SFTConfig
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig


@pytest.mark.parametrize(
    ("kind", "key", "idle", "used"),
    [
        (GRPOConfig, "correction_high", {"correction_high": 3.0}, {"correction": "token_truncate"}),
        (GRPOConfig, "correction_low", {"correction_low": 0.1}, {"correction": "sequence_mask"}),
        (
            GRPOConfig,
            "correction_low",
            {"correction_low": 0.1, "correction": "token_truncate"},
            {"correction": "token_mask"},
        ),
        (GRPOConfig, "overlong_penalty", {"overlong_penalty": 0.5}, {"overlong_buffer": 8}),
        (GRPOConfig, "max_calls", {"max_calls": 9}, {"tool": "calculator"}),
        (GRPOConfig, "max_refills", {"max_refills": 9}, {"variant": "dapo"}),
        (
            GRPOConfig,
            "max_refills",
            {"max_refills": 9, "variant": "dapo", "dynamic_sampling": False},
            {"dynamic_sampling": True},
        ),
        (PPOConfig, "critic_optim", {"critic": "shared", "critic_optim": OptimConfig(lr=0.1)}, {"critic": "separate"}),
        (PPOConfig, "value_weight", {"value_weight": 0.4}, {"critic": "shared"}),
        (SFTConfig, "learn", {"learn": "last"}, {"path": "talks.jsonl"}),
        (PPOConfig, "kl_horizon", {"kl_horizon": 60}, {"kl_target": 2.0}),
    ],
)
def test_what_is_set_must_do_something(kind: type, key: str, idle: dict[str, Any], used: dict[str, Any]) -> None:
    shown = "set" if key == "critic_optim" else f"got {idle[key]}"
    with pytest.raises(ConfigError, match=rf"^{key}: {shown}, but .*; or leave {key} out$"):
        kind(steps=1, **idle)
    kind(steps=1, **{**idle, **used})


def asked(index: int) -> Prompt:
    return Prompt((index,), lambda completion: {"reward": float(len(completion.token_ids))})


def flat(role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
    return Output(logprobs=-batch.mask)


def test_dropout_is_refused() -> None:
    check_policy(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    check_policy(nn.Sequential(nn.Dropout(0.1)).eval())
    noisy = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    with pytest.raises(ConfigError, match=r"^dropout: 1 drops 0\.1"):
        check_policy(noisy)
    pair, liked = Pair((1,), (2,), (3,)), [Feedback((1,), (2,), True), Feedback((1,), (3,), False)]
    ctx = Context(models={"policy": noisy}, ops=LocalOps(), device=torch.device("cpu"), seed=0, score=flat)
    objectives = [
        Preference([pair], DPOLoss(0.1, 0.0), 1, 64),
        KTO(liked, KTOConfig(steps=1, answers=2)),
        OnlineDPO(asked, OnlineDPOConfig(steps=1, prompts=1), (2,)),
        GRPO(asked, GRPOConfig(steps=1, prompts=1), (2,)),
        PPO(asked, PPOConfig(steps=1, prompts=1), (2,)),
    ]
    for objective in objectives:
        with pytest.raises(ConfigError, match=r"^dropout: "):
            objective.next_step(ctx)  # type: ignore[attr-defined]
    free = Preference([pair], DPOLoss(1.0, 0.0, "simpo"), 1, 64)  # compares the policy with nothing
    assert len(free.next_step(ctx)) == 1
