"""Named points of the GRPO family: which advantage, ratio, clip, aggregation and KL each published method is.

    token         what the recipes use: GRPO's advantage, the mean over all tokens, no KL
    grpo          Shao et al. 2024: per-sequence means, k3 in the loss         dr_grpo   Liu et al. 2025: unbiased
    grpo_k2, grpo_k3_ratio   the same with k2 in the loss, and with k3 times the ratio, as TRL has it since 1.1
    dapo          Yu et al. 2025: clip higher, token mean, groups with spread  gspo      Zheng et al. 2025: sequences
    gspo_token    the same with a gradient per token (section 4.3)
    cispo         MiniMax-M1 2025: clipped weight, every token keeps a gradient
    rloo          Ahmadian et al. 2024, as in TRL: whole answers, k1 in the reward
    reinforce_pp  Hu 2025: one baseline for the whole batch, k1 per token in the reward

Combinations that compute something else than they seem to are refused with the reason. DAPO's overlong shaping is
`overlong_buffer` of the config (the paper: a fifth of max_tokens), because it needs a length.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sekkei.core.errors import ConfigError
from sekkei.objectives.advantages import Advantage
from sekkei.objectives.policy_loss import Aggregation, Clip, Estimator, Ratio
from sekkei.objectives.ranges import check_ranges

Variant = Literal[
    "token",
    "grpo",
    "grpo_k2",
    "grpo_k3_ratio",
    "dr_grpo",
    "dapo",
    "gspo",
    "gspo_token",
    "cispo",
    "rloo",
    "reinforce_pp",
]
KLPlace = Literal["loss", "reward"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method. The factors are explained in advantages.py and policy_loss.py."""

    advantage: Advantage = "group_std"
    ratio: Ratio = "token"
    clip: Clip = "ppo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "token"
    kl: float = 0.0
    estimator: Estimator = "k3"
    kl_place: KLPlace = "loss"
    dynamic_sampling: bool = False


@dataclass(frozen=True, kw_only=True)
class Algebra:
    """A point of one's own: the factors that differ from the variant's; ε, β, dynamic sampling are the config's keys.

    algebra: {advantage: group_mean, ratio: sequence, aggregation: constant} beside `variant: token` is Dr.GRPO with
    the ratio of GSPO. What a combination may not be, `check_point` says.
    """

    advantage: Advantage | None = None
    ratio: Ratio | None = None
    clip: Clip | None = None
    aggregation: Aggregation | None = None
    estimator: Estimator | None = None
    kl_place: KLPlace | None = None

    def __post_init__(self) -> None:
        if not self._chosen():
            names = ", ".join(f.name for f in fields(self))
            raise ConfigError("algebra", f"names no factor; there are {names}: leave it out, or set one")

    def of(self, point: Point) -> Point:
        """The point with these factors."""
        return replace(point, **self._chosen())

    def _chosen(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


POINTS: dict[str, Point] = {
    "token": Point(),
    "grpo": Point(aggregation="sequence", kl=0.04),
    "grpo_k2": Point(aggregation="sequence", kl=0.04, estimator="k2"),
    "grpo_k3_ratio": Point(aggregation="sequence", kl=0.04, estimator="k3_ratio"),
    "dr_grpo": Point(advantage="group_mean", aggregation="constant"),
    "dapo": Point(clip_high=0.28, dynamic_sampling=True),
    "gspo": Point(ratio="sequence", clip_low=3e-4, clip_high=4e-4, aggregation="sequence"),
    "gspo_token": Point(ratio="sequence_token", clip_low=3e-4, clip_high=4e-4, aggregation="sequence"),
    "cispo": Point(
        clip="cispo", clip_high=4.0
    ),  # ScaleRL (Khatri et al. 2025): weights up to 4 to 8 make no difference
    "rloo": Point(
        advantage="leave_one_out",
        ratio="sequence_sum",
        aggregation="sequence",
        kl=0.05,
        estimator="k1",
        kl_place="reward",
    ),
    "reinforce_pp": Point(advantage="batch_std", kl=0.01, estimator="k1", kl_place="reward"),
}


def point_of(variant: Variant) -> Point:
    return POINTS[variant]


def check_clip(low: float, high: float) -> None:
    """ε of the ratio: 1 - low must stay above 0 and below 1, 1 + high above 1."""
    if not 0 < low < 1:
        raise ConfigError("clip_low", f"got {low}, must be between 0 and 1, both ends out")
    if not high > 0:
        raise ConfigError("clip_high", f"got {high}, must be > 0")


def check_point(point: Point, variant: str, updates: int) -> None:
    """Refuse what computes something else than it seems to.

    Args:
        updates: optimizer steps per rollout.
    Raises:
        ConfigError: with the reason.
    """
    check_clip(point.clip_low, point.clip_high)
    check_ranges(point, not_negative=("kl",))
    if point.ratio == "sequence_sum" and point.aggregation != "sequence":
        raise ConfigError(
            "aggregation",
            f"got {point.aggregation} with ratio: sequence_sum: the ratio of a whole answer would count once for each "
            "of its tokens, so long answers weigh by their length squared; take sequence",
        )
    if point.ratio.startswith("sequence") and point.ratio != "sequence_sum" and updates == 1:
        raise ConfigError(
            "updates",
            f"got 1 with minibatches=1: before the first update every ratio is 1, so {variant} would be plain "
            "REINFORCE and its clip idle; take updates or minibatches >= 2",
        )
    if point.kl and point.kl_place == "loss" and point.estimator == "k1":
        raise ConfigError("kl", "k1 in the loss has an expected gradient of 0: take k2, k3 or k3_ratio, or the reward")
    if point.kl and point.kl_place == "reward" and point.estimator == "k3_ratio":
        raise ConfigError("kl", "k3_ratio in the reward is k3: the ratio is 1 when rewards are given; take k1")
    if point.advantage == "batch_std" and point.kl and point.ratio in ("sequence", "sequence_sum"):
        raise ConfigError(
            "kl", "tokens of one answer have advantages of their own, a sequence has one ratio: take token"
        )
