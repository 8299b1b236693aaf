"""The loop: a run that was killed ends as one that was not, and a step that is not finite leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sekkei.core import runlog
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.runlog import RunLog
from sekkei.core.seed import derive_seed
from sekkei.data.batch import Batch
from sekkei.data.loader import MixtureLoader
from sekkei.data.shards import Shard
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.output import Output
from sekkei.objectives.pretrain import Pretrain, TokenLoss
from sekkei.parallel.ops import LocalOps, Ops
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import MAX_SKIPPED, Hook, Loop, LoopConfig, Trainee, console_line
from sekkei.train.objective import Context, Metrics, Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

CPU = torch.device("cpu")
STEPS = 12
CONFIG = ModelConfig(
    hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=29, qk_norm=True
)


class Killed(Exception):
    """Stands for a process that ends here."""


@dataclass
class Screen:
    """A bar that remembers, and that may be where the process dies: the step is logged and not yet saved."""

    dies_at: int = -1
    seen: list[int] = field(default_factory=list)

    def update(self, done: int, text: str = "") -> None:
        self.seen.append(done)
        if done == self.dies_at:
            raise Killed


def loader() -> MixtureLoader:
    rng = np.random.Generator(np.random.PCG64(0))
    shards = {}
    for name, low in (("a", 0), ("b", 14)):
        lengths = rng.integers(2, 40, size=30)
        ids = rng.integers(low, low + 15, size=int(lengths.sum())).astype(np.uint16)
        shards[name] = Shard(ids, np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return MixtureLoader(shards, {"a": 0.75, "b": 0.25}, 24, 6 * STEPS, 1, [1] * 29)


def make_loop(
    folder: Path,
    kind: str = "adamw",
    objective: Pretrain | None = None,
    hooks: Callable[[Loop], list[tuple[int, Hook]]] | None = None,
    checkpoint_every: int = 3,
) -> Loop:
    """Everything new, as in a new process; the folder is what is left of an earlier one."""
    model = build(CONFIG, seed=0)
    optim = OptimConfig(kind=kind, lr=0.01, weight_decay=0.1)  # type: ignore[arg-type]
    step = PlainStep({"policy": model}, LocalOps(), CPU, None)
    loop = Loop(
        stage="pretrain",
        steps=STEPS,
        config=LoopConfig(checkpoint_every=checkpoint_every, keep_last=1),
        objective=objective or Pretrain(loader(), 6, 4),
        trainees={"policy": Trainee(model, Optimizer(model, optim, STEPS))},
        step=step,
        ctx=Context(models=step.models, ops=step.ops, device=CPU, seed=5, score=step.score),
        log=RunLog(folder / "metrics.jsonl"),
        checkpoints=Checkpoints(folder / "checkpoints", 1),
    )
    loop.hooks = [(2, held_out_hook(loop)), *(hooks(loop) if hooks else [])]
    return loop


def held_out_hook(loop: Loop) -> Hook:
    batch = loader().batch(0, 4)

    def hook(done: int) -> Mapping[str, float]:
        out = loop.step.score("policy", batch, frozenset({"logprobs"}), 1.0)
        assert out.logprobs is not None
        loss = float(-(out.logprobs * batch.mask).sum() / batch.mask.sum())
        return {"heldout": loss, "watched": loss}

    return hook


def weights(loop: Loop) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loop.trainees["policy"].model.named_parameters()}


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


def logged(folder: Path) -> list[runlog.Record]:
    return runlog.without_machine(runlog.read(folder / "metrics.jsonl"))


@pytest.fixture(scope="module", params=["adamw", "muon"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Loop, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    loop = make_loop(folder, request.param)
    loop.run(Screen())
    return request.param, loop, folder


def die(loop: Loop, where: str, step: int) -> Screen:
    """Let the process end in step `step` (from 0) at one of four places."""
    real_next, real_forward, real_save = loop.objective.next_step, loop.step._forward, loop._save  # type: ignore[attr-defined]
    calls: list[int] = []

    def next_step(ctx: Context) -> list[Update]:
        updates = real_next(ctx)
        if ctx.step == step:
            raise Killed
        return updates

    def forward(*passed: Any) -> Output:
        if loop.ctx.step == step and torch.is_grad_enabled():
            calls.append(step)
            if len(calls) == 2:  # in the second of two micro-batches
                raise Killed
        return real_forward(*passed)

    def save(done: int, watched: float | None) -> None:
        real_save(done, watched)
        if done > step:
            raise Killed

    if where == "data":
        loop.objective.next_step = next_step  # type: ignore[method-assign]
    elif where == "backward":
        loop.step._forward = forward  # type: ignore[attr-defined]
    elif where == "saved":
        loop._save = save  # type: ignore[method-assign]
    return Screen(dies_at=step + 1 if where == "logged" else -1)


@pytest.mark.parametrize("where", ["data", "backward", "logged", "saved"])
def test_a_killed_run_ends_as_one_that_was_not(
    where: str, tmp_path: Path, uninterrupted: tuple[str, Loop, Path]
) -> None:
    kind, whole, whole_folder = uninterrupted
    rng = random.Random(derive_seed("kill", where, kind))
    for step in sorted(rng.sample(range(STEPS), 3)):  # killed three times over
        loop = make_loop(tmp_path, kind)
        screen = die(loop, where, step)
        with pytest.raises(Killed):
            loop.run(screen)
        loop.log.close()
    last = make_loop(tmp_path, kind)
    last.run(Screen())
    assert equal(weights(last), weights(whole))
    assert logged(tmp_path) == logged(whole_folder)
    assert [record["step"] for record in logged(tmp_path)] == list(range(1, STEPS + 1))
    assert last.tokens == whole.tokens
    states = [loop.trainees["policy"].optimizer.tensors() for loop in (last, whole)]
    assert equal(*states)
    names = [sorted(path.name for path in (f / "checkpoints").iterdir()) for f in (tmp_path, whole_folder)]
    assert names[0] == names[1]
    assert f"step-{STEPS:06d}" in names[0]


def test_a_resume_that_forgets_something_is_seen(tmp_path: Path, uninterrupted: tuple[str, Loop, Path]) -> None:
    """Optimizer state, loader position and weights each matter to the comparison above."""
    kind, whole, _ = uninterrupted
    for number, forget in enumerate(("optimizer", "objective")):
        folder = tmp_path / str(number)
        loop = make_loop(folder, kind)
        with pytest.raises(Killed):
            loop.run(Screen(dies_at=8))
        loop.log.close()
        again = make_loop(folder, kind)
        if forget == "optimizer":
            again.trainees["policy"].optimizer.load_tensors = lambda tensors: None  # type: ignore[method-assign]
        else:
            again.objective.load_state_dict = lambda state: None  # type: ignore[method-assign]
        again.run(Screen())
        assert not equal(weights(again), weights(whole)), forget


def test_a_finished_run_does_nothing(uninterrupted: tuple[str, Loop, Path]) -> None:
    kind, whole, folder = uninterrupted
    again, screen = make_loop(folder, kind), Screen()
    before = (folder / "metrics.jsonl").read_bytes()
    again.run(screen)
    assert screen.seen == []
    assert equal(weights(again), weights(whole))
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_the_log_and_the_best_checkpoint(uninterrupted: tuple[str, Loop, Path]) -> None:
    _, loop, folder = uninterrupted
    records = runlog.read(folder / "metrics.jsonl")
    for record in records:
        assert {"stage", "step", "tokens", "loss", "bpb", "grad_norm", "lr", "machine"} <= set(record)
        assert ("heldout" in record) == (record["step"] % 2 == 0)
        assert "watched" not in record
        assert record["machine"]["tokens_per_second"] > 0
    assert records[-1]["tokens"] == loop.tokens
    assert records[-1]["loss"] < records[0]["loss"]
    saved = {record["step"]: record["heldout"] for record in records if record["step"] in (6, 12)}
    assert loop.checkpoints.best_value == min(saved.values())


def test_the_last_step_is_hooked_and_saved(tmp_path: Path) -> None:
    seen: list[int] = []

    def hook(done: int) -> Mapping[str, float]:
        seen.append(done)
        return {}

    loop = make_loop(tmp_path, hooks=lambda _: [(5, hook), (0, hook)], checkpoint_every=0)
    loop.run(Screen())
    assert seen == [5, 10, 12]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000012"]


@dataclass(frozen=True)
class BrokenLoss(TokenLoss):
    """The loss of pretraining with a gradient, a value or both ("loss") that are not finite."""

    what: str = "loss"

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        terms, metrics = super().terms(out, batch, ops)
        bad = {
            "loss": out.logprobs.sum() * torch.nan,
            "gradient": (out.logprobs * 0).sqrt().sum(),  # 0, with a slope of 0 · ∞
            "value": torch.tensor(torch.inf),  # a constant: no gradient of its own
        }
        return {"tokens": terms["tokens"] + bad[self.what]}, metrics


class Breaking(Pretrain):
    """Pretraining whose loss breaks at some steps."""

    def __init__(self, at: Mapping[int, str]) -> None:
        super().__init__(loader(), 6, 4)
        self.at = at

    def next_step(self, ctx: Context) -> list[Update]:
        updates = super().next_step(ctx)
        if ctx.step in self.at:
            return [replace(update, loss=BrokenLoss(what=self.at[ctx.step])) for update in updates]
        return updates


def watched_weights(loop: Loop, into: list[dict[str, Tensor]]) -> list[tuple[int, Hook]]:
    def hook(done: int) -> Mapping[str, float]:
        into.append(weights(loop))
        return {}

    return [(1, hook)]


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    at = {2: "loss", 3: "gradient", 6: "gradient", 7: "loss", 9: "value"}
    snapshots: list[dict[str, Tensor]] = []
    loop = make_loop(tmp_path, objective=Breaking(at), hooks=lambda loop: watched_weights(loop, snapshots))
    loop.run(Screen())
    records = logged(tmp_path)
    for step in range(STEPS):
        unchanged = equal(snapshots[step], snapshots[step - 1]) if step else False
        assert unchanged == (step in at)
        assert ("lr" not in records[step]) == (step in at)
        assert (records[step]["grad_norm"] is None) == (at.get(step) in ("loss", "gradient"))
        assert (records[step]["loss"] is None) == (at.get(step) in ("loss", "value"))
    skipped = {record["step"] - 1: record["skipped"] for record in records if "skipped" in record}
    assert skipped == {2: 1.0, 3: 2.0, 6: 1.0, 7: 2.0, 9: 1.0}
    assert all(bool(value.isfinite().all()) for value in weights(loop).values())


def test_three_in_a_row_stop_the_run(tmp_path: Path) -> None:
    snapshots: list[dict[str, Tensor]] = []
    at = {5: "loss", 6: "gradient", 7: "loss"}
    loop = make_loop(tmp_path, objective=Breaking(at), hooks=lambda loop: watched_weights(loop, snapshots))
    assert MAX_SKIPPED == 3
    with pytest.raises(UserError, match=r"pretrain.optim.lr") as caught:
        loop.run(Screen())
    assert "\n" not in str(caught.value)
    loop.log.close()
    assert len(snapshots) == 7  # steps 0 … 6 were finished
    assert equal(weights(loop), snapshots[4])
    resumed = make_loop(tmp_path)  # the checkpoint of step 6 is good, and counts the one step already skipped
    resumed.run(Screen())
    assert [record["step"] for record in logged(tmp_path)] == list(range(1, STEPS + 1))


def test_skips_are_counted_across_a_resume(tmp_path: Path) -> None:
    at = {4: "loss", 5: "loss", 6: "loss"}
    loop = make_loop(tmp_path, objective=Breaking(at), checkpoint_every=1)
    with pytest.raises(Killed):
        loop.run(Screen(dies_at=6))  # the newest checkpoint has seen one skip, step 4
    loop.log.close()
    again = make_loop(tmp_path, objective=Breaking(at), checkpoint_every=1)
    with pytest.raises(UserError, match="at step 6"):
        again.run(Screen())


class TwoModels(Breaking):
    """A critic that breaks at every step beside a sound policy."""

    def next_step(self, ctx: Context) -> list[Update]:
        (update,) = Pretrain.next_step(self, ctx)
        return [replace(update, role="critic", loss=BrokenLoss()), update]


def test_a_sound_policy_does_not_hide_a_broken_critic(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, objective=TwoModels({}))
    critic = build(CONFIG, seed=1)
    loop.step.models["critic"] = critic  # type: ignore[attr-defined]
    loop.trainees = {**loop.trainees, "critic": Trainee(critic, Optimizer(critic, OptimConfig(), STEPS))}
    loop.key = "tune.pretrain.ppo"  # what a user may change
    with pytest.raises(UserError, match=r"in a row at step 2; lower tune\.pretrain\.ppo\.critic_optim\.lr \(now"):
        loop.run(Screen())
    loop.log.close()
    assert [record["critic/skipped"] for record in logged(tmp_path)] == [1.0, 2.0]


class Halves(Pretrain):
    """The micro-batches of a step one by one, each an update of its own."""

    def next_step(self, ctx: Context) -> list[Update]:
        (update,) = super().next_step(ctx)
        return [replace(update, micro_batches=[batch]) for batch in update.micro_batches]


def test_a_step_s_figures_are_of_all_its_updates(tmp_path: Path) -> None:
    """With a learning rate of next to nothing both updates see the weights that the whole step sees."""
    records = []
    for name, objective in (("one", Pretrain(loader(), 6, 4)), ("several", Halves(loader(), 6, 4))):
        loop = make_loop(tmp_path / name, objective=objective)
        loop.trainees["policy"].optimizer.config = replace(loop.trainees["policy"].optimizer.config, lr=1e-12)
        loop.run(Screen())
        records.append(logged(tmp_path / name)[0])
    one, several = records
    assert len(Halves(loader(), 6, 4).next_step(loop.ctx)) == 2
    assert several["bpb"] == pytest.approx(one["bpb"], rel=1e-6), "bytes weigh, not updates"
    batches = Halves(loader(), 6, 4).next_step(loop.ctx)
    alone = []
    for number, update in enumerate(batches):
        step = make_loop(tmp_path / str(number)).step.backward(update)
        alone.append(float(step["loss"].total))
    assert several["loss"] == pytest.approx(sum(alone) / 2, rel=1e-6)
    assert alone[0] != pytest.approx(alone[1], rel=1e-3)


def test_gradients_are_clipped_to_the_common_norm(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    trainee = loop.trainees["policy"]
    seen = []
    real = trainee.optimizer.step

    def step(number: int) -> float:
        seen.append(float(torch.stack([p.grad.norm() for p in trainee.optimizer.names if p.grad is not None]).norm()))
        return real(number)

    trainee.optimizer.step = step  # type: ignore[method-assign]
    loop.run(Screen())
    norms = [record["grad_norm"] for record in logged(tmp_path)]
    assert max(norms) > 1.0 > min(norms)
    assert seen == pytest.approx([min(norm, 1.0) for norm in norms], rel=1e-4)


def test_the_console_line() -> None:
    record = {"loss": 3.4119, "bpb": 1.408, "grad_norm": 0.84, "lr": 3e-4, "odd": 1.0, "skipped": "x"}
    record["machine"] = {"tokens_per_second": 41_200.0, "mfu": 0.376}
    assert console_line(record) == "loss 3.412  bpb 1.41  gnorm 0.84  lr 3.0e-04  41.2k tok/s  mfu 38%"
    assert console_line({"reward": 0.5}) == "reward 0.50"


@pytest.mark.parametrize("key", ["checkpoint_every", "keep_last"])
def test_bad_settings(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got -1"):
        LoopConfig(**{key: -1})  # type: ignore[arg-type]
