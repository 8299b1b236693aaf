"""`--dry-run`: what a recipe will do and cost, without doing it."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import yaml

from sekkei.core import config as loader
from sekkei.core import hardware
from sekkei.core.stage_names import PAIRED
from sekkei.core.tracker import check_installed
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.evals.reasoning import VOTES
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.flops import count_parameters, flops_per_token, training_bytes
from sekkei.model.init import build
from sekkei.recipes.recipe import Recipe
from sekkei.recipes.tune import ROLLOUTS
from sekkei.report import words
from sekkei.stages.life import stages_of
from sekkei.stages.training import compute_dtype

ANSWER_TOKENS = 45  # prompt and answer of a laptop run, on average
BASE_GIB = 0.9  # the process with its libraries, and the corpus in memory
MOST_MEASURED = 5e8  # parameters: a larger model is not built for a trial
TRIAL_TOKENS = 2048  # of a timed micro-batch
TRIALS = 4  # of which the first warms up
WRITING_TRIALS = 2  # of 256 answers, as many as a step of laptop's GRPO has
WRITTEN = ANSWER_TOKENS * 2 // 3  # tokens of an answer; the rest is the prompt
UTILISATION = 0.3  # of the measured matmul speed, where no trial was made


def plan(recipe: Recipe) -> str:
    """The resolved recipe, its stages, and parameters, tokens, FLOPs, memory and time.

    Raises:
        ConfigError: its tracker is not installed.
    """
    check_installed(recipe.tracker)
    model = replace(recipe.model, vocab_size=recipe.tokenizer.vocab_size)
    parts = count_parameters(model)
    work = _training(recipe)
    device = hardware.best_device()
    fast = hardware.fast_dtype(device)
    flops = {name: tokens * flops_per_token(model, context) for name, (tokens, context, _) in work.items()}
    memory = max(sum(training_bytes(model, rows, context, fast).values()) for _, context, rows in work.values())
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
    hardware.tune_allocator()  # as a run does
    trial = _Trial(model, device, sum(parts.values()))
    seconds = {name: flops[name] / trial.flops(recipe, name, context) for name, (_, context, _) in work.items()}
    for name, (tokens, context, _) in work.items():
        lines.append(
            f"{name:<20} {tokens:>12,} tokens in rows of {context:<5} {flops[name]:.2e} FLOPs  "
            f"about {words.duration(seconds[name])}"
        )
    answers = _answers(recipe)
    for name, tokens in answers.items():
        seconds[name] = tokens / trial.written_per_second
        lines.append(f"{name:<20} {tokens:>12,} tokens written {'':>25} about {words.duration(seconds[name])}")
    lines += [
        f"in all       {sum(tokens for tokens, _, _ in work.values()):,} tokens trained on, "
        f"{sum(flops.values()):.2e} FLOPs",
        f"memory       about {memory / hardware.GIB + BASE_GIB:.1f} GiB at the peak",
        f"time         about {words.duration(sum(seconds.values()))}, {trial.source}; data, tokenizer, "
        "bits per byte, agent and studies come on top",
    ]
    if recipe.layout.world > 1:
        lines.append(
            f"layout       {recipe.layout.name}: {recipe.layout.world} ranks; memory and time above are those of one "
            "process that does it all, `sekkei plan` prices ranks"
        )
    return "\n".join(lines)


class _Trial:
    """How fast this machine trains and writes with the recipe's model: short trials, or a share of its peak."""

    def __init__(self, model: ModelConfig, device: torch.device, parameters: int) -> None:
        self.config, self.device, self.parameters = model, device, parameters
        self.measured = parameters <= MOST_MEASURED
        self.model = build(model, 0).to(device) if self.measured else None
        self.rates: dict[tuple[int, torch.dtype], float] = {}
        self.source = (
            "by short trials on this machine as it is now"
            if self.measured
            else f"at {UTILISATION:.0%} of the matmul speed measured here"
        )

    def flops(self, recipe: Recipe, stage: str, context: int) -> float:
        """Model FLOPs per second of a forward and backward pass in rows of `context`."""
        group, _, key = stage.partition(".")
        part = recipe.pretrain[key] if group == "pretrain" else recipe.tuning[stage].config
        dtype = compute_dtype(part.loop, self.device)
        if (context, dtype) not in self.rates:
            self.rates[context, dtype] = self._train(context, dtype)
        return self.rates[context, dtype]

    def _train(self, context: int, dtype: torch.dtype) -> float:
        if self.model is None:
            return hardware.peak_flops(self.device, dtype).flops * UTILISATION
        rows = max(1, TRIAL_TOKENS // context)
        ids = torch.zeros(rows, context, dtype=torch.int64, device=self.device)
        positions = torch.arange(context, device=self.device).expand(rows, context)
        best = float("inf")
        for _ in range(TRIALS):
            began = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                out = self.model(ids, positions, DenseAttend(ids), ids, frozenset({"logprobs"}), 1.0)
            out.logprobs.sum().backward()
            hardware.synchronize(self.device)
            best = min(best, time.perf_counter() - began)
        return rows * context * flops_per_token(self.config, context) / best

    @cached_property
    def written_per_second(self) -> float:
        """Tokens of a batch of answers, prompts included."""
        if self.model is None:  # one token of each answer at a time: memory-bound, about a tenth of training's speed
            peak = hardware.peak_flops(self.device, hardware.fast_dtype(self.device)).flops
            return peak * UTILISATION / 10 / (2 * self.parameters)
        fast = hardware.fast_dtype(self.device)
        engine = Engine(self.model, dtype=None if fast == torch.float32 else fast)
        best = float("inf")
        for trial in range(WRITING_TRIALS):
            sampling = Sampling(max_tokens=WRITTEN)
            requests = [Request(prompt_ids=(1,) * 20, sampling=sampling, n=8, seed=32 * trial + i) for i in range(32)]
            began = time.perf_counter()
            engine.generate(requests)
            best = min(best, time.perf_counter() - began)
        return 32 * 8 * WRITTEN / best


def _answers(recipe: Recipe) -> dict[str, int]:
    """Tokens that the model writes, by what for."""
    sizes, found = recipe.eval, {}
    problems = sizes.problems * (1 + VOTES) + sizes.conversations + 2 * sizes.requests
    tuned = recipe.tuning
    asked = 1 + sum(stage.kind != "reward" for stage in tuned.values())
    found["eval.*"] = asked * problems * WRITTEN
    pairing = recipe.preferences
    if recipe.makes_pairs and pairing.path is None:
        found["preferences"] = (pairing.prompts + pairing.held_out_prompts) * pairing.samples * WRITTEN
    for name, stage in tuned.items():
        if stage.kind in ROLLOUTS:
            found[f"{name}: rollouts"] = stage.config.steps * stage.config.prompts * stage.config.samples * WRITTEN
    return found


def _training(recipe: Recipe) -> dict[str, tuple[int, int, int]]:
    """Per training stage: tokens, tokens per row, rows of one forward pass."""
    work = {f"pretrain.{key}": (s.tokens, s.context, s.micro_rows) for key, s in recipe.pretrain.items()}
    for name, stage in recipe.tuning.items():
        config, row = stage.config, 256 if stage.kind in PAIRED else 128
        work[name] = (_sequences(stage.kind, config) * ANSWER_TOKENS, row, config.micro_tokens // row or 1)
    return work


def _sequences(kind: str, config: Any) -> int:
    """How many prompts with an answer a tuning stage trains on; a critic is counted as its policy is."""
    if kind == "sft":
        return config.steps * config.examples
    if kind == "kto":
        return config.steps * config.answers
    if kind in PAIRED:
        return config.steps * config.pairs * 2
    if kind == "online_dpo":
        return config.steps * config.prompts * 2
    passes = config.epochs * (2 if config.critic == "separate" else 1) if kind == "ppo" else config.updates
    return config.steps * passes * config.prompts * config.samples
