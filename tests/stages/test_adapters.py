"""Adapters trained by stages of a recipe under a layout: the figures, adapters and merged models of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from sekkei.core import runlog
from sekkei.core.dist import Ranks
from sekkei.core.progress import Console
from sekkei.core.runlog import RunLog, SilentLog
from sekkei.model.config import ModelConfig
from sekkei.model.transformer import Transformer
from sekkei.parallel.mesh import Mesh
from sekkei.prove.spawned import spawned
from sekkei.recipes.recipe import Recipe, load
from sekkei.stages.model_artifact import load_model, save_model
from sekkei.stages.paired import PairedStage
from sekkei.stages.rollouts import RolloutStage
from sekkei.stages.run import Run
from sekkei.stages.sft import SFTStage
from sekkei.train.checkpoint import read_sealed

LIMIT = 1e-8  # relative, in float64, after stages of two and three steps
SETTINGS = "optim: {lr: 1.0e-2, schedule: constant, warmup: 0}, loop: {dtype: fp64}"
TUNED = (
    "model.num_kv_heads=2",
    "model.vocab_size=1024",
    f"tune.talk={{start: sft, lora: {{rank: 4}}, sft: {{steps: 1, examples: 8, {SETTINGS}, "
    "gate: {min_pass1_sampled: 0.5, extra_steps: 1}}}",
    "tune.choose={start: sft, lora: {rank: 4, targets: [q_proj, down_proj]}, "
    f"dpo: {{steps: 3, pairs: 8, {SETTINGS}}}}}",
    "tune.seek={start: sft, lora: {rank: 4, rslora: true}, rewards: {length: 1.0, free_tokens: 1}, "
    f"grpo: {{steps: 2, prompts: 4, samples: 4, max_tokens: 16, kl: 0.1, {SETTINGS}}}}}",
)
LAYOUTS = {
    "dp2": "layout={dp: 2, zero: 3}",
    "tp2": "layout={tp: 2, sequence_parallel: true}",
    "pp2": "layout={pp: 2, microbatches: 2}",
}
STAGES = ("talk", "choose", "seek")


def live(recipe: Recipe, folder: Path, patient: dist.ProcessGroup | None = None, mesh: Mesh | None = None) -> None:
    """The three stages as a run has them run, on this rank of the mesh or alone."""
    ranks = Ranks(torch.device("cpu"), patient)
    log = (RunLog if ranks.first else SilentLog)(folder / "metrics.jsonl")
    run = Run(recipe, folder, Console(silent=True), log, ranks, mesh)
    talk = SFTStage(recipe, "talk")
    marks = iter((0.25, 0.75))  # the gate is missed once: a second round goes on with the model of the first
    object.__setattr__(talk, "_sampled_pass1", lambda model, tokenizer: next(marks))
    for stage in (talk, PairedStage(recipe, "choose"), RolloutStage(recipe, "seek")):
        figures = stage.run(run, folder / stage.name)
        if stage.name == "choose":  # again, as after a restart: the first rank has a file that the others have not read
            figures = stage.run(run, folder / stage.name)
        if ranks.first:
            (folder / stage.name / "figures.json").write_text(json.dumps(figures))


def under_layouts(root: str) -> None:
    patient = dist.new_group(backend="gloo")
    for name, layout in LAYOUTS.items():
        recipe = load("smoke", [*TUNED, layout])
        live(recipe, Path(root) / name, patient, Mesh(recipe.layout, "cpu"))


@pytest.fixture(scope="module")
def lives(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per layout, and one of a process alone, each with the three stages."""
    root = tmp_path_factory.mktemp("adapters")
    start = with_two_kv_heads(load_model(smoke_run / "sft" / "model"))
    for name in (*LAYOUTS, "alone"):
        save_model(start, root / name / "sft" / "model")
        for given in ("data", "tokenizer", "preferences"):
            (root / name / given).symlink_to(smoke_run / given)
    live(load("smoke", TUNED), root / "alone")
    spawned(under_layouts, 2, str(root))
    return root


def with_two_kv_heads(model: Transformer) -> Transformer:
    """The same function, with its one head of keys and values twice: tp=2 has one each."""
    config = ModelConfig(**{**vars(model.config), "num_kv_heads": 2})
    twice = Transformer(config)
    known = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in twice.named_parameters():
            parameter.copy_(known[name].repeat(2, 1) if ".k_proj." in name or ".v_proj." in name else known[name])
    return twice


def records(folder: Path) -> list[dict[str, Any]]:
    """Of every step, without what depends on the machine."""
    found = [r for r in runlog.read(folder / "metrics.jsonl") if "loss" in r]
    return [{key: value for key, value in r.items() if key != "machine"} for r in found]


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert (tensor - wanted[name]).norm() <= LIMIT * wanted[name].norm(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stages_train_the_adapters_of_one_process(lives: Path, layout: str) -> None:
    assert len(records(lives / layout)) == 2 + 3 + 2
    for found, wanted in zip(records(lives / layout), records(lives / "alone"), strict=True):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key] == (value if isinstance(value, str) else pytest.approx(value, rel=LIMIT, abs=1e-10)), key
    for stage in STAGES:
        here, there = lives / layout / stage, lives / "alone" / stage
        adapter, expected = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (here, there))
        assert_close(adapter, expected)
        settings = [(folder / "adapter" / "adapter_config.json").read_bytes() for folder in (here, there)]
        assert settings[0] == settings[1]
        assert_close(*(read_sealed(folder / "model")[0] for folder in (here, there)))
        figures, known = (json.loads((folder / "figures.json").read_text()) for folder in (here, there))
        for key in known.keys() - {f"{stage}.model_bytes"}:
            assert figures[key] == pytest.approx(known[key], rel=LIMIT), key


def test_the_reference_is_the_base(lives: Path) -> None:
    """Without a copy of it: the policy whose adapter is off, before training and while it moves away."""
    figures = json.loads((lives / "pp2" / "choose" / "figures.json").read_text())
    assert figures["choose.models"] == 1
    assert figures["choose.preference_accuracy.start"] == 0.5
    steps = {stage: [r for r in records(lives / "pp2") if r["stage"] == stage] for stage in STAGES}
    assert steps["choose"][0]["rewards/margins"] == pytest.approx(0, abs=1e-5)  # a batch has the reference in float32
    assert abs(steps["choose"][-1]["rewards/margins"]) > 1e-3
    assert abs(steps["seek"][0]["kl"]) < 1e-10
    assert steps["seek"][-1]["kl"] > 1e-6


def test_every_stage_moved_its_adapter_and_nothing_else(lives: Path) -> None:
    base = dict(load_model(lives / "tp2" / "sft" / "model").named_parameters())
    for stage in STAGES:
        weights = load_file(lives / "tp2" / stage / "adapter" / "adapter_model.safetensors")
        assert all(bool(tensor.any()) for tensor in weights.values()), stage
        merged = dict(load_model(lives / "tp2" / stage / "model").named_parameters())
        changed = {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
        named = ("q_proj", "down_proj") if stage == "choose" else ("_proj",)
        assert changed == {name for name in base if name.removesuffix(".weight").endswith(named)}, stage
