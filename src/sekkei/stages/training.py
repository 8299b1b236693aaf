"""What every training stage shares: from an objective and models to a finished run of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from sekkei.core.errors import UserError
from sekkei.core.hardware import trim_memory
from sekkei.core.seed import derive_seed
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.flops import flops_per_token
from sekkei.model.transformer import Transformer, run_recomputed
from sekkei.parallel.ops import LocalOps
from sekkei.stages.run import Run
from sekkei.text.tokenizer import Tokenizer
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.loop import Hook, Loop, LoopConfig, Trainee
from sekkei.train.objective import Context, Objective
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

SAMPLE_TOKENS = 60
TRIM_EVERY = 20  # steps between two returns of fragmented memory
DTYPES = {"bf16": torch.bfloat16, "fp32": None}  # autocast dtype of forward and backward


def autocast_dtype(loop: LoopConfig) -> torch.dtype | None:
    return DTYPES[loop.dtype]


def train(
    run: Run,
    stage: str,
    out: Path,
    policy: Transformer,
    objective: Objective,
    *,
    steps: int,
    optim: OptimConfig,
    loop: LoopConfig,
    context: int,
    others: Mapping[str, Transformer] | None = None,
    hooks: Callable[[PlainStep, Engine], Sequence[tuple[int, Hook]]] | None = None,
) -> PlainStep:
    """Train `policy` in place; returns the step, for scoring afterwards.

    Args:
        context: tokens per row, for the FLOPs shown. others: frozen models by role.
        hooks: made once the step and the engine exist.
    """
    policy.to(run.device)
    if loop.recompute == "full":
        policy.run_block = run_recomputed
    models = {"policy": policy, **(others or {})}
    missing = objective.needs - models.keys() - {"engine"}
    if missing:
        raise RuntimeError(f"{stage} needs {', '.join(sorted(missing))} and was not given it")
    ops = LocalOps()
    step = PlainStep(models, ops, run.device, autocast_dtype(loop))
    engine = Engine(policy, dtype=step.autocast)  # as the trainer computes, so that both agree on log-probs

    def generate(requests: list[Request]) -> list:
        engine.refresh(None)
        return engine.generate(requests)

    ctx = Context(
        models=models,
        ops=ops,
        device=run.device,
        seed=derive_seed(run.recipe.seed, stage),
        score=step.score,
        generate=generate,
    )
    trainer = Loop(
        stage=stage,
        steps=steps,
        config=loop,
        objective=objective,
        trainees={"policy": Trainee(policy, Optimizer(policy, optim, steps))},
        step=step,
        ctx=ctx,
        log=run.log,
        checkpoints=Checkpoints(out / "checkpoints", loop.keep_last),
        hooks=[*(hooks(step, engine) if hooks else ()), (TRIM_EVERY, trim_hook)],
        flops_per_token=flops_per_token(policy.config, context),
        peak_flops=run.peak_flops,
    )
    with run.console.bar(stage, steps) as bar:
        trainer.run(bar)
    return step


def trim_hook(done: int) -> Mapping[str, float]:
    """Keeps the process's memory near what a step needs."""
    trim_memory()
    return {}


def check_length(tokens: int, what: str, max_context: int) -> None:
    """Refuse a training sequence that reaches positions which the model does not have.

    Args:
        tokens: ids of the sequence; the last one is only a label and takes no position.
    Raises:
        UserError
    """
    if tokens - 1 > max_context:
        raise UserError(f"{what} has {tokens} tokens, it does not fit model.max_context={max_context}; raise it")


def sample_hook(run: Run, stage: str, engine: Engine, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> Hook:
    """Writes what the model says to fixed prompts into the log, and the first of it on the screen."""
    sampling = Sampling(temperature=0.0, max_tokens=SAMPLE_TOKENS, stop_tokens=(tokenizer.end_id,))

    def hook(done: int) -> Mapping[str, float]:
        engine.refresh(None)
        requests = [Request(prompt_ids=tuple(prompt), sampling=sampling) for prompt in prompts]
        texts = [tokenizer.decode(completions[0].token_ids) for completions in engine.generate(requests)]
        samples = [{"prompt": tokenizer.decode(p), "text": text} for p, text in zip(prompts, texts, strict=True)]
        run.log.write({"stage": stage, "step": done, "samples": samples})
        if not run.console.quiet:
            shown = samples[(done // 7) % len(samples)]
            run.console.say(f"  {stage} {done}: {one_line(shown['prompt'])} ▸ {one_line(shown['text'])}")
        return {}

    return hook


def one_line(text: str, width: int = 90) -> str:
    """Text for one console line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
