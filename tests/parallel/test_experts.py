"""Experts on several ranks: what one process computes, chooses and saves, and faults that are noticed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch
from sekkei.model.config import ModelConfig, MoEConfig
from sekkei.model.init import build
from sekkei.model.moe import biases
from sekkei.objectives.pretrain import TokenLoss
from sekkei.parallel.apply import Sharded
from sekkei.parallel.cost import data_bytes, exchange_bytes
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job, state_bytes
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.ops import LocalOps
from sekkei.prove import case
from sekkei.prove.spawned import spawned
from sekkei.prove.worker import Row, compute
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import _restore, _whole
from sekkei.train.objective import Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.sharded_step import ShardedStep
from sekkei.train.step import PlainStep
from sekkei.train.trainee import Trainee

MODEL = ModelConfig(
    hidden_size=16,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    intermediate_size=24,
    vocab_size=23,
    qk_norm=True,
    moe=MoEConfig(experts=4, active=2, shared=1, intermediate_size=12, first_dense=1, bias_rate=0.02),
)
CPU = torch.device("cpu")
STEPS, SAVED_AFTER = 4, 3
TOKENS, ROWS = 16, 8
ROWS_OF_PROOF = (
    Row(Layout(dp=4, ep=4)),
    Row(Layout(dp=4, ep=2, zero=2)),
    Row(Layout(dp=4, ep=2, zero=3)),
    Row(Layout(dp=2, cp=2, ep=2, recompute="full")),
    Row(Layout(pp=2, dp=2, ep=2, zero=1)),
    Row(Layout(dp=4, ep=2, zero=1), kind="muon"),
)
SAVING, LOADING = Layout(dp=4, ep=2, zero=1), Layout(dp=2, cp=2, ep=4, zero=3)


def batch(step: int, rows: slice) -> Batch:
    """Some rows of a step's global batch: documents, uneven weights, padding."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, MODEL.vocab_size, (ROWS, TOKENS), generator=generator)
    mask = torch.rand(ROWS, TOKENS, generator=generator, dtype=torch.float64)
    lengths = torch.randint(4, TOKENS + 1, (ROWS, 1), generator=generator)
    at = torch.arange(TOKENS).expand(ROWS, -1)
    real = at < lengths
    segments = torch.where(real, (at >= 4).long(), -1)
    positions = torch.where(real, torch.where(at >= 4, at - 4, at), 0)
    labels = torch.where(real & (mask > 0.3), ids.roll(-1, 1), -100)
    mask = mask * (labels >= 0)
    return Batch(
        ids=ids[rows], labels=labels[rows], mask=mask[rows], positions=positions[rows], segments=segments[rows]
    )


def made(mesh: Mesh | None) -> tuple[Trainee, Any]:
    """A trainee with its initial weights, and the step that runs it."""
    model = build(MODEL, 5, dtype=torch.float64)
    placed = Sharded(model, mesh) if mesh else None
    optimizer = Optimizer(model, OptimConfig(lr=1e-2, schedule="constant", warmup=0.0), STEPS, torch.float64, placed)
    if mesh and placed:
        return Trainee(model, optimizer, placed), ShardedStep({"policy": placed}, mesh, CPU, None)
    return Trainee(model, optimizer), PlainStep({"policy": model}, LocalOps(), CPU, None)


def train(trainee: Trainee, step: Any, steps: range, mesh: Mesh | None) -> None:
    dp, rank = (mesh.layout.dp, mesh.dp_rank) if mesh else (1, 0)
    for number in steps:
        own = slice(rank * ROWS // dp, (rank + 1) * ROWS // dp)
        step.backward(Update("policy", [batch(number, own)], TokenLoss()))
        trainee.parts.clip(0.5)
        trainee.optimizer.step(number)
        trainee.parts.publish()


def whole(trainee: Trainee) -> dict[str, Tensor]:
    placed = trainee.placed
    found = placed.gather_named() if isinstance(placed, Sharded) else trainee.model.named_parameters()
    return {name: x.detach().clone() for name, x in found}


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - x).norm() / x.norm()) for name, x in wanted.items())


