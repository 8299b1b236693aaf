"""The planner's bytes are those that ranks were seen to hold, to the byte, and its prices move the right way."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sekkei.cli import main
from sekkei.core.errors import ConfigError
from sekkei.core.hardware import GIB
from sekkei.model.config import ModelConfig
from sekkei.model.flops import count_parameters, training_bytes
from sekkei.model.hf import parameter_shapes
from sekkei.model.init import build
from sekkei.model.shapes import PUBLISHED, shape_of
from sekkei.parallel.apply import Sharded
from sekkei.parallel.cost import Cluster, bubble, data_bytes, find_gpu, ring_bytes, step_seconds, tensor_bytes
from sekkei.parallel.layout import Layout, Schedule
from sekkei.parallel.memory import (
    Job,
    Weights,
    parameter_table,
    state_bytes,
    textbook_bytes,
)
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.order import states
from sekkei.parallel.peak import heaviest_rank, rank_bytes
from sekkei.parallel.pipeline import Pipelined
from sekkei.parallel.saved import activation_bytes
from sekkei.parallel.search import parse_layout, price, search
from sekkei.prove import case

# sizes that 3 and 5 ranks do not divide, and fewer rows than 5 ranks
ODD = ModelConfig(
    hidden_size=10,
    num_layers=4,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=7,
    vocab_size=11,
    qk_norm=True,
)
LLAMA70 = PUBLISHED["Llama 3.1 70B"]
DTYPES: dict[Weights, torch.dtype] = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


def split(model: ModelConfig, layout: Layout, weights: Weights, rank: int = 0) -> tuple[int, int, int]:
    """Parameters, gradients, optimizer, as a certificate lists them."""
    held = state_bytes(model, layout, weights, rank)
    return held["params"], held["grads"], held["master"] + held["moments"]


@pytest.mark.parametrize(
    ("layout", "measured"),
    [
        (Layout(dp=4, zero=1), (222_720, 222_720, 111_360)),
        (Layout(dp=4, zero=2), (222_720, 55_680, 111_360)),
        (Layout(dp=4, zero=3), (55_680, 55_680, 111_360)),
        (Layout(dp=2, tp=2, zero=2), (112_128, 56_064, 112_128)),
        (Layout(tp=4), (56_832, 56_832, 113_664)),
    ],
    ids=lambda value: value.name if isinstance(value, Layout) else "",
)
def test_rank_0_of_the_certificate_to_the_byte(layout: Layout, measured: tuple[int, int, int]) -> None:
    assert split(case.CONFIG, layout, "fp64") == measured


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [Layout(dp=3, zero=1), Layout(dp=3, zero=2), Layout(dp=5, zero=2)])
@pytest.mark.parametrize("last", [False, True])
def test_ranks_that_do_not_divide_hold_what_is_predicted(layout: Layout, weights: Weights, last: bool) -> None:
    _holds_as_predicted(layout, weights, layout.world - 1 if last else 0)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=3),
        Layout(dp=3, zero=3),
        Layout(dp=5, zero=3, reshard=False),
        Layout(dp=6, replicate=2, zero=3),
        Layout(dp=2, cp=3, zero=2),
        Layout(pp=2, dp=3, zero=1),
        Layout(pp=4, dp=2, zero=3),
        Layout(pp=2, dp=3, cp=2, zero=2, schedule="interleaved"),
        Layout(pp=2, dp=3, zero=2, schedule="zero_bubble"),
    ],
    ids=lambda layout: layout.name,
)
@pytest.mark.parametrize("last", [False, True])
def test_float32_in_all_stages(layout: Layout, last: bool) -> None:
    _holds_as_predicted(layout, "fp32", layout.world - 1 if last else 0)


def _holds_as_predicted(layout: Layout, weights: Weights, rank: int) -> None:
    """One rank alone, among others that are pretended: what it holds does not depend on what they send."""
    if weights == "bf16":
        layout = replace(layout, weights="bf16")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
    try:
        kind = Pipelined if layout.pp > 1 else Sharded
        model = kind(build(ODD, 0, dtype=torch.float64 if weights == "fp64" else torch.float32), Mesh(layout, "cpu"))
        if layout.zero == 3:
            for target in model.targets.values():
                target.grad = torch.zeros_like(target)
        else:
            for parameter in model.model.parameters():
                torch.zeros_like(parameter).mul(parameter).sum().backward()
            model.finish_micro_batch()
            model.finish_gradients()
        held = model.bytes()
        moments = sum(2 * getattr(t, "_local_tensor", t).nbytes for t in model.targets.values())
    finally:
        dist.destroy_process_group()
    assert {**held, "moments": moments} == state_bytes(ODD, layout, weights, rank)


def test_uneven_slices_by_hand() -> None:
    """A norm of 10 over 4 ranks is 3, 3, 3, 1; the head [11, 10] is 28, 28, 28, 26 by elements, 3, 3, 3, 2 rows."""
    bare = replace(ODD, num_layers=1, qk_norm=False, num_heads=1, intermediate_size=1)
    sizes = [110, 10, 40, 40, 40, 40, 10, 10, 10, 10, 10, 110]
    assert sorted(sizes) == sorted(torch.Size(shape).numel() for _, shape, _ in parameter_table(bare))
    own = [sum(max(0, min(-(-n // 4), n - r * -(-n // 4))) for n in sizes) for r in range(4)]
    assert sum(own) == sum(sizes)
    assert own[3] == 26 + 1 + 10 * 4 + 1 + 1 * 4 + 26
    for rank in range(4):
        assert split(bare, Layout(dp=4, zero=2), "fp32", rank) == (4 * sum(sizes), 4 * own[rank], 8 * own[rank])
    by_rows = 2 * 30 + 3 * 3 + 3 * 10 + 3 * 4 + 2 * 10 + 3  # stage 3: embedding, head, norms, q k v, o, gate up, down
    assert split(bare, Layout(dp=4, zero=3), "fp32") == (4 * by_rows, 4 * by_rows, 8 * by_rows)
    assert sum(split(bare, Layout(dp=4, zero=3), "fp32", r)[0] for r in range(4)) == 4 * sum(sizes)


def test_every_parameter_is_in_the_table() -> None:
    for model in (case.CONFIG, ODD, replace(ODD, tied_embeddings=True)):
        by_name: dict[str, tuple[int, ...]] = {}
        for name, shape, layers in parameter_table(model):
            for layer in layers:
                by_name[name.replace(f"layers.{layers[0]}.", f"layers.{layer}.")] = shape
        assert by_name == {name: tuple(shape) for name, shape in parameter_shapes(model).items()}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_bytes_per_parameter_in_bf16(ranks: int) -> None:
    """The textbook's, and with gradients summed in float32 what that costs."""
    count = sum(count_parameters(LLAMA70).values())
    extra = {0: 2.0, 1: 4 / ranks, 2: 2 / ranks, 3: 0.0}
    books = {0: 16.0, 1: 4 + 12 / ranks, 2: 2 + 14 / ranks, 3: 16 / ranks}
    for stage in range(4):
        assert textbook_bytes(stage, ranks) == books[stage]
        layout = Layout(dp=ranks, zero=stage, weights="bf16", reduce="bf16")
        held = sum(state_bytes(LLAMA70, layout, "bf16").values())
        assert held / count == pytest.approx(books[stage], rel=1e-3)
        held = sum(state_bytes(LLAMA70, replace(layout, reduce="fp32"), "bf16").values())
        assert held / count == pytest.approx(books[stage] + extra[stage], rel=1e-3)


