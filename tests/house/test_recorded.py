"""The figures that the README shows were made with the recipe that is shipped."""

from __future__ import annotations

import json
from pathlib import Path

from sekkei.recipes.recipe import load
from sekkei.stages.run import recipe_digest

ROOT = Path(__file__).resolve().parents[2]


RECORDED = json.loads((ROOT / "docs" / "results" / "laptop.json").read_text(encoding="utf-8"))
FIGURES: dict[str, float] = RECORDED["figures"]


def bpb(stage: str, what: str) -> float:
    return FIGURES[f"pretrain.{stage}.bpb.{what}"]


def reasoning(label: str, what: str) -> float:
    return FIGURES[f"reasoning.{label}.{what}"]


def test_the_recorded_life_is_within_its_budget() -> None:
    assert FIGURES["run.peak_gib"] <= 4
    if RECORDED["machine"]["fast_dtype"] == "bfloat16":  # 20 minutes are those of cores with bf16 units
        assert FIGURES["run.seconds"] <= 20 * 60


def test_pretraining_did_what_each_stage_is_for() -> None:
    for domain in ("docs", "code", "math"):
        assert bpb("general", domain) < bpb("start", domain)
    assert bpb("reasoning", "code") < bpb("general", "code")
    assert bpb("reasoning", "math") < bpb("general", "math")
    control = FIGURES["pretrain.long.control.bpb.beyond_context"]
    assert bpb("long", "beyond_context") <= 0.97 * control
    assert bpb("long", "beyond_context") < bpb("long", "positions_128_256")
    assert FIGURES["pretrain.long.token_share"] <= 0.10


def test_alignment_did_what_each_stage_is_for() -> None:
    assert reasoning("sft", "pass1_sampled") >= 0.10
    assert reasoning("grpo", "pass1_greedy") >= 0.95
    assert reasoning("grpo", "pass1_sampled") >= 0.60
    assert reasoning("grpo", "no_thinking.pass1_greedy") <= 0.10
    assert reasoning("grpo", "ended") >= 0.98
    assert reasoning("grpo", "steps") > reasoning("dpo", "steps")
    assert FIGURES["chat.base.answered"] == 0
    assert FIGURES["chat.sft.answered"] >= 0.90
    assert FIGURES["dpo.preference_accuracy.end"] >= FIGURES["dpo.preference_accuracy.start"] + 0.10
    assert reasoning("dpo", "pass1_sampled") >= reasoning("sft", "pass1_sampled") - 0.03


def test_laptop_figures_are_of_the_shipped_recipe() -> None:
    assert RECORDED["digests"]["recipe"] == recipe_digest(load("laptop", [])), (
        "run sekkei run laptop, commit its results"
    )
