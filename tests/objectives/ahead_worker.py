"""One of two gloo ranks (or the only process) that trains with rollouts one step ahead; test_ahead.py compares them.

python ahead_worker.py RANK WORLD STORE OUT
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from sekkei.engine.request import Completion
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.objectives.ahead import OwnCopy
from sekkei.objectives.grpo import GRPO, GRPOConfig
from sekkei.objectives.rollout import Prompt
from sekkei.parallel.layout import Layout
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.ops import LocalOps
from sekkei.stages.training import place, step_of
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep, Step
from sekkei.train.trainee import Trainee

CPU, STEPS, END = torch.device("cpu"), 4, 2
SIZES = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=24, vocab_size=19, qk_norm=True
)


def wants_fives(answer: Completion) -> dict[str, float]:
    return {"reward": sum(token == 5 for token in answer.token_ids) / 4}


def main(rank: int, world: int, store: str, out: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        kept = dist.FileStore(store, world)
        dist.init_process_group("gloo", store=kept, rank=rank, world_size=world, timeout=timedelta(seconds=100))
    model = build(SIZES, seed=1)
    placed = place(model, Mesh(Layout(dp=world, zero=3), "cpu")) if world > 1 else None
    step: Step = PlainStep({"policy": model}, LocalOps(), CPU, None)
    if placed is not None:
        step = step_of({"policy": placed}, placed.mesh, CPU, None)  # type: ignore[union-attr]
    trained = model if placed is None else placed.model
    optimizer = Optimizer(trained, OptimConfig(lr=0.02, schedule="constant"), STEPS, placed=placed)
    trainee = Trainee(trained, optimizer, placed)
    engine = OwnCopy(placed if placed is not None else model, CPU, None)
    ctx = Context(models={"policy": trained}, ops=LocalOps(), device=CPU, seed=3, score=step.score, generate=engine)
    config = GRPOConfig(
        steps=STEPS, prompts=3, samples=4, max_tokens=4, temperature=0.8, off_by=1, correction="token_truncate"
    )
    objective = GRPO(lambda index: Prompt((1, 3 + index % 4), wants_fives), config, (END,))
    found = []
    for ctx.step in range(STEPS):
        for update in objective.next_step(ctx):
            step.backward(update)
            trainee.parts.clip(1.0)
            optimizer.step(ctx.step)
            trainee.parts.publish()
        answers = [[(c.token_ids, c.logprobs, c.weights_hash) for c in g.completions] for g in objective.groups]
        state = objective.state_dict()  # waits, and all ranks take part
        found.append({"answers": answers, "pending": state.get("pending"), **objective.step_metrics()})
    out.write_text(json.dumps(found))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
