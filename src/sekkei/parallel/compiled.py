"""Blocks through `torch.compile`: what stands between matmuls is fused into few kernels; the sums stay the same.

    tensor parallel ── compile ── recompute ── fully_shard          (docs/design.md, section 4)

    block.forward    one graph per shape, shared by all blocks; collectives, and attention that calls them, run
                     between its pieces as they are

Experts are not compiled: each gets another number of rows in every step. Masks are made before the first block, so that
blocks of one kind are one graph and a recomputed block saves what the first pass saved. Refused by the layout:
`recompute: selective`, which reaches into a block, and `zero_bubble`, which takes a block's weight gradients apart from
its input's. It does not handle head and loss, which have kernels of their own.
"""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch import Tensor

from sekkei.core.errors import ConfigError
from sekkei.model.attention import DenseAttend
from sekkei.model.layers import Attend, Rope
from sekkei.model.moe import MoE
from sekkei.model.transformer import Block, RunBlock, Transformer

SHAPES = 64  # graphs of one block before torch gives up and runs it as it is; its own limit of 8 is three lengths


def check_compiler() -> None:
    """Refuse where this machine cannot compile.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise ConfigError(
            "layout.compile",
            f"needs a C++ compiler, and {name} is not here: install it, name yours in CXX, or set false",
        )


def compile_blocks(model: Transformer) -> None:
    """Compile every block of a model, in place, whatever it was cut into.

    Raises:
        ConfigError: as `check_compiler`.
    """
    check_compiler()
    torch._dynamo.config.recompile_limit = SHAPES
    for block in model.layers.values():
        if isinstance(block.mlp, MoE):
            block.mlp.forward = torch.compiler.disable(block.mlp.forward)  # type: ignore[method-assign]
        block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
    model.run_block = _prepared(model.run_block)


def _prepared(run: RunBlock) -> RunBlock:
    def prepared(block: Block, x: Tensor, rope: Rope, attend: Attend, layer: int) -> Tensor:
        if isinstance(attend, DenseAttend):
            attend.prepare(rope[0])
        else:
            attend = _Aside(attend)
        return run(block, x, rope, attend, layer)

    return prepared


class _Aside:
    """Attention that is not compiled: it talks to other ranks."""

    def __init__(self, attend: Attend) -> None:
        self.attend, self.segments = attend, getattr(attend, "segments", None)

    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        return self.attend(q, k, v, layer)
