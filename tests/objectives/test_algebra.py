"""The GRPO family as one algebra: points composed in a recipe, and the combinations and numbers that are refused."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sekkei.core.config import from_mapping, to_mapping
from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch
from sekkei.model.output import Output
from sekkei.objectives.advantages import group_advantages
from sekkei.objectives.grpo import GRPOConfig
from sekkei.objectives.variants import POINTS, Algebra, Point, check_point
from sekkei.parallel.ops import LocalOps


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("updates", {"variant": "gspo"}),
        ("updates", {"variant": "gspo_token"}),
        ("clip_low", {"clip_low": 1.0}),
        ("kl", {"kl": -0.1}),
        ("dual_clip", {"dual_clip": 1.1}),
        ("dual_clip", {"dual_clip": 3.0, "variant": "cispo", "clip_high": 0.2}),
        ("correction_low", {"correction_low": 1.5}),
        ("overlong_buffer", {"overlong_buffer": 129}),
        ("minibatches", {"minibatches": 33}),
        ("max_refills", {"max_refills": 0}),
        ("clip_high", {"clip_high": 0.0}),
        ("kl", {"kl": math.nan}),
        ("overlong_penalty", {"overlong_penalty": -1.0}),
        ("reward_model", {"reward_model": -0.5}),
        ("temperature", {"temperature": 1e9}),
        ("correction_high", {"correction_high": math.inf}),
        ("clip_low", {"variant": "cispo", "clip_low": 0.1}),
        ("clip_high", {"algebra": Algebra(clip="none"), "clip_high": 0.1}),
        ("updates", {"algebra": Algebra(ratio="sequence")}),
        ("aggregation", {"algebra": Algebra(ratio="sequence_sum")}),
        ("kl", {"algebra": Algebra(estimator="k2")}),
        ("kl", {"algebra": Algebra(kl_place="reward")}),
        ("kl", {"algebra": Algebra(estimator="k1"), "kl": 0.1}),
        ("kl", {"algebra": Algebra(estimator="k3_ratio", kl_place="reward"), "kl": 0.1}),
        ("dual_clip", {"algebra": Algebra(clip="none"), "dual_clip": 3.0}),
    ],
)
def test_wrong_combinations_are_refused(key: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        GRPOConfig(steps=1, **settings)


def test_every_named_point_can_be_composed() -> None:
    """A point is its factors: given one by one upon "token", they are the named one."""
    for name, point in POINTS.items():
        chosen = {f.name: getattr(point, f.name) for f in dataclasses.fields(Algebra)}
        if not point.kl:
            chosen |= {"estimator": None, "kl_place": None}
        bounds: dict[str, Any] = {"clip_high": point.clip_high} | (
            {} if point.clip == "cispo" else {"clip_low": point.clip_low}
        )
        config = GRPOConfig(
            steps=1,
            updates=2,
            algebra=Algebra(**chosen),
            kl=point.kl,
            dynamic_sampling=point.dynamic_sampling,
            **bounds,
        )
        assert config.point == replace(point, clip_low=config.point.clip_low), name
        assert config.make_loss() == GRPOConfig(steps=1, updates=2, variant=name).make_loss(), name  # type: ignore[arg-type]


def test_a_composed_point_by_hand() -> None:
    """From a recipe's words to the loss: mean-only advantages, sequence ratios, k2 in the loss, a constant divisor."""
    words = {
        "steps": 1, "updates": 2, "max_tokens": 8, "clip_low": 0.05, "clip_high": 0.1, "kl": 0.3,
        "algebra": {"advantage": "group_mean", "ratio": "sequence", "aggregation": "constant", "estimator": "k2"},
    }  # fmt: skip
    config = from_mapping(GRPOConfig, words)
    advantages = group_advantages([1.0, 2.0], config.point.advantage)
    assert advantages == [-0.5, 0.5]
    old, new, ref = [-1.0, -2.0, -1.5], [-0.9, -2.3, -1.2], [-1.1, -2.0, -1.0]  # answer 1: two tokens, answer 2: one
    each = torch.ones(1, 3, dtype=torch.float64)
    batch = Batch(
        ids=torch.zeros(1, 3, dtype=torch.int64),
        labels=torch.zeros(1, 3, dtype=torch.int64),
        mask=each,
        positions=torch.tensor([[0, 1, 0]]),
        segments=torch.tensor([[0, 0, 1]]),
        extra={
            "advantages": torch.tensor([[-0.5, -0.5, 0.5]], dtype=torch.float64),
            "length": torch.tensor([[2.0, 1.0]], dtype=torch.float64),
            **{
                name: torch.tensor([x], dtype=torch.float64)
                for name, x in (("old", old), ("sampled", old), ("reference", ref))
            },
        },
    )
    loss = config.make_loss()
    out = Output(logprobs=torch.tensor([new], dtype=torch.float64), entropy=each)
    terms, _ = loss.terms(out, batch, LocalOps())
    found = float(terms["tokens"]) / float(loss.units(batch)["tokens"])
    first, second = math.exp((0.1 - 0.3) / 2), math.exp(0.3)  # the geometric mean of the answer's ratios
    gains = 2 * min(first * -0.5, max(first, 0.95) * -0.5) + min(second * 0.5, 1.1 * 0.5)
    kl = sum((a - b) ** 2 / 2 for a, b in zip(new, ref, strict=True))
    assert found == pytest.approx((-gains + 0.3 * kl) / (2 * 8), rel=1e-12)


def test_a_recipe_without_an_algebra_keeps_its_hash() -> None:
    assert "algebra" not in to_mapping(GRPOConfig(steps=1))
    own = GRPOConfig(steps=1, algebra=Algebra(advantage="group_mean"))
    assert from_mapping(GRPOConfig, to_mapping(own)) == own
    with pytest.raises(ConfigError, match=r"^algebra: names no factor"):
        Algebra()


def test_biased_or_empty_kl_terms_are_refused() -> None:
    for point, words in (
        (Point(kl=0.1, estimator="k1"), "expected gradient of 0"),
        (Point(kl=0.1, estimator="k3_ratio", kl_place="reward"), "the ratio is 1"),
        (replace(POINTS["reinforce_pp"], ratio="sequence"), "one ratio"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_point(point, "x", 2)
    for name, point in POINTS.items():
        check_point(point, name, 2)
