"""Numbers and stages in words: how a figure is written, and what each stage did, in one sentence.

Sentences are made of the resolved recipe and of measured figures; what is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sekkei.core.stage_names import kind_of, settings_of
from sekkei.report.folder import RunFolder

_SHARE = re.compile(
    r"((reasoning|own)\..*(pass|maj|ended).*|chat\..*|icl\..*|.*\.(preference|ranking)_accuracy\..*"
    r"|.*\.gate\.pass1_sampled|.*\.token_share|inference\..*\.(accuracy|low|high|any_of|top1|majority|mean)"
    r"|agent\.calculator\.(success.*|called|failed|without))"
)
LABELS = {
    "base": "base model",
    "base-document": "base model, asked as a document",
    "sft": "after instruction tuning",
    "dpo": "after preference optimisation",
    "grpo": "after reinforcement learning",
}


def figure(name: str, value: float) -> str:
    """A figure as people write it: shares in percent, counts with separators, the rest with 3 digits."""
    if _SHARE.fullmatch(name):
        return f"{value:.1%}"
    if name == "run.seconds":
        return duration(value)
    if ".bpb" in name or "epochs" in name or "bytes_per_token" in name:
        return f"{value:.3f}"
    return number(value)


def number(value: float) -> str:
    """1,234,567; 0.00123; 3.14."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3g}"


def count(value: float) -> str:
    """4.5M, 12.3k, 900: for sizes where the digits do not matter."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return number(value)


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def deed(run: RunFolder, stage: str) -> str:
    """What a stage did."""
    fixed = {
        "data": "Read or rendered raw pages, cleaned and deduplicated them; read source code; generated maths, "
        "symbol patterns and solved chains.",
        "tokenizer": "Learned a byte-level BPE from the training side of every domain.",
        "imported": "Took in a Hugging Face folder's weights; special tokens it lacked got rows of their own.",
        "tokens": "Encoded every document into token shards, training and held-out side apart.",
        "preferences": "Sampled answers from the tuned model, let the verifier judge them, and wrote pairs of a "
        "better and a worse one; refusal pairs joined in.",
    }
    if stage in fixed:
        return fixed[stage]
    if stage.startswith("eval.pretrain."):
        return "Measured bits per byte on held-out text, by domain and by position."
    if stage.startswith("eval."):
        name = stage.removeprefix("eval.")
        label = LABELS.get(name, f"of {name}")
        asked = label if label.startswith("base model") else f"model {label}"
        return f"Asked the {asked} held-out problems, everyday turns, requests and symbol patterns."
    if stage.startswith("pretrain."):
        return _pretraining((run.recipe.get("pretrain") or {}).get(stage.removeprefix("pretrain.")) or {})
    if stage.startswith("inference."):
        return f"Asked the model of {stage.removeprefix('inference.')} with every strategy of prompting and search."
    if stage == "documents":
        return "Asked about docstrings, with documents at hand and without, some of them questions that have no answer."
    if stage == "judge":
        return "Filled the rubric's rows that a program can tell."
    if stage == "agent":
        return "Let the newest model work held-out sums with the calculator."
    return _tuning(kind_of(run.recipe, stage), settings_of(run.recipe, stage))


def _tuning(kind: str, part: Mapping[str, Any]) -> str:
    steps, pairs = part.get("steps", "?"), part.get("pairs", "?")
    if kind == "sft":
        source = f"answers of {part['own']['stage']}" if part.get("own") else "demonstrations"
        return (
            f"Behaviour cloning of conversations, {part.get('examples', '?')} per step; "
            f"{part.get('everyday', 0):.0%} everyday turns; chains from {source}."
        )
    if kind == "reward":
        return f"A reward model from pairs: {steps} steps of {pairs} pairs."
    if kind == "dpo":
        return (
            f"Direct preference optimisation against the tuned model: {steps} steps of {pairs} pairs, "
            f"β {part.get('beta', '?')}."
        )
    if kind == "kto":
        return f"KTO on single answers: {steps} steps of {part.get('answers', '?')} answers, β {part.get('beta', '?')}."
    asked = f"{steps} rollouts of {part.get('prompts', '?')} problems × {part.get('samples', '?')} answers"
    named = {
        "grpo": "Reinforcement learning against the answers' own group",
        "ppo": "Reinforcement learning with a critic",
        "online_dpo": "Preference optimisation on pairs of the moment",
    }
    return f"{named[kind]}: {asked}." if kind in named else ""


def _pretraining(part: Mapping[str, Any]) -> str:
    mixture = part.get("mixture") or {}
    shares = ", ".join(f"{name} {share:.0%}" for name, share in sorted(mixture.items(), key=lambda item: -item[1]))
    text = f"Next-token prediction: {part.get('steps', '?')} steps of {part.get('rows', '?')} rows"
    text += f" of {part.get('context', '?')} tokens"
    if (part.get("rope_factor") or 1) > 1:
        text += f", positions rescaled by {part['rope_factor']:g}"
    return f"{text}; {shares}." if shares else f"{text}."
