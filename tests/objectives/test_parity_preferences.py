"""Parity with TRL of every preference loss that it has, packed here and padded there; by hand what it lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from sekkei.core.errors import ConfigError
from sekkei.data.batch import IGNORED, Batch, Sample, lay_out
from sekkei.model.attention import DenseAttend
from sekkei.model.output import Output
from sekkei.objectives.kto import KTO, Feedback, KTOConfig, KTOLoss, mismatched_kl
from sekkei.objectives.online_dpo import OnlineDPOConfig
from sekkei.objectives.pair_loss import PER_TOKEN_REWARD, DPOLoss, PairKind, log_odds
from sekkei.objectives.preference import (
    DPOConfig,
    Pair,
    Preference,
    pair_batches,
    reference_logprobs,
    sound_pairs,
    with_reference,
)
from sekkei.objectives.pretrain import TokenLoss
from sekkei.objectives.sft import SFT, pack_samples
from sekkei.parallel.ops import LocalOps
from sekkei.train import step as step_module

LIMIT = 1e-5
END = 1
PAIR_LOSSES = {
    "dpo_sigmoid": DPOLoss(0.4, 0.0),
    "dpo_robust": DPOLoss(0.4, 0.0, "robust", smoothing=0.1),
    "dpo_ipo": DPOLoss(0.4, 0.0, "ipo_mean"),
    "dpo_hinge": DPOLoss(0.4, 0.0, "hinge"),
    "dpo_sigmoid_sft": DPOLoss(0.4, 0.3),
    "cpo_sigmoid": DPOLoss(1.5, 1.0, "cpo"),
    "cpo_simpo": DPOLoss(1.5, 0.0, "simpo", gamma=0.6),
    "cpo_hinge": DPOLoss(1.5, 0.0, "hinge"),  # with a reference of 0: `without_reference`
    "orpo": DPOLoss(0.3, 1.0, "orpo"),
    "orpo_odds": DPOLoss(0.3, 0.0, "orpo"),  # the odds' term by itself, on prompts of several tokens
}
KTO_CASES = {"kto": ("policy", "reference"), "kto_clamped": ("reference", "policy")}


def pairs_of(golden: Any, key: str = "pairs") -> list[Pair]:
    return [Pair(tuple(p["prompt"]), tuple(p["chosen"]), tuple(p["rejected"])) for p in golden.inputs[key]]


def same(batch: Batch) -> Batch:
    return batch


def pair_case(
    golden: Any, case: str, micro_tokens: int = 128, mutate: Callable[[Batch], Batch] = same
) -> tuple[Any, list[Batch], DPOLoss]:
    ctx, loss = golden.context(), PAIR_LOSSES[case]
    batches = pair_batches(pairs_of(golden, "short" if case == "orpo" else "pairs"), micro_tokens)
    batches = [mutate(batch) for batch in batches]
    if case == "cpo_hinge":
        return ctx, [without_reference(batch) for batch in batches], loss
    return ctx, with_reference(batches, ctx) if loss.needs_reference else batches, loss


def without_reference(batch: Batch) -> Batch:
    return batch.with_extra(ref=torch.zeros_like(batch.extra["sign"]))


def test_every_case_of_the_file_is_compared(golden: Any) -> None:
    """Those of policies are in test_parity_policy.py, those of reward models in test_reward.py."""
    cases = {name for name in golden.results["cases"] if not name.startswith(("grpo", "rloo", "reward"))}
    assert cases == {*PAIR_LOSSES, *KTO_CASES, "sft"}


@pytest.mark.parametrize("case", PAIR_LOSSES)
@pytest.mark.parametrize("micro_tokens", [1, 1024])
def test_a_pair_loss_is_that_of_trl(golden: Any, case: str, micro_tokens: int) -> None:
    ctx, batches, loss = pair_case(golden, case, micro_tokens)
    settings = golden.settings(case)
    assert loss.beta == settings["beta"]
    assert loss.gamma == settings.get("simpo_gamma", 0.0)
    assert golden.error(case, ctx, batches, loss) < LIMIT


def test_the_other_form_of_ipo_is_another_loss(golden: Any) -> None:
    ctx, batches, _ = pair_case(golden, "dpo_ipo")
    assert golden.error("dpo_ipo", ctx, batches, DPOLoss(0.4, 0.0, "ipo_sum")) > 0.1


def kto_error(golden: Any, case: str, mutate: Callable[[Batch], Batch] = same) -> float:
    ctx, settings = golden.context(*KTO_CASES[case]), golden.settings(case)
    rows = [Feedback(tuple(r["prompt"]), tuple(r["answer"]), r["desirable"]) for r in golden.inputs["feedback"]]
    kl = mismatched_kl(rows, ctx, 64)
    assert kl == pytest.approx(golden.results["cases"][case]["kl"], abs=1e-6)
    loss = KTOLoss(settings["beta"], settings["desirable_weight"], settings["undesirable_weight"])
    packed = [mutate(batch) for batch in pack_samples([row.sample() for row in rows], 64)]
    batches = [b.with_extra(kl=torch.full_like(b.extra["sign"], kl)) for b in with_reference(packed, ctx)]
    return float(golden.error(case, ctx, batches, loss))


@pytest.mark.parametrize("case", KTO_CASES)
def test_kto_is_that_of_trl(golden: Any, case: str) -> None:
    assert kto_error(golden, case) < LIMIT


def test_both_sides_of_the_kl_bound_are_covered(golden: Any) -> None:
    kls = [golden.results["cases"][case]["kl"] for case in ("kto", "kto_clamped")]
    assert max(kls) > 0.1  # one estimate is positive; with the models exchanged the sign turns, and 0 is taken
    assert min(kls) == 0.0


def sft_rows(golden: Any) -> list[Sample]:
    return [Sample(ids=r["ids"], weights=[float(x) for x in r["learned"]]) for r in golden.inputs["conversations"]]


def test_packed_sft_is_trls_padded_one(golden: Any) -> None:
    ctx, rows = golden.context(), sft_rows(golden)
    packed = pack_samples(rows, 1024)
    assert len(packed) == 1
    assert packed[0].ids.shape[0] < len(rows)  # conversations share rows
    padded = [lay_out([[row] for row in rows], 20)]
    apart = [lay_out([[row]], row.length) for row in rows]
    for batches in (packed, padded, apart):
        assert golden.error("sft", ctx, batches, TokenLoss()) < LIMIT


def no_end(batch: Batch) -> Batch:
    last = batch.labels == END
    return replace(batch, mask=batch.mask.masked_fill(last, 0), labels=batch.labels.masked_fill(last, IGNORED))


def shifted_left(batch: Batch) -> Batch:
    """Each position scores its own input."""
    return replace(batch, labels=torch.where(batch.labels != IGNORED, batch.ids, IGNORED))


def shifted_right(batch: Batch) -> Batch:
    """Each position scores the token after the next."""
    return replace(batch, labels=torch.where(batch.labels != IGNORED, batch.labels.roll(-1, 1).clamp(min=0), IGNORED))


def pad_scored(batch: Batch) -> Batch:
    """Padding, too, is scored and counted."""
    pad = batch.segments < 0
    return replace(batch, labels=batch.labels.masked_fill(pad, 0), mask=batch.mask.masked_fill(pad, 1))


def prompt_scored(batch: Batch) -> Batch:
    same = (batch.segments >= 0) & (batch.segments.roll(-1, 1) == batch.segments)
    labels = torch.where(same, batch.ids.roll(-1, 1), batch.labels)
    return replace(batch, labels=labels, mask=(labels != IGNORED).float())


class PerSequence(TokenLoss):
    """Means of sequences in place of the tokens' mean."""

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": torch.tensor(4.0)}

    def terms(self, out: Output, batch: Batch, ops: Any) -> Any:
        assert out.logprobs is not None
        sums = ops.sequence_sum(-out.logprobs * batch.mask, batch.segments, 4)
        counts = ops.sequence_sum(batch.mask, batch.segments, 4)
        return {"tokens": (sums / counts.clamp(min=1)).sum()}, {}


