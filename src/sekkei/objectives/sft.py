"""Supervised fine-tuning: behaviour cloning of the assistant's turns.

The loss is the pretraining loss on the tokens that the chat template frames as learned: every assistant
turn, its think block and its stop token. Conversations are packed into rows and do not see each other.
It does not handle conversations longer than a row: those are refused when the data is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sekkei.core.errors import ConfigError
from sekkei.data.batch import Batch, Sample, lay_out
from sekkei.data.packing import pack
from sekkei.data.tasks.chain import STYLES, Style
from sekkei.engine.request import Sampling
from sekkei.objectives.conversations import Learn
from sekkei.objectives.pretrain import TokenLoss
from sekkei.objectives.ranges import check_ranges, check_used
from sekkei.text.chat import Rendered
from sekkei.train.loop import LoopConfig
from sekkei.train.objective import Context, Update
from sekkei.train.optim import OptimConfig

ROW_LENGTHS = (
    *range(32, 257, 32),
    *range(320, 513, 64),
    *range(640, 1025, 128),
    *range(1280, 2049, 256),
    *range(2560, 4097, 512),
)  # buckets: few shapes for compiled graphs and pipelines, at most a fifth too long (from 128 on)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Reinforcement learning needs something to select from: sampled pass@1 of at least `min_pass1_sampled` on
    held-out problems. Where SFT misses it, it goes on for `extra_steps`, at most `rounds` times, then fails.
    """

    min_pass1_sampled: float = 0.1
    extra_steps: int = 300
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.min_pass1_sampled <= 1:
            raise ConfigError("min_pass1_sampled", f"got {self.min_pass1_sampled}, must be in 0 … 1 (0 = no gate)")
        if self.extra_steps < 1 or self.rounds < 0:
            raise ConfigError("extra_steps", f"extra_steps={self.extra_steps} must be >= 1, rounds={self.rounds} >= 0")


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """Rejection sampling (DeepSeek-AI 2025, "DeepSeek-R1", section 2.3.3): what a model wrote and the verifier called
    right takes the place of demonstrations.

    Args:
        stage: whose model writes. prompts: problems asked. samples: answers to each. per_prompt: kept at most.
    """

    stage: str
    prompts: int = 1024
    samples: int = 2
    per_prompt: int = 1
    temperature: float = 1.0
    max_tokens: int = 96

    def __post_init__(self) -> None:
        check_ranges(self, counts=("prompts", "samples", "per_prompt", "max_tokens"))
        Sampling(temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Instruction tuning.

    Args:
        examples: conversations of the global batch. everyday: share of everyday turns; refusals: of harmful
            requests refused and harmless ones answered; tools: of sums worked out with the calculator; the rest are
            chains, or the conversations of `path`.
        turns: share of the chains that stand in conversations of several, all in one style, so that examples in
            earlier turns mean something.
        styles: in which chains are demonstrated, equally often. own: chains written by an earlier stage instead.
        path: conversations of one's own, see conversations.py. learn: of them, all assistant turns or the last.
        conversations: distinct everyday conversations. micro_tokens: tokens per forward pass, about.
    """

    steps: int
    examples: int = 64
    everyday: float = 0.3
    refusals: float = 0.05
    tools: float = 0.0
    turns: float = 0.0
    styles: tuple[Style, ...] = STYLES
    own: OwnConfig | None = None
    path: str | None = None
    learn: Learn = "all"
    conversations: int = 20_000
    micro_tokens: int = 8192
    gate: GateConfig = field(default_factory=GateConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        counts = ("steps", "examples", "conversations", "micro_tokens")
        check_ranges(self, counts=counts, shares=("everyday", "refusals", "tools", "turns"))
        if self.everyday + self.refusals + self.tools > 1:
            shares = f"everyday={self.everyday}, refusals={self.refusals} and tools={self.tools}"
            raise ConfigError("refusals", f"{shares} sum to more than 1")
        if not self.styles:
            raise ConfigError("styles", f"names no style; there are {', '.join(STYLES)}")
        if self.path is not None and self.own is not None:
            raise ConfigError("own", f"got {self.own.stage}, and path={self.path}: both take the chains' place")
        check_used(self, (self.path is None, "it is about the conversations of path; name their file", ("learn",)))


def packed_rows(lengths: Sequence[int]) -> tuple[int, list[list[int]]]:
    """Which sequences share a row, and how long rows are: the bucket with the least padding in all.

    Tried are the buckets that hold the longest sequence and are at most twice as long; of equally good ones the
    shortest, whose attention costs least. What no bucket holds gets rows of its own length.

    Returns:
        tokens per row, and the rows as indices into `lengths`.
    """
    longest = max(lengths)
    fitting = [tokens for tokens in ROW_LENGTHS if tokens >= longest] or [longest]
    tried = [tokens for tokens in fitting if tokens <= 2 * longest] or fitting[:1]
    found = [(tokens, pack(lengths, tokens)) for tokens in tried]
    return min(found, key=lambda one: (one[0] * len(one[1]), one[0]))


def pack_samples(samples: Sequence[Sample], micro_tokens: int, in_order: bool = False) -> list[Batch]:
    """Pack samples into micro-batches of at most about `micro_tokens` tokens, all of one row length.

    in_order: neighbours stay in one micro-batch, where what they share is computed once (train/shared_prompts.py).
    """
    tokens, places = packed_rows([sample.length for sample in samples])
    if in_order:
        parts = [_rows_of(part, tokens) for part in _runs(samples, micro_tokens)]
    else:
        rows, size = [[samples[i] for i in row] for row in places], max(1, micro_tokens // tokens)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    width = max(len(row) for rows in parts for row in rows)
    return [lay_out(rows, tokens, width) for rows in parts]


def _runs(samples: Sequence[Sample], tokens: int) -> list[list[Sample]]:
    """Consecutive samples of at most `tokens` tokens together, at least one."""
    runs: list[list[Sample]] = [[]]
    room = tokens
    for sample in samples:
        if runs[-1] and sample.length > room:
            runs.append([])
            room = tokens
        runs[-1].append(sample)
        room -= sample.length
    return runs


def _rows_of(samples: Sequence[Sample], tokens: int) -> list[list[Sample]]:
    return [[samples[i] for i in row] for row in pack([sample.length for sample in samples], tokens)]


def sft_sample(rendered: Rendered) -> Sample:
    """Learned tokens weigh 1, the others 0."""
    return Sample(ids=rendered.ids, weights=[float(flag) for flag in rendered.learned])


class SFT:
    """Trains on conversations.

    Args:
        example: index -> sample, a pure function, endless.
        examples_per_step: of the global batch. micro_tokens: tokens per forward pass, about.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, example: Callable[[int], Sample], examples_per_step: int, micro_tokens: int) -> None:
        self.example, self.examples_per_step, self.micro_tokens = example, examples_per_step, micro_tokens
        self.next_example = 0

    def next_step(self, ctx: Context) -> list[Update]:
        samples = [self.example(self.next_example + i) for i in range(self.examples_per_step)]
        self.next_example += self.examples_per_step
        return [Update("policy", pack_samples(samples, self.micro_tokens), TokenLoss())]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing to control."""

    def step_metrics(self) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"next_example": self.next_example}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.next_example = state["next_example"]
