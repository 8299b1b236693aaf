"""What every training stage shares: from an objective and models to a finished run of the loop, on any layout.

    Training(run, stage, policy, loop)     places the models, and offers ctx.score and ctx.generate
        .train(objective, steps, optim)    THE loop
        .model()                           the trained model, whole

On one process models are trained as they are. Under a layout every rank begins with whole models, keeps its parts of
them (parallel/apply.py, pipeline.py), and generates with a whole copy that is refreshed before each rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from sekkei.core import dist
from sekkei.core.errors import UserError
from sekkei.core.hardware import fast_dtype, trim_memory
from sekkei.core.seed import derive_seed
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.flops import flops_per_token
from sekkei.model.lora import LoRAConfig, add_lora, lora_layers
from sekkei.model.transformer import RUN_BLOCK, Transformer
from sekkei.parallel.apply import Sharded
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.ops import LocalOps
from sekkei.parallel.pipeline import Pipelined
from sekkei.stages.run import NAME_WIDTH, Run
from sekkei.text.tokenizer import Tokenizer
from sekkei.train.checkpoint import Checkpoints
from sekkei.train.deal import DealingStep
from sekkei.train.gathered import GatheredEngine, gathered
from sekkei.train.loop import Hook, Loop, LoopConfig
from sekkei.train.objective import Context, Objective
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.pipeline_step import PipelineStep
from sekkei.train.sharded_step import ShardedStep
from sekkei.train.step import BaseReference, PlainStep, Step
from sekkei.train.trainee import Trainee

SAMPLE_TOKENS = 60
TRIM_EVERY = 20  # steps between two returns of fragmented memory
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
Generate = Callable[[Sequence[Request]], list]


def compute_dtype(loop: LoopConfig, device: torch.device) -> torch.dtype:
    """Of forward and backward passes."""
    return fast_dtype(device) if loop.dtype == "auto" else DTYPES[loop.dtype]


def autocast_dtype(loop: LoopConfig, device: torch.device) -> torch.dtype | None:
    """What autocast computes in; None: the weights' own float32."""
    dtype = compute_dtype(loop, device)
    return dtype if dtype == torch.bfloat16 else None