class PaddedDenominator(TokenLoss):
    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": torch.tensor(float(batch.mask.numel()))}


BATCH_MUTANTS = [no_end, shifted_left, shifted_right, prompt_scored]


@pytest.mark.parametrize("mutate", BATCH_MUTANTS)
@pytest.mark.parametrize("case", PAIR_LOSSES)
def test_a_mutant_of_a_pair_loss_is_seen(golden: Any, case: str, mutate: Callable[[Batch], Batch]) -> None:
    ctx, batches, loss = pair_case(golden, case, 1024, mutate)
    error = golden.error(case, ctx, batches, loss)
    # the sum over a prompt that both sides share cancels between them, and a prompt of one token is never predicted
    cancels = loss.nll == 0 and loss.kind not in PER_TOKEN_REWARD
    if mutate is prompt_scored and (cancels or case == "orpo"):
        assert error < LIMIT
    else:
        assert error > 100 * LIMIT


@pytest.mark.parametrize("mutate", BATCH_MUTANTS)
@pytest.mark.parametrize("case", KTO_CASES)
def test_a_mutant_of_kto_is_seen(golden: Any, case: str, mutate: Callable[[Batch], Batch]) -> None:
    assert kto_error(golden, case, mutate) > 100 * LIMIT


@pytest.mark.parametrize("case", [*PAIR_LOSSES, *KTO_CASES])
def test_padding_never_enters_a_sum_per_sequence(golden: Any, case: str) -> None:
    """Whatever its weight: segment -1 belongs to no sequence, and is no chosen token."""
    if case in KTO_CASES:
        assert kto_error(golden, case, pad_scored) < LIMIT
    else:
        ctx, batches, loss = pair_case(golden, case, 1024, pad_scored)
        assert bool((batches[0].mask[batches[0].segments < 0] == 1).all())
        assert golden.error(case, ctx, batches, loss) < LIMIT


