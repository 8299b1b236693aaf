"""One of two pipeline ranks of test_pipeline.py: figures against one process, to a JSON file.

The process group is made as a launcher's ranks make it: `core.dist.start` from the environment.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sekkei.core import dist
from sekkei.core.errors import UserError
from sekkei.data.batch import Batch
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.output import Output
from sekkei.model.transformer import Head
from sekkei.parallel.layout import Layout, Schedule
from sekkei.parallel.mesh import Mesh
from sekkei.parallel.ops import LocalOps, Ops
from sekkei.parallel.pipeline import Pipelined
from sekkei.train.objective import Mean, Metrics, Update
from sekkei.train.pipeline_step import PipelineStep
from sekkei.train.step import PlainStep

CONFIG = ModelConfig(
    hidden_size=16, num_layers=4, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=23, qk_norm=True
)
HEADS: tuple[Head, ...] = ("lm", "value")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class EverythingLoss:
    """Wants all that a model gives, under a temperature, and tells two figures."""

    wants: frozenset[str] = frozenset({"logprobs", "entropy", "values"})
    temperature: float = 0.7

    def units(self, batch: Batch) -> dict[str, Tensor]:
        return {"tokens": batch.mask.sum()}

    def terms(self, out: Output, batch: Batch, ops: Ops) -> tuple[dict[str, Tensor], Metrics]:
        assert out.logprobs is not None
        assert out.entropy is not None
        assert out.values is not None
        assert out.logprobs.shape == batch.mask.shape
        gain = out.logprobs + 0.1 * out.entropy - 0.5 * (out.values - batch.extra["returns"]) ** 2
        entropy = Mean((out.entropy * batch.mask).detach().sum(), batch.mask.sum())
        return {"tokens": -(gain * batch.mask).sum()}, {"entropy": entropy}


def batch(rows: int, tokens: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, CONFIG.vocab_size, (rows, tokens), generator=generator)
    weights = torch.rand(rows, tokens, generator=generator, dtype=torch.float64)
    mask = weights * (weights > 0.5)
    labels = torch.where(mask > 0, ids.roll(-1, 1), -100)
    positions = torch.arange(tokens).expand(rows, -1).contiguous()
    returns = torch.rand(rows, tokens, generator=generator, dtype=torch.float64)
    segments = torch.zeros_like(ids)
    return Batch(ids=ids, labels=labels, mask=mask, positions=positions, segments=segments, extra={"returns": returns})


def error(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    return float((found - wanted).norm() / wanted.norm()) if found.shape == wanted.shape else float("inf")


def figures(schedule: Schedule) -> dict[str, Any]:
    mesh = Mesh(Layout(pp=2, schedule=schedule), "cpu")
    whole, alone = (build(CONFIG, seed=5, heads=HEADS, dtype=torch.float64) for _ in range(2))
    for model in (whole, alone):
        assert model.value_head is not None
        torch.nn.init.constant_(model.value_head.weight, 0.3)
    model = Pipelined(whole, mesh)
    step = PipelineStep({"policy": model}, mesh, CPU, None)
    plain = PlainStep({"policy": alone}, LocalOps(), CPU, None)
    found: dict[str, Any] = {"score": 0.0, "gradient": 0.0, "metrics": 0.0, "steps": []}
    loss = EverythingLoss()
    # rows of a second length bucket, micro-batches of unequal height, and the first bucket again
    for number, (tokens, heights) in enumerate([(12, (2, 1, 2, 1)), (20, (1, 1)), (12, (2, 2, 2, 1))]):
        micro_batches = [batch(rows, tokens, 10 * number + i) for i, rows in enumerate(heights)]
        scores = [s.score("policy", micro_batches[1], loss.wants, loss.temperature) for s in (step, plain)]
        for name in loss.wants:
            found["score"] = max(found["score"], error(*(getattr(score, name) for score in scores)))
        update = Update("policy", micro_batches, loss)
        told, wanted = step.backward(update), plain.backward(update)
        assert told.keys() == wanted.keys()
        for name, mean in wanted.items():
            ratio = float(mean.total / mean.weight)
            found["metrics"] = max(found["metrics"], abs(float(told[name].total / told[name].weight) / ratio - 1))
        gradients = dict(model.gather_gradients())
        assert gradients.keys() == {name for name, _ in alone.named_parameters()}
        for name, parameter in alone.named_parameters():
            found["gradient"] = max(found["gradient"], error(gradients[name], parameter.grad))
        model.publish()
        alone.zero_grad()
        found["steps"].append(tokens)
    for key, wrong in (("lengths", [batch(1, 12, 0), batch(1, 20, 1)]), ("few", [batch(1, 12, 0)])):
        try:
            step.backward(Update("policy", wrong, loss))
        except UserError as refused:
            found[key] = str(refused)
    found["held"] = sorted(name for name, _ in model.model.named_parameters() if name.count(".") == 1)
    return found


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks = dist.start("cpu", seconds=60)
    assert ranks.device == CPU
    assert dist.world_size() == 2
    found: dict[str, Any] = {"message": dist.broadcast_json(["é", dist.rank()], 0)}
    schedules: tuple[Schedule, ...] = ("1f1b", "gpipe", "interleaved", "zero_bubble")
    found |= {schedule: figures(schedule) for schedule in schedules}
    out.write_text(json.dumps(found))
    dist.finish()
    assert dist.world_size() == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