def test_one_rank_saves_what_the_model_s_own_table_says() -> None:
    for model in (case.CONFIG, LLAMA70):
        found = activation_bytes(Job(model=model, context=512, rows=2, micro_rows=2, weights="fp32"), Layout())
        known = training_bytes(model, 2, 512, torch.bfloat16)
        assert found["activations"] + found["end"] == known["activations"]
        assert found["casts"] == known["casts"]


def test_axes_divide_the_working_set() -> None:
    job = Job(model=LLAMA70, context=8192, rows=64)
    one = rank_bytes(job, Layout())
    tp, sp = rank_bytes(job, Layout(tp=8)), rank_bytes(job, Layout(tp=8, sequence_parallel=True))
    assert one["activations"] > tp["activations"] > sp["activations"]
    assert rank_bytes(job, Layout(cp=4))["activations"] < one["activations"] / 4  # the mask is gone, too
    again = rank_bytes(job, Layout(recompute="full"))
    assert again["activations"] < one["activations"] / 8
    assert again["params"] == one["params"]
    kept = rank_bytes(job, Layout(dp=8, zero=3, reshard=False))["gathered"]
    assert kept == 2 * sum(count_parameters(LLAMA70).values())
    assert rank_bytes(job, Layout(dp=8, zero=3))["gathered"] < kept / 10


