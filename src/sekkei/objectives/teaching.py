"""Which answers of a rollout teach: those without an advantage are weighed, not computed.

A group that is all right or all wrong has advantage 0 on every token, so its gradient is 0 exactly, but it counts in
the loss's denominator. It need not pass through the model for that. With U the loss's units (tokens or answers),

    Σ_taught A ∇s / U_all  =  Σ_taught (A · U_taught / U_all) ∇s / U_taught

so the taught answers' advantages are scaled, and every loss of the algebra is linear in them (clips included, as the
scale is positive). Late in a run most groups are flat, and a step costs a fraction of what it did. It does not hold
where a term has a gradient without an advantage (KL in the loss) or where advantages come after scoring (late.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sekkei.data.batch import Sample
from sekkei.objectives.policy_loss import Aggregation


def taught(samples: Sequence[Sample], aggregation: Aggregation) -> list[Sample]:
    """The samples that have a gradient, their advantages scaled for those left out; the first one if none has.

    Args:
        samples: of `group_samples`. aggregation: of the loss, which says what its denominator counts.
    """
    kept = [
        sample for sample in samples if any(a and w for a, w in zip(_advantages(sample), _weights(sample), strict=True))
    ]
    if not kept:  # a step of gradient 0: moments and schedules move on
        return list(samples[:1])
    if len(kept) == len(samples):
        return list(samples)
    share = sum(_units(sample, aggregation) for sample in kept) / sum(_units(s, aggregation) for s in samples)
    return [_scaled(sample, share) for sample in kept]


def _advantages(sample: Sample) -> Sequence[float]:
    return sample.per_token["advantages"]


def _weights(sample: Sample) -> Sequence[float]:
    return sample.weights if sample.weights is not None else [1.0] * len(sample.ids)


def _units(sample: Sample, aggregation: Aggregation) -> float:
    return sum(_weights(sample)) if aggregation == "token" else float(sample.per_segment["length"] > 0)


def _scaled(sample: Sample, share: float) -> Sample:
    scaled = [advantage * share for advantage in _advantages(sample)]
    return replace(sample, per_token={**sample.per_token, "advantages": scaled})
