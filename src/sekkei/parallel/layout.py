"""How a model is spread over processes: the `layout:` of a recipe, and its arithmetic.

    world = pp · replicate · shard · cp · tp     dp = replicate · shard

    rank  0  1  2  3  4  5  6  7                 axes from outer to inner: ranks that differ in tp only are neighbours,
    pp    0  0  0  0  1  1  1  1                 because tensor parallelism talks most (inside a node), pipelines least
    dp    0  0  1  1  0  0  1  1                 (between nodes)
    tp    0  1  0  1  0  1  0  1

ZeRO stages (Rajbhandari et al. 2020, section 5) say what the data ranks divide between them: 0 nothing, 1 optimizer
state, 2 gradients too, 3 parameters too. Context-parallel ranks hold the same parameters and see other tokens, so for
sums of gradients and for sharding they are data ranks. Pipeline ranks hold other layers and share nothing.

Experts (model/moe.py) are spread over `ep` neighbouring data ranks, which lie inside shard · cp. Ranks that hold the
same experts, `ep` apart, are the data ranks of these:

    shard · cp   0 1 2 3       ep = 2: experts   A B A B       sums over {0, 2} and {1, 3}; of all else, over all four
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sekkei.core.errors import ConfigError
from sekkei.model.config import ModelConfig

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]
CHUNKS: dict[Schedule, int] = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zero_bubble": 2}
"""Stages that a pipeline rank holds: with two, the bubble of the first is filled by the second."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One line of a recipe.

    Args:
        pp: pipeline ranks, each with some layers; schedule: the order of their work.
        dp: data-parallel ranks. replicate: how many groups of them hold the same shards (hybrid sharding; divides dp).
        cp: ranks that share one row (ring attention). tp: ranks that share one layer. zero: stage 0 to 3.
        ep: data ranks that share the experts of each layer.
        reshard: stage 3 frees a block's gathered parameters after the forward pass and gathers them again.
        context: how cp ranks share keys and values: passed round a ring, or gathered at once.
        sequence_parallel: the residual stream between tensor-parallel parts is cut over tp, too.
        microbatches: parts of each data rank's rows in an update, at least (0: as few as possible).
        recompute: what a backward pass computes again: `selective` attention's scores (Korthikanti et al. 2022,
        section 5), `full` whole blocks. weights: of the model while it trains; `bf16` keeps float32 masters, divided as
        `zero` says, and `reduce` is the dtype in which gradients of data ranks are then summed.
        offload: `zero=3` keeps parameters and moments in the CPU's memory. compile: fuse blocks by torch.compile.
    """

    pp: int = 1
    dp: int = 1
    replicate: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    zero: int = 0
    reshard: bool = True
    context: Literal["ring", "gather"] = "ring"
    sequence_parallel: bool = False
    schedule: Schedule = "1f1b"
    microbatches: int = 0
    recompute: Recompute = "none"
    weights: Literal["fp32", "bf16"] = "fp32"
    reduce: Literal["fp32", "bf16"] = "fp32"
    offload: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for key in ("pp", "dp", "replicate", "cp", "tp", "ep"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"got {getattr(self, key)}, must be >= 1")
        if not 0 <= self.zero <= 3:
            raise ConfigError("zero", f"got {self.zero}, must be 0, 1, 2 or 3")
        if self.dp % self.replicate:
            raise ConfigError("replicate", f"replicate={self.replicate} must divide dp={self.dp}")
        if self.zero and self.dp * self.cp == 1:
            raise ConfigError("zero", f"zero={self.zero} divides state between data ranks: dp·cp = 1·1 has one")
        if self.replicate > 1 and self.zero != 3:
            raise ConfigError("replicate", f"replicate={self.replicate} is a form of zero=3, got zero={self.zero}")
        if self.pp > 1 and self.schedule == "zero_bubble" and self.zero == 3:
            raise ConfigError(
                "schedule", "zero_bubble puts weight gradients off, where zero=3 does not see them: zero <= 2"
            )
        if self.pp > 1 and self.schedule == "zero_bubble" and self.recompute == "full":
            raise ConfigError(
                "recompute",
                "full would compute a block again for its input and once more for every matrix of it, as zero_bubble "
                "takes these gradients apart: none, selective, or schedule=interleaved",
            )
        if self.context != "ring" and self.cp == 1:
            raise ConfigError("context", f"{self.context!r} is a way to share a row over cp, and cp=1")
        if self.sequence_parallel and self.tp == 1:
            raise ConfigError("sequence_parallel", "cuts the sequence over tp, and tp=1")
        if self.microbatches < 0:
            raise ConfigError("microbatches", f"got {self.microbatches}, must be >= 0 (0: as few as possible)")
        shard = self.dp // self.replicate
        if shard * self.cp % self.ep:
            raise ConfigError("ep", f"ep={self.ep} must divide dp/replicate·cp = {shard}·{self.cp} = {shard * self.cp}")
        self._check_weights()

    def _check_weights(self) -> None:
        if self.weights == "bf16" and self.world == 1:
            raise ConfigError("weights", "'bf16' needs ranks that keep float32 masters; one process casts (loop.dtype)")
        if self.reduce == "bf16" and self.weights == "fp32":
            raise ConfigError("reduce", "'bf16' sums gradients in the weights' dtype: set weights=bf16 as well")
        if self.compile and self.world == 1:
            raise ConfigError("compile", "is for the parts of several ranks; one process runs its blocks as they are")
        if self.compile and self.recompute == "selective":
            raise ConfigError("compile", "fuses whole blocks, and recompute=selective reaches into them: none or full")
        if self.compile and self.pp > 1 and self.schedule == "zero_bubble":
            raise ConfigError("compile", "computes a block's gradients at once, and zero_bubble takes them apart")
        if self.offload and self.zero != 3:
            raise ConfigError("offload", f"is a form of zero=3, got zero={self.zero}")

    @property
    def world(self) -> int:
        """Processes that it needs."""
        return self.pp * self.dp * self.cp * self.tp

    @property
    def stages(self) -> int:
        """Parts that the model is cut into, one after the other."""
        return self.pp * CHUNKS[self.schedule] if self.pp > 1 else 1

    @property
    def name(self) -> str:
        """Short, as in tables: `dp2·tp2 zero3`."""
        axes = [f"{key}{value}" for key in ("pp", "dp", "cp", "tp", "ep") if (value := getattr(self, key)) > 1]
        marks = [self.schedule] if self.pp > 1 else []
        marks += [f"zero{self.zero}"] if self.zero else []
        marks += [f"replicate{self.replicate}"] if self.replicate > 1 else []
        marks += ["keep"] if self.zero == 3 and not self.reshard else []
        marks += [self.context] if self.context != "ring" else []
        marks += ["sp"] if self.sequence_parallel else []
        marks += [f"m{self.microbatches}"] if self.microbatches else []
        marks += {"none": [], "selective": ["recompute-scores"], "full": ["recompute"]}[self.recompute]
        marks += [f"{self.weights} weights"] if self.weights != "fp32" else []
        marks += [f"{self.reduce} sums"] if self.reduce != "fp32" else []
        marks += ["offload"] if self.offload else []
        marks += ["compile"] if self.compile else []
        return " ".join(["·".join(axes) or "single", *marks])

    def check(self, model: ModelConfig, world: int | None = None, tokens: int | None = None) -> None:
        """Refuse what does not divide.

        Args:
            world: processes there are. tokens: of a row.
        Raises:
            ConfigError: with the arithmetic.
        """
        if world is not None and world != self.world:
            product = f"pp·dp·cp·tp = {self.pp}·{self.dp}·{self.cp}·{self.tp} = {self.world}"
            raise ConfigError("layout", f"{product}, and there are {world} processes")
        self._check_experts(model)
        for key in ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size"):
            if getattr(model, key) % self.tp:
                raise ConfigError("layout.tp", f"tp={self.tp} must divide model.{key}={getattr(model, key)}")
        if model.tied_embeddings and self.tp > 1:
            raise ConfigError("layout.tp", f"tp={self.tp} cannot cut tied embeddings; set model.tied_embeddings=false")
        self._check_stages(model)
        if tokens is not None:
            check_length(tokens, self.cp)
            if self.sequence_parallel and tokens // self.cp % self.tp:
                raise ConfigError(
                    "layout.sequence_parallel", f"tp={self.tp} must divide a rank's {tokens}/{self.cp} tokens"
                )

    def check_micro_batches(self, count: int) -> None:
        """Refuse an update that the schedule cannot run.

        Args:
            count: micro-batches of each data rank.
        Raises:
            ConfigError: fewer than stages (the pipeline would never be full), or not whole rounds.
        """
        if self.pp > 1 and self.schedule == "1f1b" and count < self.pp:
            raise ConfigError(
                "layout.pp", f"1f1b needs pp={self.pp} micro-batches per data rank, an update has {count}"
            )
        if self.pp > 1 and CHUNKS[self.schedule] > 1 and count % self.pp:
            raise ConfigError(
                "layout.schedule", f"{self.schedule} goes in rounds: pp={self.pp} must divide {count} micro-batches"
            )

    def _check_experts(self, model: ModelConfig) -> None:
        if model.moe is None:
            if self.ep > 1:
                raise ConfigError("layout.ep", f"ep={self.ep} spreads experts, and model.moe is not set")
            return
        if self.tp > 1:
            raise ConfigError("layout.tp", f"tp={self.tp} cuts models without model.moe; use ep, dp, cp and pp")
        if model.moe.experts % self.ep:
            raise ConfigError("layout.ep", f"ep={self.ep} must divide model.moe.experts={model.moe.experts}")

    def _check_stages(self, model: ModelConfig) -> None:
        if self.pp == 1:
            return
        if model.tied_embeddings:
            raise ConfigError(
                "layout.pp", f"pp={self.pp} puts tied embeddings on two ranks; set model.tied_embeddings=false"
            )
        if model.num_layers % self.stages:
            product = f"pp·{CHUNKS[self.schedule]} = {self.stages} stages of {self.schedule}"
            raise ConfigError("layout.pp", f"{product} must divide model.num_layers={model.num_layers}")


def check_length(tokens: int, size: int, key: str = "layout.cp") -> None:
    """Refuse rows that cannot be cut.

    Args:
        tokens: `T` of a whole row; size: ranks on the context-parallel axis.
        key: recipe key that the error names.
    Raises:
        ConfigError: 2·size does not divide `tokens`. A single rank cuts nothing and takes any length.
    """
    step = 2 * size
    if size > 1 and (tokens % step or not tokens):
        below, above = tokens // step * step, (tokens // step + 1) * step
        near = f"{below} or {above} would" if below else f"{above} would"
        sum_ = f"{tokens} = {tokens // step}·{step} + {tokens % step}"
        raise ConfigError(key, f"2·cp = 2·{size} = {step} must divide the row length: {sum_}; {near}")