def test_volumes_by_hand() -> None:
    job = Job(model=LLAMA70, context=8192, rows=64)
    assert tensor_bytes(job, Layout(tp=8))[0] == 2 * 7 / 8 * (4 * 80 + 2) * 8192 * 8192 * 2
    assert tensor_bytes(job, Layout(tp=8, sequence_parallel=True))[0] == tensor_bytes(job, Layout(tp=8))[0]
    keys = 80 * (8192 // 4) * 2 * 8 * 128  # elements of a rank's keys and values in all layers
    assert ring_bytes(job, Layout(cp=4))[0] == keys * (2 * 3 * 2 + 4 * 4)
    count = sum(count_parameters(LLAMA70).values())
    by_stage = {0: 2 * 2, 1: 4 + 2, 2: 8 * 4 + 2, 3: 8 * 4}  # 8 micro-batches; stage 3 gathers on top
    for stage, factor in by_stage.items():
        moved = data_bytes(job, Layout(dp=8, zero=stage))["shard"]
        if stage == 3:
            assert moved > 7 / 8 * count * (factor + 8 * 2)
        else:
            assert moved == pytest.approx(7 / 8 * count * factor)


def most_held(schedule: Schedule, rank: int) -> int:
    """Forward passes whose activations a rank of four keeps at most, of 64 micro-batches."""
    return max(sum(state.held) for state in states(schedule, 4, rank, 64))


def test_pipelines_hold_what_their_schedules_let_in() -> None:
    job = Job(model=LLAMA70, context=8192, rows=64)  # 64 micro-batches where nothing else divides them
    assert [most_held("gpipe", rank) for rank in (0, 3)] == [64, 64]
    assert [most_held("1f1b", rank) for rank in range(4)] == [4, 3, 2, 1]
    assert [most_held("interleaved", rank) for rank in (0, 3)] == [11, 5]  # min(2 m, 3 pp - 2 rank - 1), of two stages
    assert [most_held("zero_bubble", rank) for rank in (0, 3)] == [8, 8]  # ZB-H1: as many as 1f1b's first rank
    assert bubble(Layout(pp=4), 64) == 3 / 64
    assert bubble(Layout(pp=4, schedule="interleaved"), 64) == 1.5 / 64
    assert bubble(Layout(pp=4, schedule="zero_bubble"), 64) == 1 / 64
    assert bubble(Layout(), 64) == 0
    assert heaviest_rank(job, Layout(pp=4, tp=2))[0] == 0
    assert (
        heaviest_rank(job, Layout(pp=4, schedule="gpipe", tp=2))[0] == 6
    )  # all hold 64; the last the head's inputs, too
    first, last = (rank_bytes(job, Layout(pp=4), rank) for rank in (0, 3))
    assert first["logits"] == 0 < last["logits"]
    assert last["params"] == first["params"] + 2 * 8192  # the last norm


def test_links_are_chosen_by_the_ranks_apart() -> None:
    cluster = Cluster(gpu=find_gpu("h100"), gpus=64)
    assert cluster.link(1, 8) == 0.8 * 450e9
    assert cluster.link(8, 8) == 0.8 * 50e9  # one rank of each node
    assert cluster.link(2, 32) == 0.8 * 50e9 * 4  # four ranks of each node
    assert cluster.link(2, 32, one_card=True) == 0.8 * 50e9
    job, layout = Job(model=LLAMA70, context=8192, rows=64), Layout(dp=8, tp=8)
    near, far = (price(job, layout, replace(cluster, gpus_per_node=size)) for size in (8, 4))
    assert near.seconds["tp"] < far.seconds["tp"]
    assert near.warning is None
    assert far.warning is not None
    assert "tp=8 > gpus_per_node=4" in far.warning


def test_computing_takes_what_the_data_sheet_says() -> None:
    job, cluster = Job(model=LLAMA70, context=8192, rows=64), Cluster(gpu=find_gpu("h100"), gpus=64)
    weights = 80 * (2 * 8192 * 128 * (64 + 8) + 3 * 8192 * 28_672) + 128_256 * 8192
    flops = 64 * 8192 * (6 * weights + 12 * 80 * 8192 * 64 * 128)
    assert step_seconds(job, Layout(dp=64), cluster)["compute"] == pytest.approx(flops / (64 * 989.4e12 * 0.5))


def test_the_search_finds_every_fitting_layout_in_order() -> None:
    job, cluster = Job(model=LLAMA70, context=8192, rows=1024), Cluster(gpu=find_gpu("h100"), gpus=64)
    found = search(job, cluster)
    assert found.fitting
    assert [plan.step for plan in found.fitting] == sorted(plan.step for plan in found.fitting)
    for plan in found.fitting + found.others:
        assert plan.layout.world == 64
        assert plan.fits == (plan in found.fitting)
        assert plan.peak == sum(plan.memory.values()) + 2 * GIB
    assert set(found.refused) == {"layout.tp", "layout.pp"}  # 8 key/value heads, 80 layers
    assert {plan.layout.pp for plan in found.fitting} >= {1, 2, 4, 8}
    plain = next(plan for plan in found.others if plan.layout == Layout(dp=64))
    assert plain.reason.startswith("needs ")
    assert " of 80: optimizer " in plain.reason


@pytest.mark.parametrize(
    ("text", "layers", "words"),
    [
        ("70b", 80, "the shape of Llama 3.1 70B"),
        ("7B", 32, "the shape of Llama 3.1 8B"),
        ("1000m", 16, "the shape of Llama 3.2 1B"),
        ("13b", 35, "a shape between Llama 3.1 8B and Llama 3.1 70B"),
        ("1t", 142, "a shape on the line through Llama 3.1 70B and Llama 3.1 405B"),
    ],
)
def test_shapes_by_size(text: str, layers: int, words: str) -> None:
    model, source = shape_of(text)
    assert (model.num_layers, source) == (layers, words)


def test_interpolated_shapes_have_the_size_asked_for() -> None:
    for billions in (0.5, 2, 5, 20, 30, 120, 250, 700, 1500):
        count = sum(count_parameters(shape_of(f"{billions}b")[0]).values())
        assert abs(count / billions / 1e9 - 1) <= 0.25


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--params", "70b", "--gpu", "h10"], "--gpu: got 'h10', no such GPU in the table; did you mean 'h100'?"),
        (["--params", "seventy"], "--params: got 'seventy', must be a number and a unit"),
        (["--params", "3m"], "--params: got '3m', must be between 500m and 2t"),
        (["--params", "70b", "--layout", "dp=3,tp=8"], "layout: pp·dp·cp·tp = 1·3·1·8 = 24, and --gpus=8"),
        (["--params", "70b", "--layout", "dq=8"], "layout.dq: unknown key; did you mean 'dp'?"),
        (["--params", "70b", "--layout", "dp"], "--layout: got 'dp', must be key=value"),
        (["--params", "70b", "--layout", "tp=16", "--gpus", "16"], "layout.tp: tp=16 must divide model.num_kv_heads=8"),
        (["--params", "70b", "--rows", "9", "--layout", "dp=8"], "layout.dp: dp·micro_rows = 8·1 = 8 must divide rows"),
        (["--params", "70b", "--weights", "fp8"], "--weights: got 'fp8', must be one of fp64, fp32, bf16"),
        (["--params", "70b", "--gpus", "12"], "gpus_per_node: gpus_per_node=8 must divide gpus=12"),
        (["--params", "70b", "--context", "0"], "context: got 0, must be >= 1"),
        ([], "plan: give either a model"),
        (["laptop", "--params", "7b"], "plan: give either a model"),
        (["absent.json"], "absent.json: cannot be read"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {told}")
    assert captured.err.count("\n") == 1


def test_the_command_prints_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "--params", "70b", "--gpus", "512"]) == 0
    shown = capsys.readouterr().out
    assert "70b: the shape of Llama 3.1 70B, 70.6B parameters; 512 x h100" in shown
    assert "layouts fit" in shown
    assert main(["plan", "--params", "70b", "--gpus", "64", "--layout", "dp=8,tp=8,zero=1,recompute=full"]) == 0
    assert "params 17,640,734,720" in capsys.readouterr().out
    assert main(["plan", "--params", "405b"]) == 1
    assert "none of " in capsys.readouterr().out
    picture = tmp_path / "plan.html"
    assert main(["plan", "--params", "8b", "--gpus", "16", "--html", str(picture)]) == 0
    drawn = picture.read_text()
    assert f"picture: {picture}" in capsys.readouterr().out
    assert drawn.count("<svg") == 2
    assert drawn.count("<title>rank ") == 16
    for element in re.findall(r"<svg.*?</svg>", drawn, re.DOTALL):
        ElementTree.fromstring(element)
    assert main(["plan", "--wall"]) == 0
    assert "at least 14 for the state alone" in capsys.readouterr().out
    assert main(["plan", "smoke", "--gpus", "2"]) == 0
    assert "fp32 weights" in capsys.readouterr().out


def test_the_closed_form_answers_without_torch() -> None:
    words = ["plan", "--params", "70b", "--gpus", "512", "--layout", "dp=64,tp=8,zero=3"]
    code = f"import sys; from sekkei.cli import main; main({words}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_layouts_are_read_from_text() -> None:
    assert parse_layout("dp=8, tp=8,zero=1") == Layout(dp=8, tp=8, zero=1)
    assert parse_layout("dp=8,zero=3,reshard=false,recompute=full") == Layout(
        dp=8, zero=3, reshard=False, recompute="full"
    )
    assert parse_layout("dp=2,reduce=bf16", "bf16") == Layout(dp=2, weights="bf16", reduce="bf16")
    assert parse_layout("dp=2,weights=fp32", "bf16") == Layout(dp=2)
    assert parse_layout("dp=1", "bf16") == Layout()
    for text in ("dp=2,microbatches=4", "dp=2,zero=3,offload=true"):
        with pytest.raises(ConfigError, match=r"--layout (microbatches|offload): "):
            parse_layout(text)
    with pytest.raises(ConfigError, match=r"layout\.recompute"):
        parse_layout("dp=8,recompute=true")
