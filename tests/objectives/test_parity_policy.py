"""Parity of the policy loss with TRL's GRPO and RLOO trainers, and mutants of it that must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sekkei.data.batch import IGNORED, Batch, Sample
from sekkei.model.attention import DenseAttend
from sekkei.model.output import Output
from sekkei.objectives.grpo import GRPOConfig
from sekkei.objectives.policy_loss import GRPOLoss
from sekkei.objectives.sft import pack_samples
from sekkei.parallel.ops import LocalOps
from sekkei.train import step as step_module
from sekkei.train.shared_prompts import Flat, flat_batch

LIMIT = 1e-5
END, LONGEST = 1, 12


def batches_of(golden: Any, case: str, micro_tokens: int = 128) -> list[Batch]:
    """TRL's six answers, packed, with the log-probs of an older policy, a reference and a sampler."""
    settings = golden.settings(case)
    known = golden.inputs[f"logprobs_{float(settings.get('temperature', 1.0))}"]
    samples = []
    for i, row in enumerate(golden.inputs["answers"]):
        prompt, answer = row["prompt"], row["answer"]
        before, n = [0.0] * len(prompt), len(answer)
        tokens = {"reference": known["ref"][i], "sampled": known["sampled"][i]}
        if settings.get("old", True):
            tokens["old"] = known["old"][i]
        tokens["advantages"] = [golden.inputs["advantages"][i]] * n
        samples.append(
            Sample(
                ids=[*prompt, *answer],
                weights=before + [1.0] * n,
                per_token={name: [*before, *values] for name, values in tokens.items()},
                per_segment={"length": float(n), "number": float(i)},
            )
        )
    return pack_samples(samples, micro_tokens)


def loss_of(golden: Any, case: str) -> GRPOLoss:
    """Our point for TRL's settings."""
    s = golden.settings(case)
    if case == "rloo":
        return GRPOLoss(s["epsilon"], s["epsilon_high"], 1.0, ratio="sequence_sum", aggregation="sequence")
    kind, low = s["loss_type"], s.get("epsilon", 0.2)
    high = s.get("epsilon_high", low)
    return GRPOLoss(
        low,
        high - 1 if kind == "cispo" else high,  # TRL gives the bound of the weight itself
        s.get("temperature", 1.0),
        ratio=s.get("importance_sampling_level", "token"),
        clip="cispo" if kind == "cispo" else "ppo",
        aggregation={"grpo": "sequence", "dr_grpo": "constant"}.get(kind, "token"),  # type: ignore[arg-type]
        dual_clip=s.get("delta", 0.0),
        max_tokens=LONGEST,
        kl=s.get("beta", 0.0),
        estimator="k3_ratio" if s.get("use_bias_correction_kl", True) else "k3",  # TRL's default, not the paper's
        correction=s.get("correction", "none"),
    )


CASES = [
    "grpo_grpo",
    "grpo_dr_grpo",
    "grpo_bnpo",
    "grpo_dapo",
    "grpo_cispo",
    "grpo_clip_higher",
    "grpo_dual_clip",
    "grpo_gspo",
    "grpo_gspo_dapo",
    "grpo_kl_grpo",
    "grpo_kl_dapo",
    "grpo_kl_ratio_grpo",
    "grpo_kl_ratio_dapo",
    "grpo_kl_on_policy",
    "grpo_k3_on_policy",
    "grpo_temperature",
    "grpo_token_truncate",
    "grpo_token_mask",
    "grpo_sequence_truncate",
    "grpo_sequence_mask",
    "rloo",
]


@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_every_gradient_are_those_of_trl(golden: Any, case: str) -> None:
    loss = loss_of(golden, case)
    one_row, rows = batches_of(golden, case, 1024), batches_of(golden, case, 1)
    assert len(one_row) == 1
    for batches in (one_row, rows):
        assert golden.error(case, golden.context(), batches, loss) < LIMIT


def test_every_case_of_the_file_is_compared(golden: Any) -> None:
    assert {name for name in golden.results["cases"] if name.startswith(("grpo", "rloo"))} == set(CASES)


def test_a_split_into_micro_batches_changes_nothing(golden: Any) -> None:
    """TRL averages the means of micro-batches; here sums are divided by the global count."""
    samples = batches_of(golden, "grpo_grpo", 1024)[0]
    parts = [
        replace(samples, mask=samples.mask * keep, extra={**samples.extra, "length": samples.extra["length"] * own})
        for keep, own in halves(samples)
    ]
    for case in ("grpo_grpo", "grpo_dapo", "grpo_dr_grpo"):
        assert golden.error(case, golden.context(), parts, loss_of(golden, case)) < LIMIT


