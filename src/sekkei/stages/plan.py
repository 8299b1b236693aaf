"""`--dry-run`: what a recipe will do and cost, without doing it."""

from __future__ import annotations

from dataclasses import replace

import torch
import yaml

from sekkei.core import config as loader
from sekkei.core import hardware
from sekkei.model.flops import count_parameters, flops_per_token, training_bytes
from sekkei.recipes.recipe import Recipe
from sekkei.stages.life import stages_of

UTILISATION = 0.3
"""Of the measured matmul speed that training reaches: 25-35% on CPUs at widths of 128-512."""
ANSWER_TOKENS = 100  # prompt and answer of the reasoning task, about
BASE_GIB = 0.9  # the process with its libraries, and the corpus in memory


def plan(recipe: Recipe) -> str:
    """The resolved recipe, its stages, and parameters, tokens, FLOPs, memory and time."""
    model = replace(recipe.model, vocab_size=recipe.tokenizer.vocab_size)
    parts = count_parameters(model)
    work = _training(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = hardware.peak_flops(device, torch.bfloat16).flops
    flops = {name: tokens * flops_per_token(model, context) for name, (tokens, context, _) in work.items()}
    memory = max(sum(training_bytes(model, rows, context).values()) for _, context, rows in work.values())
    lines = [
        "# resolved recipe",
        yaml.safe_dump(loader.to_mapping(recipe), sort_keys=False).rstrip(),
        "",
        "# stages",
        *(f"{stage.name:<24} reads {', '.join(stage.reads) or '-'}" for stage in stages_of(recipe)),
        "",
        "# costs",
        f"parameters   {sum(parts.values()):,}  ({', '.join(f'{name} {n:,}' for name, n in parts.items())})",
    ]
    for name, (tokens, context, _) in work.items():
        seconds = flops[name] / (peak * UTILISATION)
        lines.append(
            f"{name:<20} {tokens:>12,} tokens in rows of {context:<5} {flops[name]:.2e} FLOPs  about {seconds:,.0f} s"
        )
    seconds = sum(flops.values()) / (peak * UTILISATION)
    lines += [
        f"in all       {sum(tokens for tokens, _, _ in work.values()):,} tokens, {sum(flops.values()):.2e} FLOPs",
        f"memory       about {memory / hardware.GIB + BASE_GIB:.1f} GiB at the peak",
        f"training     about {seconds / 60:.1f} min at {UTILISATION:.0%} of {peak:.2e} FLOP/s measured here; "
        "rollouts, evaluation and data come on top",
    ]
    return "\n".join(lines)


def _training(recipe: Recipe) -> dict[str, tuple[int, int, int]]:
    """Per training stage: tokens, tokens per row, rows of one forward pass."""
    work = {f"pretrain.{key}": (s.tokens, s.context, s.micro_rows) for key, s in recipe.pretrain.items()}
    if recipe.sft:
        tokens = recipe.sft.steps * recipe.sft.examples * ANSWER_TOKENS
        work["sft"] = (tokens, 128, recipe.sft.micro_tokens // 128 or 1)
    if recipe.dpo:
        tokens = recipe.dpo.steps * recipe.dpo.pairs * 2 * ANSWER_TOKENS
        work["dpo"] = (tokens, 256, recipe.dpo.micro_tokens // 256 or 1)
    if recipe.grpo:
        answers = recipe.grpo.steps * recipe.grpo.updates * recipe.grpo.prompts * recipe.grpo.samples
        work["grpo"] = (answers * ANSWER_TOKENS, 128, recipe.grpo.micro_tokens // 128 or 1)
    return work