def same_biases(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    names = [name for name in wanted if name.endswith(".router.bias")]
    assert names
    assert any(wanted[name].any() for name in names)
    return all(torch.equal(found[name], wanted[name]) for name in names)


def alone(steps: int) -> dict[str, Tensor]:
    trainee, step = made(None)
    train(trainee, step, range(steps), None)
    return whole(trainee)


def _save(trainee: Trainee, folder: str) -> None:
    """As the loop does it."""
    pieces = [
        (f"policy/{key}", partial(_whole, trainee.parts, name, tensor))
        for key, (name, tensor) in trainee.tensors().items()
    ]
    Checkpoints(Path(folder), share=(dist.get_rank(), dist.get_world_size())).save(SAVED_AFTER, pieces, {}, None)


def _figures(folder: str) -> dict[str, Any]:
    """On each of four ranks."""
    wanted, found = alone(SAVED_AFTER), {}
    mesh = Mesh(SAVING, "cpu")
    trainee, step = made(mesh)
    train(trainee, step, range(SAVED_AFTER), mesh)
    parameters = whole(trainee)
    found["trained"], found["biases"] = apart(parameters, wanted), same_biases(parameters, wanted)
    found["held"] = trainee.placed.bytes()["params"] if isinstance(trainee.placed, Sharded) else 0
    _save(trainee, folder)
    mesh = Mesh(LOADING, "cpu")
    trainee, step = made(mesh)
    loaded = Checkpoints(Path(folder)).load()
    assert loaded is not None
    _restore(trainee, "policy", loaded[1])
    train(trainee, step, range(SAVED_AFTER, STEPS), mesh)
    parameters, further = whole(trainee), alone(STEPS)
    found["resumed"], found["resumed biases"] = apart(parameters, further), same_biases(parameters, further)
    with patch.object(Sharded, "summed", lambda self, x: x):  # a rank's own loads in place of all ranks'
        mesh = Mesh(SAVING, "cpu")
        trainee, step = made(mesh)
        train(trainee, step, range(SAVED_AFTER), mesh)
        parameters = whole(trainee)
    found["local loads"], found["local biases"] = apart(parameters, wanted), same_biases(parameters, wanted)
    answers = {row.question: case.single(*row.question) for row in dict.fromkeys(ROWS_OF_PROOF)}
    found["rows"] = [vars(compute(row, answers[row.question])) for row in ROWS_OF_PROOF]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return spawned(_figures, 4, str(folder))


def test_every_layout_equals_one_process(ranks: list[dict[str, Any]]) -> None:
    for row in ranks[0]["rows"]:
        assert row["passed"], row
        assert row["grad_rel_max"] < 1e-13, row
        assert row["param_rel_max"] < 1e-13, row  # the routers' biases are among them


def test_weights_and_biases_after_three_steps_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["trained"] < 1e-12
        assert found["biases"]  # bit by bit
    assert ranks[0]["held"] == state_bytes(MODEL, SAVING, "fp64")["params"]


def test_loads_that_are_not_summed_are_noticed(ranks: list[dict[str, Any]]) -> None:
    assert not all(found["local biases"] for found in ranks)
    assert max(found["local loads"] for found in ranks) > 1e-3


def test_a_checkpoint_is_whole_and_goes_on_under_another_layout(ranks: list[dict[str, Any]], folder: Path) -> None:
    for found in ranks:
        assert found["resumed"] < 1e-12
        assert found["resumed biases"]
    loaded = Checkpoints(folder).load()
    assert loaded is not None
    trainee, step = made(None)
    _restore(trainee, "policy", loaded[1])
    wanted = alone(SAVED_AFTER)
    assert {name: loaded[1][f"policy/model/{name}"].shape for name in wanted} == {n: x.shape for n, x in wanted.items()}
    assert apart(whole(trainee), wanted) < 1e-12
    assert same_biases(whole(trainee), wanted)
    train(trainee, step, range(SAVED_AFTER, STEPS), None)
    assert apart(whole(trainee), alone(STEPS)) < 1e-12


def test_what_is_sent_is_about_what_is_priced(ranks: list[dict[str, Any]]) -> None:
    """Exchanges of rows are priced as if loads were even."""
    for number in (0, 1):
        row = ROWS_OF_PROOF[number]
        job = Job(model=row.config, context=48, rows=8, micro_rows=2, weights="fp64")
        priced = sum(data_bytes(job, row.layout).values()) + job.passes(row.layout) * exchange_bytes(job, row.layout)[0]
        assert ranks[0]["rows"][number]["bytes_sent"] == pytest.approx(priced, rel=0.15)


def test_a_step_that_is_not_taken_leaves_no_loads() -> None:
    trainee, step = made(None)
    step.backward(Update("policy", [batch(0, slice(None))], TokenLoss()))
    trainee.optimizer.zero_grad()
    before = {name: bias.clone() for name, bias in biases(trainee.model).items()}
    trainee.optimizer.step(0)
    assert all(torch.equal(before[name], bias) for name, bias in biases(trainee.model).items())


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"dp": 3, "ep": 2}, "ep: ep=2 must divide dp/replicate·cp = 3·1 = 3"),
        ({"dp": 4, "replicate": 2, "zero": 3, "ep": 4}, "ep: ep=4 must divide dp/replicate·cp = 2·1 = 2"),
        ({"ep": 0}, "ep: got 0, must be >= 1"),
    ],
)
def test_ranks_that_experts_do_not_divide_are_refused(keys: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Layout(**keys)
    assert str(error.value) == told


def test_layouts_that_do_not_fit_the_model_are_refused() -> None:
    refused = (
        (Layout(dp=8, ep=8), MODEL, "layout.ep: ep=8 must divide model.moe.experts=4"),
        (Layout(dp=2, ep=2), case.CONFIG, "layout.ep: ep=2 spreads experts, and model.moe is not set"),
        (Layout(tp=2), MODEL, "layout.tp: tp=2 cuts models without model.moe; use ep, dp, cp and pp"),
        (Layout(dp=2, tp=2, ep=2), MODEL, "layout.tp: tp=2 cuts models without model.moe; use ep, dp, cp and pp"),
    )
    for layout, model, told in refused:
        with pytest.raises(ConfigError) as error:
            layout.check(model)
        assert str(error.value) == told
    assert Layout(dp=4, cp=2, ep=8).name == "dp4·cp2·ep8"
