"""DPO against a computation written out with plain log-softmax, and the usual mistakes planted beside it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.batch import IGNORED, Batch, Sample, lay_out
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.output import Output
from sekkei.model.transformer import Transformer
from sekkei.objectives.kto import KTOConfig
from sekkei.objectives.preference import (
    DPOConfig,
    DPOLoss,
    Pair,
    PairingConfig,
    Preference,
    by_pair,
    pair_batches,
    preference_accuracy,
    with_reference,
)
from sekkei.parallel.ops import LocalOps
from sekkei.train import step as step_module
from sekkei.train.objective import Context, Update
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
END = 2
BETA, NLL = 0.7, 0.3
CONFIG = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=31, qk_norm=True
)
Result = tuple[float, dict[str, Tensor]]


def make_pairs(count: int) -> list[Pair]:
    rng = random.Random(derive_seed("pairs of the test"))

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 31) for _ in range(rng.randrange(low, high)))

    return [Pair(some(2, 8), (*some(1, 14), END), (*some(1, 14), END)) for _ in range(count)]


PAIRS = make_pairs(7)


@pytest.fixture
def models() -> dict[str, Transformer]:
    return {role: build(CONFIG, seed, dtype=torch.float64) for role, seed in (("policy", 1), ("reference", 2))}


def context(models: dict[str, Transformer], seed: int = 0) -> Context:
    ops = LocalOps()
    return Context(models=models, ops=ops, device=CPU, seed=seed, score=PlainStep(models, ops, CPU, None).score)


def answer_logprobs(model: Transformer, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """log p of every token of `answer`, one sequence at a time."""
    ids = torch.tensor([[*prompt, *answer]])
    hidden = model.hidden(ids[:, :-1], torch.arange(ids.shape[1] - 1)[None], DenseAttend(None))
    logprobs = model.logits(hidden).log_softmax(-1)[0]
    first = len(prompt) - 1  # the prompt's last token predicts the answer's first
    return torch.stack([logprobs[first + i, token] for i, token in enumerate(answer)])


def written_out(models: dict[str, Transformer], pairs: Sequence[Pair]) -> Result:
    policy = models["policy"]
    policy.zero_grad(set_to_none=True)
    preference, likelihood, tokens = [], [], 0
    for pair in pairs:
        chosen = answer_logprobs(policy, pair.prompt, pair.chosen)
        rejected = answer_logprobs(policy, pair.prompt, pair.rejected)
        with torch.no_grad():
            chosen_ref = answer_logprobs(models["reference"], pair.prompt, pair.chosen).sum()
            rejected_ref = answer_logprobs(models["reference"], pair.prompt, pair.rejected).sum()
        margin = BETA * ((chosen.sum() - chosen_ref) - (rejected.sum() - rejected_ref))
        preference.append(-logsigmoid(margin))
        likelihood.append(-chosen.sum())
        tokens += len(pair.chosen)
    loss = torch.stack(preference).mean() + NLL * torch.stack(likelihood).sum() / tokens
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def ours(models: dict[str, Transformer], batches: Sequence[Batch], loss: DPOLoss | None = None) -> Result:
    models["policy"].zero_grad(set_to_none=True)
    update = Update("policy", with_reference(batches, context(models)), loss or DPOLoss(beta=BETA, nll=NLL))
    metrics = PlainStep(models, LocalOps(), CPU, None).backward(update)
    grads = {name: p.grad.clone() for name, p in models["policy"].named_parameters() if p.grad is not None}
    return metrics["loss"].total.item(), grads


def differ(found: Result, true: Result) -> float:
    """The largest relative difference of the loss and of any parameter's gradient."""
    assert set(found[1]) == set(true[1])
    errors = [abs(found[0] - true[0]) / abs(true[0])]
    errors += [float((found[1][name] - g).norm() / g.norm()) for name, g in true[1].items()]
    return max(errors)


def test_the_loss_and_every_gradient_as_written_out(models: dict[str, Transformer]) -> None:
    batches = pair_batches(PAIRS, 128)
    assert len(batches) > 1
    assert differ(ours(models, batches), written_out(models, PAIRS)) < 1e-11


def test_pairs_that_share_a_row_do_not_see_each_other(models: dict[str, Transformer]) -> None:
    true = written_out(models, PAIRS)
    packed = pair_batches(PAIRS, 10_000)
    assert len(packed) == 1
    assert packed[0].extra["sign"].shape[1] >= 4  # segments in a row: two pairs or more
    assert differ(ours(models, packed), true) < 1e-11
    alone = [lay_out([list(pair.samples(i))], 40) for i, pair in enumerate(PAIRS)]
    assert differ(ours(models, alone), true) < 1e-11


def without_end(batch: Batch) -> Batch:
    last = batch.labels == END
    return replace(batch, mask=batch.mask.masked_fill(last, 0), labels=batch.labels.masked_fill(last, IGNORED))


def shifted(batch: Batch) -> Batch:
    """Each position scores its own input instead of the next token."""
    return replace(batch, labels=torch.where(batch.labels != IGNORED, batch.ids, IGNORED))