@pytest.mark.parametrize("mutate", [*BATCH_MUTANTS, pad_scored])
def test_a_mutant_of_sft_is_seen(golden: Any, mutate: Callable[[Batch], Batch]) -> None:
    batches = [mutate(batch) for batch in pack_samples(sft_rows(golden), 1024)]
    assert golden.error("sft", golden.context(), batches, TokenLoss()) > 100 * LIMIT


@pytest.mark.parametrize("loss", [PerSequence(), PaddedDenominator()])
def test_a_wrong_mean_is_seen(golden: Any, loss: TokenLoss) -> None:
    assert golden.error("sft", golden.context(), pack_samples(sft_rows(golden), 1024), loss) > 100 * LIMIT


@pytest.mark.parametrize("case", ["sft", "dpo_sigmoid"])
def test_a_missing_document_mask_is_seen(golden: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "sft":
        ctx, batches, loss = golden.context(), pack_samples(sft_rows(golden), 1024), TokenLoss()
    else:
        ctx, batches, loss = pair_case(golden, case)
    monkeypatch.setattr(step_module, "flat_batch", lambda *_: None)  # which has no use for the mask
    monkeypatch.setattr(step_module, "DenseAttend", lambda segments: DenseAttend(None))
    assert golden.error(case, ctx, batches, loss) > 100 * LIMIT


def given(loss: DPOLoss, chosen: list[float], rejected: list[float], refs: tuple[float, float]) -> tuple[float, Tensor]:
    """The loss of one pair from the log-probabilities of its tokens, and its gradient by them."""
    pair = Pair((5,), tuple(range(10, 10 + len(chosen))), tuple(range(20, 20 + len(rejected))))
    (batch,) = pair_batches([pair], 8, [refs])
    logprobs = torch.zeros(batch.ids.shape, dtype=torch.float64)
    logprobs[batch.labels != IGNORED] = torch.tensor([*chosen, *rejected], dtype=torch.float64)
    logprobs.requires_grad_()
    terms, _ = loss.terms(Output(logprobs=logprobs), batch, LocalOps())
    total = terms["pairs"] + terms["tokens"] / float(loss.units(batch)["tokens"])
    total.backward()
    assert logprobs.grad is not None
    return float(total.detach()), logprobs.grad[batch.labels != IGNORED]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_losses_by_hand() -> None:
    """Chosen tokens -1 and -2 (reference -2.5), rejected -4 (reference -3.5): Δ = -.5 each; other numbers below."""
    chosen, rejected, refs = [-1.0, -2.0], [-4.0], (-2.5, -4.5)  # Δ_chosen = -.5, Δ_rejected = .5, h = -1
    margin = 0.5 * -1.0
    plain, flipped = -math.log(sigmoid(margin)), -math.log(sigmoid(-margin))
    assert given(DPOLoss(0.5, 0.0), chosen, rejected, refs)[0] == pytest.approx(plain)
    assert given(DPOLoss(0.5, 0.2), chosen, rejected, refs)[0] == pytest.approx(plain + 0.2 * 1.5)
    smooth = DPOLoss(0.5, 0.0, "cdpo", smoothing=0.1)
    value, gradient = given(smooth, chosen, rejected, refs)
    assert value == pytest.approx(0.9 * plain + 0.1 * flipped)
    slope = 0.5 * (-0.9 * sigmoid(-margin) + 0.1 * sigmoid(margin))  # by the chosen answer's log-probability
    assert gradient.tolist() == pytest.approx([slope, slope, -slope])
    robust = DPOLoss(0.5, 0.0, "robust", smoothing=0.1)
    assert given(robust, chosen, rejected, refs)[0] == pytest.approx((0.9 * plain - 0.1 * flipped) / 0.8)
    assert given(DPOLoss(0.5, 0.0, "ipo_sum"), chosen, rejected, refs)[0] == pytest.approx((-1.0 - 1.0) ** 2)
    assert given(DPOLoss(0.5, 0.0, "ipo_mean"), chosen, rejected, refs)[0] == pytest.approx((-0.25 - 0.5 - 1.0) ** 2)
    assert given(DPOLoss(0.5, 0.0, "hinge"), chosen, rejected, refs)[0] == pytest.approx(1.5)
    simpo = DPOLoss(2.0, 0.0, "simpo", gamma=0.5)
    assert given(simpo, chosen, rejected, refs)[0] == pytest.approx(-math.log(sigmoid(2 * (-1.5 + 4.0) - 0.5)))
    cpo = DPOLoss(0.5, 1.0, "cpo")
    assert given(cpo, chosen, rejected, refs)[0] == pytest.approx(-math.log(sigmoid(0.5 * 1.0)) + 1.5)
    odds = [math.log(p / (1 - p)) for p in (math.exp(-1.5), math.exp(-4.0))]
    orpo = -0.3 * math.log(sigmoid(odds[0] - odds[1])) + 1.5
    assert given(DPOLoss(0.3, 1.0, "orpo"), chosen, rejected, refs)[0] == pytest.approx(orpo)


def test_kto_by_hand() -> None:
    rows = [Feedback((5,), (10,), True), Feedback((5,), (11, 12), False)]
    (batch,) = pack_samples([row.sample() for row in rows], 8)
    logprobs = torch.zeros(batch.ids.shape, dtype=torch.float64)
    logprobs[batch.labels != IGNORED] = torch.tensor([-1.0, -1.0, -2.0], dtype=torch.float64)
    width = batch.extra["sign"].shape[1]
    ref = torch.tensor([[-2.0, -2.5, *[0.0] * (width - 2)]])
    batch = batch.with_extra(ref=ref, kl=torch.full((1, width), 0.3))
    terms, metrics = KTOLoss(0.5, 1.2, 0.8).terms(Output(logprobs=logprobs), batch, LocalOps())
    liked, disliked = 1 - sigmoid(0.5 * (1.0 - 0.3)), 1 - sigmoid(0.5 * (0.3 + 0.5))
    assert float(terms["answers"]) == pytest.approx(1.2 * liked + 0.8 * disliked)
    assert float(metrics["rewards/chosen"].total) == pytest.approx(0.5)
    assert int(KTOLoss(0.5).units(batch)["answers"]) == 2


def test_what_teaches_nothing_is_left_out_and_counted(golden: Any) -> None:
    good = Pair((1, 2), (3,), (4,))
    pairs = [Pair((1,), (2,), (2,)), good, Pair((1,), (), (2,)), Pair((1,), (2,), ()), Pair((1,) * 9, (2,), (3,))]
    kept, dropped = sound_pairs(pairs, longest=9)
    assert kept == [1]
    assert dropped == {"pairs/dropped_equal": 1, "pairs/dropped_empty": 2, "pairs/dropped_long": 1}
    objective = Preference(pairs, DPOLoss(0.1, 0.0), 1, 64, longest=9)
    assert objective.pairs == [good]
    assert objective.step_metrics() == dropped
    with pytest.raises(ConfigError, match=r"no preference pairs.*1 equal, 2 empty"):
        Preference(pairs[:1] + pairs[2:4], DPOLoss(0.1, 0.0), 1, 64)
    with pytest.raises(ConfigError, match="liked and disliked"):
        KTO([Feedback((1,), (2,), True), Feedback((1,), (), False)], KTOConfig(steps=1))
    assert KTO([Feedback((1,), (2,), True), Feedback((1,), (2,), False), Feedback((1,), (), False)],
               KTOConfig(steps=1)).step_metrics() == {"answers/dropped_empty": 1}  # fmt: skip


@pytest.mark.parametrize("case", PAIR_LOSSES)
def test_degenerate_pairs_give_finite_losses(golden: Any, case: str) -> None:
    """Even where they are not left out: equal sides, and certainty (log-probability 0)."""
    loss = PAIR_LOSSES[case]
    for chosen, rejected in (([-1.0], [-1.0]), ([0.0], [-3.0]), ([-3.0], [0.0]), ([0.0], [0.0])):
        value, gradient = given(loss, chosen, rejected, (-1.0, -1.0))
        assert math.isfinite(value)
        assert bool(torch.isfinite(gradient).all())
    _, gradient = given(replace(loss, nll=0.0), [-1.0, -2.0], [-1.0, -2.0], (-1.0, -1.0))
    assert gradient[:2].tolist() == pytest.approx((-gradient[2:]).tolist())  # equal sides: the two pulls cancel
    assert float(log_odds(torch.tensor(-1.0))) == pytest.approx(math.log(math.exp(-1) / (1 - math.exp(-1))))


def test_reference_scores_are_kept(golden: Any, tmp_path: Any) -> None:
    pairs, ctx = pairs_of(golden), golden.context()
    cache = tmp_path / "reference.json"
    refs = reference_logprobs(pairs, ctx, 64, "weights a", cache)
    expected = with_reference(pair_batches(pairs, 1024), ctx)[0]
    found = pair_batches(pairs, 1024, refs)[0]
    assert torch.allclose(found.extra["ref"].double(), expected.extra["ref"], atol=1e-6)
    objective = Preference(pairs, PAIR_LOSSES["dpo_sigmoid"], 5, 1024, refs)
    assert objective.needs == frozenset()
    (update,) = objective.next_step(golden.context())
    assert golden.error("dpo_sigmoid", ctx, update.micro_batches, update.loss) < LIMIT
    nobody = replace(ctx, score=lambda *_: pytest.fail("scored again"))
    assert reference_logprobs(pairs, nobody, 64, "weights a", cache) == refs
    other = reference_logprobs(pairs, golden.context("policy", "policy"), 64, "weights b", cache)
    assert other != refs
    assert Preference(pairs, PAIR_LOSSES["dpo_sigmoid"], 5, 1024).needs == {"reference"}
    assert Preference(pairs, PAIR_LOSSES["cpo_simpo"], 5, 1024).needs == frozenset()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("smoothing", {"loss": "cdpo"}),
        ("smoothing", {"loss": "robust", "smoothing": 0.5}),
        ("smoothing", {"smoothing": 0.1}),
        ("gamma", {"gamma": 0.1}),
        ("nll", {"loss": "orpo", "nll": 0.0}),
        ("beta", {"beta": -1.0}),
        ("beta", {"beta": math.nan}),
        ("gamma", {"loss": "simpo", "gamma": -1.0}),
        ("gamma", {"loss": "simpo", "gamma": math.inf}),
        ("nll", {"nll": -0.1}),
    ],
)
def test_wrong_combinations_are_refused(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        DPOConfig(steps=1, **values)


def test_a_losss_name_alone_is_the_published_loss() -> None:
    """The term against likelihood displacement is part of CPO and ORPO, and of no other unless it is set."""
    more: dict[str, dict[str, float]] = {"cdpo": {"smoothing": 0.1}, "robust": {"smoothing": 0.1}}
    for config in (DPOConfig, OnlineDPOConfig):
        for kind in get_args(PairKind):
            loss = config(steps=1, loss=kind, **more.get(kind, {})).make_loss()
            assert loss.nll == (1.0 if kind in ("cpo", "orpo") else 0.0), kind
        assert config(steps=1, nll=0.2).make_loss().nll == 0.2
        assert config(steps=1, nll=0.0).make_loss().nll == 0.0


def test_sft_counts_no_empty_row() -> None:
    """A conversation without a learned token adds nothing, and is no division by 0."""
    (update,) = SFT(lambda i: Sample(ids=[1, 2, 3], weights=[0, 0, 0]), 2, 64).next_step(None)  # type: ignore[arg-type]
    out = Output(logprobs=torch.zeros(update.micro_batches[0].ids.shape))
    terms, _ = update.loss.terms(out, update.micro_batches[0], LocalOps())
    assert float(step_module.normalised(terms, update.loss.units(update.micro_batches[0]))) == 0.0
