"""A run folder with numbers like those of a whole laptop run, written without training anything."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import yaml

from sekkei.core import config
from sekkei.core.runlog import RunLog
from sekkei.prompting.picture import study_svg
from sekkei.prompting.study import Row, rows_as_data
from sekkei.recipes.recipe import load

STAGES = {"general": (500, 4096), "reasoning": (500, 4096), "long": (50, 8192)}
ACCURACY = {"base": 0.0, "sft": 0.17, "dpo": 0.35, "grpo": 0.98}
CHAIN_PROMPT = "<|bos|><|user|>start at 7, add 3, times 4, modulo 23<|end|><|assistant|>"


@pytest.fixture
def life(tmp_path: Path) -> Path:
    """A finished run of all stages, its texts holding what HTML must escape."""
    return _write_life(tmp_path / "laptop")


@pytest.fixture(scope="session")
def write_life() -> Callable[[Path], Path]:
    """Writes such a run into a folder; the same bytes every time."""
    return _write_life


def _write_life(folder: Path) -> Path:
    rng = random.Random(0)
    folder.mkdir(parents=True)
    recipe = config.to_mapping(load("laptop"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    with RunLog(folder / "metrics.jsonl") as log:
        _write_training(log, rng)
        _write_alignment(log, rng)
        for label in ACCURACY:
            texts = [{"prompt": "Who are you?", "text": f"I am <b>sekkei</b> ({label})"}]
            log.write({"stage": f"eval.{label}", "step": 0, "samples": texts})
    stages = figures_by_stage()
    everything: dict[str, float] = {}
    for number, (stage, figures) in enumerate(stages.items()):
        (folder / stage).mkdir()
        done = {"key": "k", "digest": "d", "figures": figures, "seconds": 10.0 + 9 * number, "peak_gib": 1.5}
        (folder / stage / "done.json").write_text(json.dumps(done))
        everything |= figures
    everything |= {"run.seconds": 1234.5, "run.peak_gib": 2.25}
    results: dict[str, Any] = {"recipe": "laptop", "seed": 0, "digests": {}, "figures": everything}
    results["versions"] = {"python": "3.11.2", "sekkei": "0.1.0", "torch": "2.13.0"}
    (folder / "results.json").write_text(json.dumps(results))
    _write_study(folder / "inference.grpo")
    (folder / "grpo" / "model").mkdir()
    safetensors.numpy.save_file(
        {"embed.weight": np.zeros((3072, 128), np.float32), "head.weight": np.zeros((3072, 128), np.float32)},
        folder / "grpo" / "model" / "tensors.safetensors",
    )
    return folder


def _write_study(folder: Path) -> None:
    rows = [
        Row(
            key=key, name=name, family=family, problems=32, accuracy=accuracy, low=accuracy, high=accuracy + 0.04,
            answered=1.0, calls=1.0, prompt_tokens=20.0, completion_tokens=tokens, any_of=accuracy, top1=accuracy,
            majority=accuracy, mean=accuracy,
        )
        for key, name, family, accuracy, tokens in (
            ("direct.shots0", "direct, 0 examples", "direct", 0.05, 4.0),
            ("cot.shots0", "CoT, 0 examples", "cot", 0.94, 40.0),
        )
    ]  # fmt: skip
    (folder / "study.svg").write_text(study_svg(rows))
    (folder / "rows.json").write_text(json.dumps(rows_as_data(rows)))


def _write_training(log: RunLog, rng: random.Random) -> None:
    loss = 8.0
    for key, (steps, tokens) in STAGES.items():
        for step in range(1, steps + 1):
            loss += (2.6 - loss) * 0.01
            value = loss + rng.gauss(0, 0.06)
            record: dict[str, Any] = {"stage": f"pretrain.{key}", "step": step, "tokens": step * tokens, "lr": 4e-3}
            record |= {"loss": float("nan") if step == 40 else value, "bpb": value / 2.4, "grad_norm": 0.8}
            record["machine"] = {"seconds": 0.2, "tokens_per_second": 21000.0 + step, "mfu": 0.31}
            if step % 100 == 0 or step == steps:
                record["heldout_bpb"] = loss / 2.4 + 0.03
            log.write(record)
            if step % 100 == 0 or step == steps:
                texts = [
                    {
                        "prompt": "<|bos|>def read(self, path):\n",
                        "text": f"    return {step}  # <script>alert(1)</script>",
                    },
                    {"prompt": "<|bos|>Return a list of", "text": "the names & values<|end|>"},
                ]
                log.write({"stage": f"pretrain.{key}", "step": step, "samples": texts})


def _write_alignment(log: RunLog, rng: random.Random) -> None:
    for step in range(1, 801):
        log.write({"stage": "sft", "step": step, "tokens": step * 9000, "loss": 0.3 + 2 * math.exp(-step / 90)})
    for step in range(1, 61):
        margin = step / 40 + rng.gauss(0, 0.1)
        record = {"rewards/chosen": margin / 3, "rewards/rejected": -margin / 1.5, "rewards/margins": margin}
        record |= {"logps/chosen": -12 - step / 30, "logps/rejected": -14 - step / 12, "rewards/accuracies": 0.8}
        log.write({"stage": "dpo", "step": step, "tokens": step * 4000, "loss": 0.6, **record})
    for step in range(1, 101):
        reward = 1 / (1 + math.exp(-(step - 35) / 9)) + rng.gauss(0, 0.02)
        record = {"reward": reward, "steps_written": 2.7 + 3.3 * step / 100, "completion_tokens": 50 + step / 4}
        record |= {"entropy": 0.4 * math.exp(-step / 40), "reward_std": 0.3, "ended": 1.0}
        record |= {"zero_spread": 0.2, "engine_gap": 1e-4, "rewards/right": reward, "rewards/right/std": 0.3}
        record |= {"clip_fraction/low": 0.01, "clip_fraction/high": 0.02}
        log.write({"stage": "grpo", "step": step, "tokens": step * 9000, "loss": 0.0, **record})
        if step in (25, 50, 75, 100):
            rolled = [{"prompt": CHAIN_PROMPT, "text": "<think> 7 add 3 = 9</think> answer: 3<|end|>", "reward": 0.25}]
            rolled[0]["weights_hash"] = "0123456789abcdef"
            log.write({"stage": "grpo", "step": step, "rollout": rolled})
            text = f"<think> 7 add 3 = 10; 10 times 4 = {step}</think> answer: 17<|end|>"
            log.write({"stage": "grpo", "step": step, "samples": [{"prompt": CHAIN_PROMPT, "text": text}]})


def figures_by_stage() -> dict[str, dict[str, float]]:
    """Stage -> figures, names as the stages give them."""
    found: dict[str, dict[str, float]] = {
        "data": {
            "data.pages": 2113, "data.kept": 1480, "data.dropped.exact": 120, "data.dropped.near": 301,
            "data.dropped.quality": 180, "data.dropped.language": 32, "data.bytes.docs": 6.1e6, "data.facts": 2000,
        },
        "tokenizer": {"tokenizer.vocab_size": 3072},
        "tokens": {"tokens.docs.train": 1_900_000, "tokenizer.bytes_per_token.docs": 3.21},
    }  # fmt: skip
    for number, (key, (steps, tokens)) in enumerate(STAGES.items()):
        name = f"pretrain.{key}"
        found[name] = {f"{name}.tokens": steps * tokens, f"{name}.token_share": 0.45 if number < 2 else 0.09}
        bits = {"docs": 2.4 - 0.05 * number, "code": 2.2 - 0.3 * number, "math": 1.9 - 0.5 * number}
        figures = {f"{name}.bpb.{domain}": value for domain, value in bits.items()}
        prefixes = {name: 0.0} | ({f"{name}.control": 0.4} if key == "long" else {})
        for prefix, worse in prefixes.items():
            for low, high, value in ((0, 128, 2.5), (128, 256, 2.2), (256, 1024, 2.05 if key == "long" else 3.9)):
                figures[f"{prefix}.bpb.positions_{low}_{high}"] = value + worse
            figures[f"{prefix}.bpb.beyond_context"] = 2.1 + worse
        found[f"eval.{name}"] = figures
    for label, accuracy in ACCURACY.items():
        if label != "base":
            found[label] = {}
        start = f"reasoning.{label}"
        found[f"eval.{label}"] = {
            f"{start}.pass1_greedy": accuracy, f"{start}.pass1_greedy.low": max(0, accuracy - 0.06),
            f"{start}.pass1_greedy.high": min(1, accuracy + 0.06), f"{start}.pass1_sampled": accuracy * 0.9,
            f"{start}.maj8": accuracy, f"{start}.pass8": min(1, accuracy * 2), f"{start}.steps": 2.7,
            f"{start}.ended": 1, f"{start}.tokens": 51.0, f"{start}.no_thinking.pass1_greedy": 0.05,
            f"{start}.operations8.pass1_greedy": 0.1,
            f"chat.{label}.answered": 0.0 if label == "base" else 0.91, f"chat.{label}.answered.greeting": 1.0,
            f"chat.{label}.refused": 0.0 if label == "base" else 0.95, f"chat.{label}.refused_harmless": 0.025,
            **{f"icl.{label}.shots{n}": 0.12 + (0.04 + accuracy / 20) * n for n in (0, 1, 2, 4, 8)},
        }  # fmt: skip
    found["preferences"] = {"preferences.train.right": 400, "preferences.test.ended": 31}
    found["dpo"] = {"dpo.preference_accuracy.start": 0.5, "dpo.preference_accuracy.end": 0.88}
    found["dpo"] |= {"dpo.ranking_accuracy.start": 0.61, "dpo.ranking_accuracy.end": 0.79}
    found["grpo"] = {"grpo.rollouts": 25_600}
    found["agent"] = {"agent.calculator.success": 0.87, "agent.calculator.without": 0.02, "agent.calculator.called": 1}
    found["inference.grpo"] = {"inference.grpo.direct.shots0.accuracy": 0.05}
    return found