def prompt_scored(batch: Batch) -> Batch:
    inside = batch.segments >= 0
    same = torch.roll(batch.segments, -1, 1) == batch.segments
    labels = torch.where(inside & same, torch.roll(batch.ids, -1, 1), batch.labels)
    return replace(batch, labels=labels, mask=(labels != IGNORED).float())


def signs_swapped(batch: Batch) -> Batch:
    return replace(batch, extra={**batch.extra, "sign": -batch.extra["sign"]})


def positions_run_on(batch: Batch) -> Batch:
    return replace(batch, positions=torch.arange(batch.ids.shape[1]).expand_as(batch.ids))


@pytest.mark.parametrize("mutate", [without_end, shifted, prompt_scored, signs_swapped])
def test_a_planted_mistake_is_seen(models: dict[str, Transformer], mutate: Callable[[Batch], Batch]) -> None:
    batches = [mutate(batch) for batch in pair_batches(PAIRS, 128)]
    assert differ(ours(models, batches), written_out(models, PAIRS)) > 1e-6


def test_a_missing_document_mask_is_seen(models: dict[str, Transformer], monkeypatch: pytest.MonkeyPatch) -> None:
    true = written_out(models, PAIRS)
    monkeypatch.setattr(step_module, "flat_batch", lambda *_: None)  # which has no use for the mask
    monkeypatch.setattr(step_module, "DenseAttend", lambda segments: DenseAttend(None))
    assert differ(ours(models, pair_batches(PAIRS, 128)), true) > 1e-6


def test_running_positions_do_not_matter_by_themselves(models: dict[str, Transformer]) -> None:
    """Rotary attention sees distances only, and masked segments never meet: the control of the test above."""
    batches = [positions_run_on(batch) for batch in pair_batches(PAIRS, 128)]
    assert differ(ours(models, batches), written_out(models, PAIRS)) < 1e-9


def test_step_zero_is_log_two_plus_the_likelihood(models: dict[str, Transformer]) -> None:
    models["reference"] = models["policy"]
    batches = pair_batches(PAIRS, 128)
    loss, _ = ours(models, batches, DPOLoss(beta=BETA, nll=0.0))
    assert loss == pytest.approx(math.log(2), abs=1e-15)
    with torch.no_grad():
        chosen = torch.cat([answer_logprobs(models["policy"], pair.prompt, pair.chosen) for pair in PAIRS])
    loss, _ = ours(models, batches)
    assert loss == pytest.approx(math.log(2) - NLL * chosen.mean().item(), rel=1e-12)