class Training:
    """The models of one training stage, placed as the run's layout says.

    Args:
        policy: is trained; in place on one process. critic: is trained beside it. others: frozen models by role.
        lora: train an adapter of the policy instead of its weights; without it the policy is the role "reference".
        context: tokens per row, for the FLOPs shown.
    Attributes:
        step: how models are run. ctx: what an objective may use. generate: with the policy's weights of now.
        costs: of `train`: tokens trained on, models held, bytes of their weights, gradients and optimizer states here.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        policy: Transformer,
        loop: LoopConfig,
        context: int,
        others: Mapping[str, Transformer] | None = None,
        critic: Transformer | None = None,
        lora: LoRAConfig | None = None,
    ) -> None:
        self.run, self.stage, self.loop, self.context = run, stage, loop, context
        self.whole, self.lora = policy, lora
        if lora is not None and not lora_layers(policy):  # a stage may train in several rounds
            add_lora(policy, lora, run.recipe.seed)
        self.config = policy.config
        self.moved = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        autocast = autocast_dtype(loop, run.device)
        trained = {"policy": policy, **({"critic": critic} if critic is not None else {})}
        models = {**trained, **(others or {})}
        for role, model in models.items():
            model.to(run.device, torch.float64 if loop.dtype == "fp64" else None)
            if role in trained:
                model.run_block = RUN_BLOCK[run.recipe.layout.recompute]
            else:
                model.requires_grad_(False)
        self.placed: dict[str, Sharded | Pipelined] = {}
        self.step: Step
        self.generate: Generate | None = None  # a reward model writes nothing
        writes = policy.lm_head is not None
        if run.mesh is None:
            self.step = PlainStep(models, LocalOps(), run.device, autocast)
            if writes:
                # in the dtype that the trainer computes in: log-probs must agree
                self.generate = _sharing(Engine(policy, dtype=autocast))
            parts: Mapping[str, nn.Module] = models
        else:
            self.placed = {role: place(model, run.mesh) for role, model in models.items()}
            self.step = step_of(self.placed, run.mesh, run.device, autocast)
            if writes:
                self.generate = GatheredEngine(self.placed["policy"], run.device, autocast)
            parts = {role: model.model for role, model in self.placed.items()}
        if lora is not None:
            self.step = BaseReference(self.step, parts["policy"])
            parts = {"reference": parts["policy"], **parts}
        self.parts, self.trained = parts, trained.keys()
        self.costs: dict[str, float] = {}
        self.ctx = Context(
            models=parts,
            ops=LocalOps(),  # an objective sees whole rows, on every rank
            device=run.device,
            seed=derive_seed(run.recipe.seed, stage),
            score=self.step.score,
            generate=self.generate,
        )

    def train(
        self,
        out: Path,
        objective: Objective,
        steps: int,
        optim: OptimConfig,
        hooks: Sequence[tuple[int, Hook]] = (),
        critic_optim: OptimConfig | None = None,
    ) -> None:
        """Bring the stage to its last step, from its newest checkpoint if there is one."""
        missing = objective.needs - self.parts.keys() - {"engine"}
        if missing:
            raise RuntimeError(f"{self.stage} needs {', '.join(sorted(missing))} and was not given it")
        run, loop = self.run, self.loop
        muon = torch.float64 if loop.dtype == "fp64" else fast_dtype(run.device)
        trainees = {}
        for role in self.trained:
            model, placed = self.parts[role], self.placed.get(role)
            settings = (critic_optim or optim) if role == "critic" else optim
            trainees[role] = Trainee(model, Optimizer(model, settings, steps, muon, placed), placed)
        checkpoints = Checkpoints(out / "checkpoints", loop.keep_last, share=share(run.mesh))
        if 0 < checkpoints.newest() < steps:
            run.console.say(f"{self.stage:<{NAME_WIDTH}} goes on from step {checkpoints.newest()} of {steps}")
        trainer = Loop(
            stage=self.stage,
            key=run.recipe.key_of(self.stage),
            steps=steps,
            config=loop,
            objective=objective,
            trainees=trainees,
            step=self.step,
            ctx=self.ctx,
            log=run.log,
            checkpoints=checkpoints,
            hooks=[*hooks, (TRIM_EVERY, trim_hook)],
            flops_per_token=flops_per_token(self.config, self.context),
            peak_flops=run.peak_flops(compute_dtype(loop, run.device)) * dist.world_size(),
        )
        with run.console.bar(self.stage, steps) as bar:
            trainer.run(bar)
        optimizers = [tensor for trainee in trainees.values() for tensor in trainee.optimizer.tensors().values()]
        models = {id(model): model for model in self.parts.values()}  # the base of an adapter has two roles
        weights = [weight for model in models.values() for weight in model.parameters()]
        gradients = [weight for weight in weights if weight.requires_grad]
        self.costs = {
            "tokens": float(trainer.tokens),
            "models": float(len(models)),
            "model_bytes": float(sum(t.numel() * t.element_size() for t in (*weights, *gradients, *optimizers))),
        }

    def model(self) -> Transformer:
        """The policy, whole; under a layout a copy that is gathered now, on every rank."""
        if not self.placed:
            return self.whole
        model = gathered(self.placed["policy"], self.run.device, masters=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.moved)
        return model


def place(model: Transformer, mesh: Mesh) -> Sharded | Pipelined:
    """Let this rank keep its part of a whole model."""
    return Pipelined(model, mesh) if mesh.layout.pp > 1 else Sharded(model, mesh)


def step_of(
    placed: Mapping[str, Sharded | Pipelined], mesh: Mesh, device: torch.device, autocast: torch.dtype | None
) -> Step:
    """The step that deals rows to data ranks and runs models under the mesh."""
    pipelined = {role: model for role, model in placed.items() if isinstance(model, Pipelined)}
    sharded = {role: model for role, model in placed.items() if isinstance(model, Sharded)}
    if pipelined:
        return DealingStep(PipelineStep(pipelined, mesh, device, autocast), mesh)
    return DealingStep(ShardedStep(sharded, mesh, device, autocast), mesh)


def share(mesh: Mesh | None) -> tuple[int, int]:
    """(place, how many) of this rank among those with parts of the same tensors: those of its pipeline rank."""
    holders = 1 if mesh is None else mesh.layout.world // mesh.layout.pp
    return dist.rank() % holders, holders


def _sharing(engine: Engine) -> Generate:
    """The engine's weights are the trainer's own: they only have to be told to have changed."""

    def generate(requests: Sequence[Request]) -> list:
        engine.refresh(None)
        return engine.generate(list(requests))

    return generate


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


def sample_hook(training: Training, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> Hook:
    """Writes what the model says to fixed prompts into the log, and the first of it on the screen."""
    run, stage = training.run, training.stage
    sampling = Sampling(temperature=0.0, max_tokens=SAMPLE_TOKENS, stop_tokens=(tokenizer.end_id,))

    def hook(done: int) -> Mapping[str, float]:
        assert training.generate is not None
        requests = [Request(prompt_ids=tuple(prompt), sampling=sampling) for prompt in prompts]
        texts = [tokenizer.decode(completions[0].token_ids) for completions in training.generate(requests)]
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