def halves(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Masks of tokens and of segments: the first two answers, and the others."""
    numbers = torch.nn.functional.pad(batch.extra["number"], (1, 0)).gather(1, batch.segments + 1)
    first = batch.extra["number"] < 2
    return [((numbers < 2).float(), first.float()), ((numbers >= 2).float(), 1 - first.float())]


def no_end(batch: Batch) -> Batch:
    last = batch.labels == END
    return replace(batch, mask=batch.mask.masked_fill(last, 0), labels=batch.labels.masked_fill(last, IGNORED))


def shifted_left(batch: Batch) -> Batch:
    return replace(batch, labels=torch.where(batch.labels != IGNORED, batch.ids, IGNORED))


def shifted_right(batch: Batch) -> Batch:
    return replace(batch, labels=torch.where(batch.labels != IGNORED, batch.labels.roll(-1, 1).clamp(min=0), IGNORED))


def advantages_shifted(batch: Batch) -> Batch:
    return replace(batch, extra={**batch.extra, "advantages": batch.extra["advantages"].roll(1, 1)})


def pad_scored(batch: Batch) -> Batch:
    pad = batch.segments < 0
    extra = {**batch.extra, "advantages": batch.extra["advantages"].masked_fill(pad, 1.0)}
    return replace(batch, labels=batch.labels.masked_fill(pad, 0), mask=batch.mask.masked_fill(pad, 1), extra=extra)


def prompt_scored(batch: Batch) -> Batch:
    same = (batch.segments >= 0) & (batch.segments.roll(-1, 1) == batch.segments)
    labels = torch.where(same, batch.ids.roll(-1, 1), batch.labels)
    return replace(batch, labels=labels, mask=(labels != IGNORED).float())


BATCH_MUTANTS = [no_end, shifted_left, shifted_right, prompt_scored]


@pytest.mark.parametrize(
    ("case", "mutate"),
    [("grpo_kl_dapo", m) for m in (*BATCH_MUTANTS, advantages_shifted, pad_scored)]
    # there padding belongs to no sequence, and A is the sequence's
    + [(case, m) for case in ("grpo_gspo", "rloo") for m in BATCH_MUTANTS],
)
def test_a_mutant_of_the_batch_is_seen(golden: Any, case: str, mutate: Callable[[Batch], Batch]) -> None:
    batches = [mutate(batch) for batch in batches_of(golden, case, 1024)]
    assert golden.error(case, golden.context(), batches, loss_of(golden, case)) > 100 * LIMIT


@pytest.mark.parametrize("case", ["grpo_gspo", "rloo"])
def test_padding_never_enters_a_sequence(golden: Any, case: str) -> None:
    batches = [pad_scored(batch) for batch in batches_of(golden, case, 1024)]
    assert golden.error(case, golden.context(), batches, loss_of(golden, case)) < LIMIT


class KLSign(GRPOLoss):
    """The KL term rewards distance."""

    def terms(self, out: Output, batch: Batch, ops: Any) -> Any:
        plain, metrics = replace(GRPOLoss(**fields(self)), kl=0.0).terms(out, batch, ops)
        right, _ = GRPOLoss(**fields(self)).terms(out, batch, ops)
        return {"tokens": 2 * plain["tokens"] - right["tokens"]}, metrics


class PaddedDenominator(GRPOLoss):
    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": torch.tensor(float(batch.mask.numel()))}


def fields(loss: GRPOLoss) -> dict[str, Any]:
    return {name: getattr(loss, name) for name in loss.__dataclass_fields__}


def mutants(loss: GRPOLoss) -> dict[str, GRPOLoss]:
    other = {"token": "sequence", "sequence": "token", "constant": "token"}
    return {
        "temperature ignored": replace(loss, temperature=1.0),
        "no clip": replace(loss, clip="none", dual_clip=0.0),
        "clip not higher": replace(loss, clip_high=loss.clip_low),
        "KL sign": KLSign(**fields(loss)),
        "KL forgotten": replace(loss, kl=0.0),
        "KL of another kind": replace(loss, estimator="k2"),
        "KL times the ratio": replace(loss, estimator="k3_ratio"),
        "ratio of another level": replace(loss, ratio="sequence" if loss.ratio == "token" else "token"),
        "another mean": replace(loss, aggregation=other[loss.aggregation]),  # type: ignore[arg-type]
        "padded denominator": PaddedDenominator(**fields(loss)),
        "correction forgotten": replace(loss, correction="none"),
        "dual clip forgotten": replace(loss, dual_clip=0.0),
    }


MUTANTS = {
    "grpo_clip_higher": ["no clip", "clip not higher", "another mean", "ratio of another level", "padded denominator"],
    "grpo_grpo": ["no clip", "another mean", "padded denominator"],
    "grpo_dr_grpo": ["another mean", "padded denominator"],
    "grpo_dual_clip": ["dual clip forgotten"],
    "grpo_gspo": ["no clip", "ratio of another level", "another mean"],
    "grpo_temperature": ["temperature ignored", "KL sign", "KL forgotten", "KL of another kind"],
    "grpo_kl_dapo": ["KL sign", "KL forgotten", "KL times the ratio"],
    "grpo_k3_on_policy": ["KL sign", "KL times the ratio"],
    "grpo_token_truncate": ["correction forgotten"],
    "grpo_sequence_mask": ["correction forgotten"],
}


@pytest.mark.parametrize(("case", "name"), [(case, name) for case, names in MUTANTS.items() for name in names])
def test_a_mutant_of_the_loss_is_seen(golden: Any, case: str, name: str) -> None:
    mutant = mutants(loss_of(golden, case))[name]
    assert golden.error(case, golden.context(), batches_of(golden, case), mutant) > 100 * LIMIT


def test_a_kl_of_equal_value_may_have_another_gradient(golden: Any) -> None:
    """On policy k3 and k3 times the ratio are the same number; the loss's value cannot tell them apart."""
    first, second = (golden.results["cases"][case]["loss"] for case in ("grpo_k3_on_policy", "grpo_kl_on_policy"))
    assert first == pytest.approx(second, rel=1e-12)
    names = [name.partition("/")[2] for name in golden.gradients if name.startswith("grpo_kl_on_policy/")]
    one, other = (
        torch.cat([golden.gradients[f"{case}/{name}"].flatten() for name in names])
        for case in ("grpo_k3_on_policy", "grpo_kl_on_policy")
    )
    assert float((one - other).norm() / other.norm()) > 0.01


def test_a_prompt_computed_once_is_trls_and_a_hidden_one_is_seen(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batches_of(golden, "grpo_dapo", 1024)
    assert all(flat_batch(batch, torch.device("cpu")) is not None for batch in batches)
    case = (golden.context(), batches, loss_of(golden, "grpo_dapo"))
    assert golden.error("grpo_dapo", *case) < LIMIT

    def blind(batch: Batch, device: torch.device) -> Flat | None:
        flat = flat_batch(batch, device)
        assert flat is not None
        for part in flat.attend.parts:
            part.sees[..., : part.sees.shape[-1] - part.sees.shape[-2]] = False  # answers see themselves only
        return flat

    monkeypatch.setattr(step_module, "flat_batch", blind)
    assert golden.error("grpo_dapo", *case) > 100 * LIMIT


def test_a_missing_document_mask_is_seen(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batches_of(golden, "grpo_dapo", 1024)
    monkeypatch.setattr(step_module, "flat_batch", lambda *_: None)  # which has no use for the mask
    monkeypatch.setattr(step_module, "DenseAttend", lambda segments: DenseAttend(None))
    assert golden.error("grpo_dapo", golden.context(), batches, loss_of(golden, "grpo_dapo")) > 100 * LIMIT


def test_sequence_token_has_the_sequences_gradient(golden: Any) -> None:
    """GSPO-token with one advantage per answer is GSPO (eq. 15 of the paper), by value and gradient."""
    loss = replace(loss_of(golden, "grpo_gspo"), ratio="sequence_token")
    assert golden.error("grpo_gspo", golden.context(), batches_of(golden, "grpo_gspo"), loss) < LIMIT


def test_metrics_of_a_corrected_step(golden: Any) -> None:
    (batch,) = batches_of(golden, "grpo_sequence_mask", 1024)
    ctx, loss = golden.context(), loss_of(golden, "grpo_sequence_mask")
    out = ctx.score("policy", batch, loss.wants, 1.0)
    _, metrics = loss.terms(out, batch, LocalOps())
    means = {name: float(m.total / m.weight) for name, m in metrics.items()}
    gap = (batch.extra["old"] - batch.extra["sampled"]) * batch.mask
    sums = LocalOps().sequence_sum(gap, batch.segments, batch.extra["length"].shape[1])
    answers = batch.extra["length"] > 0
    ratios = sums[answers].exp()
    lengths = batch.extra["length"][answers]
    outside = (ratios < 0.5) | (ratios > 2)
    assert means["correction/ratio"] == pytest.approx(float((ratios * lengths).sum() / lengths.sum()), rel=1e-5)
    assert means["correction/cut"] == pytest.approx(float((outside * lengths).sum() / lengths.sum()), rel=1e-5)
    assert 0 < means["correction/cut"] < 1
    assert {"kl", "approx_kl", "clip_fraction/low", "clip_fraction/high", "engine_gap", "entropy"} <= set(means)


def test_named_points_are_those_compared(golden: Any) -> None:
    """The recipe's names give the losses whose parity is shown above, up to the numbers in them."""
    names = {"grpo": "grpo_kl_grpo", "dr_grpo": "grpo_dr_grpo", "dapo": "grpo_clip_higher", "gspo": "grpo_gspo",
             "cispo": "grpo_cispo", "rloo": "rloo", "token": "grpo_dapo",
             "grpo_k3_ratio": "grpo_kl_ratio_grpo"}  # fmt: skip
    for variant, case in names.items():
        made = GRPOConfig(steps=1, variant=variant, updates=2).make_loss()  # type: ignore[arg-type]
        ours = loss_of(golden, case)
        for key in ("ratio", "clip", "aggregation", "estimator"):
            if key != "estimator" or ours.kl:
                assert getattr(made, key) == getattr(ours, key), (variant, key)