def test_metrics_as_counted(models: dict[str, Transformer]) -> None:
    (batch,) = with_reference(pair_batches(PAIRS, 10_000), context(models))
    out = context(models).score("policy", batch, frozenset({"logprobs"}), 1.0)
    _, metrics = DPOLoss(beta=BETA, nll=NLL).terms(out, batch, LocalOps())
    sums = {}
    with torch.no_grad():
        for role, model in models.items():
            for side in ("chosen", "rejected"):
                both = [float(answer_logprobs(model, p.prompt, getattr(p, side)).sum()) for p in PAIRS]
                sums[role, side] = torch.tensor(both, dtype=torch.float64)
    tokens = sum(len(pair.chosen) for pair in PAIRS)
    rewards = {side: BETA * (sums["policy", side] - sums["reference", side]) for side in ("chosen", "rejected")}
    expected = {
        "rewards/chosen": rewards["chosen"].mean(),
        "rewards/rejected": rewards["rejected"].mean(),
        "rewards/margins": (rewards["chosen"] - rewards["rejected"]).mean(),
        "rewards/accuracies": (rewards["chosen"] > rewards["rejected"]).double().mean(),
        "logps/chosen": sums["policy", "chosen"].mean(),
        "logps/rejected": sums["policy", "rejected"].mean(),
        "logps/accuracies": (sums["policy", "chosen"] > sums["policy", "rejected"]).double().mean(),
        "nll": -sums["policy", "chosen"].sum() / tokens,
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        found = float(metrics[name].total / metrics[name].weight)
        assert found == pytest.approx(float(value), rel=1e-7), name  # counts are float32
    assert 0 < float(expected["rewards/accuracies"]) < 1


def test_a_pair_that_equals_itself_ties(models: dict[str, Transformer]) -> None:
    models["reference"] = models["policy"]
    batches = with_reference(pair_batches(PAIRS, 10_000), context(models))
    found = preference_accuracy(batches, context(models))
    assert found["preference_accuracy"] == 0.5
    with torch.no_grad():
        ranked = [
            float(answer_logprobs(models["policy"], p.prompt, p.chosen).sum())
            > float(answer_logprobs(models["policy"], p.prompt, p.rejected).sum())
            for p in PAIRS
        ]
    assert found["ranking_accuracy"] == sum(ranked) / 7


def test_answers_are_matched_by_the_number_of_their_pair() -> None:
    rows = [[Sample(ids=[1, 2], per_segment={"sign": s, "pair": n}) for s, n in row] for row in SCATTERED]
    chosen, rejected = by_pair(torch.tensor([[10.0, 21.0, 12.0], [22.0, 20.0, 11.0]]), lay_out(rows, 3))
    assert chosen.tolist() == [10.0, 11.0, 12.0]
    assert rejected.tolist() == [20.0, 21.0, 22.0]


SCATTERED = [[(1.0, 0.0), (-1.0, 1.0), (1.0, 2.0)], [(-1.0, 2.0), (-1.0, 0.0), (1.0, 1.0)]]


def test_accuracy_by_hand() -> None:
    """Four pairs of one-token answers whose log-probabilities are given: a win, a loss, a tie, a win."""
    pairs = [Pair((5,), (10 + i,), (20 + i,)) for i in range(4)]
    policy = {10: -1.0, 20: -2.0, 11: -3.0, 21: -1.0, 12: -2.0, 22: -4.0, 13: -2.0, 23: -1.0}
    reference = {10: -2.0, 20: -2.0, 11: -2.0, 21: -2.0, 12: -1.0, 22: -3.0, 13: -6.0, 23: -1.0}

    def score(role: str, batch: Batch, wants: frozenset[str], temperature: float) -> Output:
        table = torch.zeros(40)
        for token, value in (policy if role == "policy" else reference).items():
            table[token] = value
        return Output(logprobs=table[batch.labels.clamp(min=0)] * (batch.labels >= 0))

    ctx = Context(models={}, ops=LocalOps(), device=CPU, seed=0, score=score)
    batches = with_reference([lay_out([list(pair.samples(i))], 4) for i, pair in enumerate(pairs)], ctx)
    assert batches[1].extra["ref"].tolist() == [[-2.0, -2.0]]
    assert preference_accuracy(batches, ctx) == {"preference_accuracy": 2.5 / 4, "ranking_accuracy": 2 / 4}


def drawn(objective: Preference, ctx: Context, steps: int) -> list[tuple[int, ...]]:
    """The prompts of the pairs of the next steps, in the order of their numbers."""
    found = []
    for _ in range(steps):
        (update,) = objective.next_step(ctx)
        for batch in update.micro_batches:
            for b, s in (batch.extra["sign"] > 0).nonzero().tolist():
                number = int(batch.extra["pair"][b, s])
                found.append((number, tuple(batch.ids[b][batch.segments[b] == s].tolist())))
    return [ids for _, ids in found]


def test_every_pass_shuffles_all_pairs(models: dict[str, Transformer]) -> None:
    def new() -> Preference:
        return Preference(PAIRS, DPOLoss(beta=BETA, nll=NLL), pairs_per_step=7, micro_tokens=128)

    ctx = context(models, seed=4)
    objective = new()
    (update,) = objective.next_step(ctx)
    assert "ref" in update.micro_batches[0].extra
    passes = [sorted(drawn(new(), ctx, 1)), *(sorted(drawn(objective, ctx, 1)) for _ in range(2))]
    whole = sorted((*p.prompt, *p.chosen)[:-1] for p in PAIRS)
    assert passes == [whole] * 3
    orders = {tuple(objective.passes.index(4, 7 * epoch + i) for i in range(7)) for epoch in range(3)}
    assert len(orders) == 3
    assert [new().passes.index(4, i) for i in (9, 2, 13)] == [objective.passes.index(4, i) for i in (9, 2, 13)]
    assert [new().passes.index(5, i) for i in range(7)] != [new().passes.index(4, i) for i in range(7)]


def test_a_resume_goes_on_where_it_stopped(models: dict[str, Transformer]) -> None:
    def new(pairs: Sequence[Pair] = PAIRS) -> Preference:
        return Preference(pairs, DPOLoss(beta=BETA, nll=NLL), pairs_per_step=3, micro_tokens=10_000)

    ctx = context(models)
    whole, first, second = new(), new(), new()
    expected = [drawn(whole, ctx, 1) for _ in range(6)]
    assert [drawn(first, ctx, 1) for _ in range(2)] == expected[:2]
    second.load_state_dict(first.state_dict())
    assert [drawn(second, ctx, 1) for _ in range(4)] == expected[2:]
    with pytest.raises(ConfigError, match="other pairs"):
        new(PAIRS[1:]).load_state_dict(first.state_dict())


def test_no_pairs() -> None:
    with pytest.raises(ConfigError, match="no preference pairs"):
        Preference([], DPOLoss(beta=BETA, nll=NLL), 1, 1)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DPOConfig, {"steps": 0}),
        (DPOConfig, {"steps": 1, "beta": 0.0}),
        (DPOConfig, {"steps": 1, "pairs": 0}),
        (PairingConfig, {"samples": 1}),
        (PairingConfig, {"temperature": 0.0}),
        (PairingConfig, {"refusals": 1.0}),
        (PairingConfig, {"refusals": math.nan}),
        (KTOConfig, {"steps": 1, "beta": 0.0}),
        (KTOConfig, {"steps": 1, "liked": -1.0}),
        (KTOConfig, {"steps": 1, "disliked": math.inf}),
        (KTOConfig, {"steps": 1, "answers": 1}),
        (PairingConfig, {"per_prompt": 0}),
    ],
)
def test_bad_settings(kind: type, values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"^{list(values)[-1]}: "):
        kind(**values)
