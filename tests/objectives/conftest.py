"""One thread (at these sizes a second one only waits), and the golden files of TRL's losses and gradients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sekkei.data.batch import Batch
from sekkei.model.hf import PARTS, TOP, config_from_hf
from sekkei.model.transformer import Transformer
from sekkei.parallel.ops import LocalOps
from sekkei.train.objective import Context, Loss, Update
from sekkei.train.step import PlainStep

FOLDER = Path(__file__).with_name("golden")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def theirs(name: str) -> str:
    """Our parameter's name in a Hugging Face model."""
    if name in TOP:
        return TOP[name]
    if name == "reward_head.weight":
        return "score.weight"
    _, layer, part, rest = name.split(".", 3)
    return f"model.layers.{layer}.{PARTS[part]}.{rest}"


class Golden:
    """What golden/make.py has written, and the comparison with it."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = json.loads((FOLDER / "results.json").read_text())
        self.inputs: dict[str, Any] = json.loads((FOLDER / "inputs.json").read_text())
        self.weights = load_file(FOLDER / "models.safetensors")
        self.gradients = load_file(FOLDER / "gradients.safetensors")
        self.config = config_from_hf({"model_type": "llama", **self.results["config"]})

    def settings(self, case: str) -> dict[str, Any]:
        return self.results["cases"][case]["settings"]

    def model(self, name: str) -> Transformer:
        """The policy, the reference or the reward model, in float64."""
        model = Transformer(self.config, heads=("reward",) if name == "reward" else ("lm",)).double()
        with torch.no_grad():
            for ours, parameter in model.named_parameters():
                parameter.copy_(self.weights[f"{name}/{theirs(ours)}"])
        return model

    def context(self, policy: str = "policy", reference: str = "reference") -> Context:
        models = {"policy": self.model(policy), "reference": self.model(reference)}
        ops = LocalOps()
        return Context(models=models, ops=ops, device=CPU, seed=0, score=PlainStep(models, ops, CPU, None).score)

    def error(self, case: str, ctx: Context, batches: Sequence[Batch], loss: Loss) -> float:
        """The largest relative error of the loss or of any parameter's gradient, in float64."""
        model = ctx.models["policy"]
        model.zero_grad(set_to_none=True)
        step = PlainStep({"policy": model}, LocalOps(), CPU, None)
        metrics = step.backward(Update("policy", [wide(batch) for batch in batches], loss))
        true = self.results["cases"][case]["loss"]
        errors = [abs(float(metrics["loss"].total) - true) / max(abs(true), 1e-6)]
        names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        known = {name: self.gradients[f"{case}/{theirs(name)}"].double() for name in names}
        assert len([k for k in self.gradients if k.startswith(f"{case}/")]) == len(names)
        whole = torch.stack([g.norm() for g in known.values()]).norm()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gap = (parameter.grad - known[name]).norm()
            errors.append(float(gap / torch.maximum(known[name].norm(), 1e-6 * whole)))
        return max(errors)


def wide(batch: Batch) -> Batch:
    """Masks and extras in float64."""
    extra: dict[str, Tensor] = {name: x.double() for name, x in batch.extra.items()}
    return replace(batch, mask=batch.mask.double(), extra=extra)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()
