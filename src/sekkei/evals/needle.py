"""A needle in a haystack: does the model find one sentence in a long text, at every length and depth?

    "… The grass is green. … The pass key is 48213. Remember it. … What is the pass key?" -> "The pass key is 48213"
     └──────────────── `length` tokens, the needle at `depth` (0 = first, 1 = last) ──────┘

The pass-key task of Mohtashami and Jaggi 2023 (arXiv:2305.16300), over a grid of lengths and depths. Two scores:

    rank     the true key is likelier, as the answer's continuation, than each of `candidates` - 1 other keys that do
             not stand in the text. Chance is 1 / candidates. It needs a model that can score, follows no instruction,
             and tells apart "found it" from "can write it down". Ties count as 1 / their number.
    recall   the reply holds the key. Chance is about 0. For endpoints, which only write.

Every cell has its own keys and interval; "found" is the mean over the grid with a bootstrap over cells' trials.
The haystack is a short passage repeated, or a text of one's own. Lengths count tokens where the model is ours, else
characters / 4 stand in, and the result says so.

What it does not handle: several needles, needles that must be combined (RULER), questions in other words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.evals.ask import Progress, no_progress, sample_all, score_all
from sekkei.evals.choice import share_right
from sekkei.evals.maths import sampling
from sekkei.evals.outcome import Figure, Outcome, mean
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Settings, counted, user

HAY = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ",
    "A river runs to the sea. The wind moves the leaves. Bread is baked in the morning. ",
)
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
TEMPLATE = "{haystack}\nWhat is the pass key?"
ANSWER = "The pass key is {key}"
KEYS = range(10_000, 100_000)


@dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """The grid.

    Args:
        lengths: of the whole prompt, in tokens. depths: from 0 (the needle comes first) to 1 (last).
        trials: keys per cell. candidates: keys that are compared for the rank.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    trials: int = 8
    candidates: int = 8

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError("lengths", f"got {list(self.lengths)}, must list lengths of 1 token or more")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ConfigError("depths", f"got {list(self.depths)}, must list shares from 0 to 1")
        if self.trials < 1 or self.candidates < 2:
            raise ConfigError("trials", f"trials={self.trials} must be >= 1 and candidates={self.candidates} >= 2")


def evaluate_needle(
    llm: LLM,
    config: NeedleConfig,
    settings: Settings,
    count: Callable[[str], int] | None = None,
    hay: str = "",
    progress: Progress = no_progress,
) -> Outcome:
    """The share of keys that are found, by length and depth.

    Args:
        count: tokens of a prompt with this text, whatever frames it; None: characters / 4.
        hay: a text of one's own, else a passage is repeated.
    Raises:
        UserError: a length is too short for needle and question, or too long for the model.
    """
    room, known = llm.capabilities.max_context, count is not None
    measure = count or (lambda text: len(text) // 4)
    if room is not None and max(config.lengths) > room:
        raise UserError(f"needle: length {max(config.lengths)} is above the model's context of {room} tokens")
    rng = random.Random(derive_seed("needle", settings.seed))
    sentences = _sentences(hay)
    sizes = [measure(" " + sentence) - measure("") for sentence in sentences]
    cells, prompts, keys = [], [], []
    for length in config.lengths:
        for depth in config.depths:
            for _ in range(config.trials):
                drawn = rng.sample(KEYS, config.candidates)
                begin = rng.randrange(len(sentences))
                prompts.append(_prompt(sentences, sizes, begin, length, depth, drawn[0], measure))
                cells.append((length, depth))
                keys.append(drawn)
    found: list[float] = []
    if llm.capabilities.loglikelihood:
        asked = [([user(p)], [" " + ANSWER.format(key=key) for key in drawn]) for p, drawn in zip(prompts, keys)]
        scored = score_all(llm, asked, settings, progress)
        found = [share_right([score.logprob for score in row], 0) for row in scored]
        usage = counted([score for row in scored for score in row])
    else:
        replies = [row[0] for row in sample_all(llm, [[user(prompt)] for prompt in prompts], settings, progress)]
        found = [float(str(drawn[0]) in reply.text) for reply, drawn in zip(replies, keys)]
        usage = counted(replies)
    way = "rank" if llm.capabilities.loglikelihood else "recall"
    chance = 1 / config.candidates if way == "rank" else 0.0
    return Outcome(
        task="needle",
        items=len(found),
        prompt=TEMPLATE.replace("{haystack}", "… " + NEEDLE + "…") + (f"\n-> {ANSWER}" if way == "rank" else ""),
        figures=_figures(config, cells, found, settings.seed) | {"chance": Figure(value=chance)},
        settings=sampling(settings)
        | {"score": way, "candidates": config.candidates, "trials": config.trials, "haystack": "file" if hay else "own"}
        | {"lengths": list(config.lengths), "depths": list(config.depths)},
        usage=usage,
        notes=[] if known else ["lengths are characters / 4: the endpoint's tokenizer is not known"],
    )


def _figures(
    config: NeedleConfig, cells: Sequence[tuple[int, float]], found: Sequence[float], seed: int
) -> dict[str, Figure]:
    figures = {"found": mean(found, seed)}
    groups: dict[str, list[float]] = {}
    for (length, depth), score in zip(cells, found):
        groups.setdefault(f"length.{length}", []).append(score)
        groups.setdefault(cell_name(length, depth), []).append(score)
    return figures | {name: mean(scores, seed) for name, scores in groups.items()}


def cell_name(length: int, depth: float) -> str:
    """The figure of one cell of the grid."""
    return f"length.{length}.depth.{depth:g}"


def _sentences(hay: str) -> list[str]:
    """Pieces of hay, each ending in a space."""
    text = " ".join((hay or "".join(HAY)).split())
    pieces = [piece + " " for piece in text.replace(". ", ".\n").split("\n") if piece]
    if any("pass key" in piece for piece in pieces):
        raise UserError("needle: the haystack speaks of a pass key itself; take another text")
    return pieces


def _prompt(
    sentences: Sequence[str],
    sizes: Sequence[int],
    begin: int,
    length: int,
    depth: float,
    key: int,
    measure: Callable[[str], int],
) -> str:
    """The prompt of one trial: as many sentences as fit, the needle at `depth` of them."""
    needle = NEEDLE.format(key=key)
    answer = measure(" " + ANSWER.format(key=key)) - measure("")
    room = length - 1 - measure(TEMPLATE.format(haystack=needle)) - answer  # an engine keeps one token free
    if room < 0:
        raise UserError(f"needle: length {length} is too short: needle and question alone take {length - room} tokens")
    hay: list[str] = []
    place = begin
    while (size := sizes[place % len(sizes)]) <= room:
        hay.append(sentences[place % len(sentences)])
        room -= size
        place += 1
    at = round(depth * len(hay))
    return TEMPLATE.format(haystack="".join([*hay[:at], needle, *hay[at:]]))


def grid(outcome: Outcome) -> tuple[Sequence[int], Sequence[float], list[list[Figure]]]:
    """(lengths, depths, figures [depth][length]) of a needle's outcome, for drawing."""
    lengths: Any = outcome.settings["lengths"]
    depths: Any = outcome.settings["depths"]
    return lengths, depths, [[outcome.figures[cell_name(n, d)] for n in lengths] for d in depths]
