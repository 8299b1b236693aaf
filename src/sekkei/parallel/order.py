"""In which order a pipeline rank computes what, and what it holds at each action: schedules in closed form.

    1f1b, pp = 3, first rank     F0 F1 F2 B0 F3 B1 F4 B2 …        F: forward pass, B: backward pass of a micro-batch
    zero_bubble, two stages      F0 F1 F0' I0' W0' …              I: gradients of inputs, W: of weights, put off

The orders are those of torch.distributed.pipelining (tests/parallel/test_order.py compares them): GPipe (Huang et al.
2019), 1F1B (Narayanan et al. 2019), interleaved (Narayanan et al. 2021, section 2.2) and ZB-H1 (Qi et al. 2023), the
last two with two stages per rank. A pass that waits for its weight gradients keeps all that its forward pass saved:
the graph hangs together. Steady states repeat, so of all actions only those that no other one surpasses are told.

It knows no time: who waits for whom is prove/gantt.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from operator import le
from typing import Literal, NamedTuple

from sekkei.parallel.layout import CHUNKS, Schedule

Kind = Literal["F", "B", "I", "W"]
Action = tuple[Kind, int, int]
"""(what, which of the rank's stages: 0 or 1, which micro-batch)."""


class State(NamedTuple):
    """While an action runs.

    kind, chunk: of the action. held: forward passes of each of the rank's stages whose graph is kept, that of the
    action among them. owed: of these, passes whose weight gradients are put off, so that the gradients of their
    projections' results are kept. begun: stages that have weight gradients already. whole: stages whose last pass was a
    backward one, or that had none yet: those ZeRO-3 leaves gathered. outs, backs: results of forward passes and
    input gradients of each stage that are kept: with two stages per rank all, as torch drops their transfers when the
    step ends; else results as long as their pass is, and input gradients of gpipe all, of 1f1b the last one.
    """

    kind: Kind
    chunk: int
    held: tuple[int, ...]
    owed: tuple[int, ...]
    begun: tuple[bool, ...]
    whole: tuple[bool, ...]
    outs: tuple[int, ...]
    backs: tuple[int, ...]


@lru_cache(maxsize=4096)
def order(schedule: Schedule, pp: int, rank: int, passes: int) -> tuple[Action, ...]:
    """All actions of pipeline rank `rank` in a step of `passes` micro-batches."""
    if CHUNKS[schedule] == 1:
        ahead = passes if schedule == "gpipe" else min(passes, pp - rank)
        actions: list[Action] = [("F", 0, number) for number in range(ahead)]
        for number in range(passes):
            actions.append(("B", 0, number))
            if ahead + number < passes:
                actions.append(("F", 0, ahead + number))
        return tuple(actions)
    return _looped(schedule == "zero_bubble", pp, rank, passes)


def _looped(split: bool, pp: int, rank: int, passes: int) -> tuple[Action, ...]:
    """Two stages per rank, as many micro-batches in a row through each as there are ranks."""
    row = passes // max(1, passes // pp)
    ahead = min(2 * passes, row + (1 if split else 2) * (pp - 1 - rank))
    counts: dict[tuple[str, int], int] = {}

    def action(kind: Kind, step: int) -> Action:
        chunk = step // row % 2 if kind == "F" else 1 - step // row % 2
        number = counts.get((kind, chunk), 0)
        counts[kind, chunk] = number + 1
        return kind, chunk, number

    actions = [action("F", step) for step in range(ahead)]
    for step in range(2 * passes):
        if ahead + step < 2 * passes:
            actions.append(action("F", ahead + step))
        actions.append(action("I" if split else "B", step))
        if split and step >= rank:
            actions.append(action("W", step - rank))
    if split:
        actions += [action("W", step) for step in range(2 * passes - min(rank, 2 * passes), 2 * passes)]
    return tuple(actions)


@lru_cache(maxsize=4096)
def states(schedule: Schedule, pp: int, rank: int, passes: int) -> tuple[State, ...]:
    """The states of a step, without those that another state of the same action has at least as much of everything as.

    The pipeline's first stage has no input gradients: its `I` does nothing, and its `W` is a whole backward pass.
    """
    chunks = range(CHUNKS[schedule])
    held, owed, begun, whole = [0 for _ in chunks], [0 for _ in chunks], [False for _ in chunks], [True for _ in chunks]
    outs, backs = [0 for _ in chunks], [0 for _ in chunks]
    found: dict[tuple[object, ...], State] = {}
    for kind, chunk, _ in order(schedule, pp, rank, passes):
        first = rank == 0 and chunk == 0
        if kind == "F":
            held[chunk] += 1
        if kind == "I" and not first:
            owed[chunk] += 1
        results = tuple(outs if len(outs) > 1 else held)
        sent = tuple(min(1, count) for count in backs) if schedule == "1f1b" else tuple(backs)
        now = State(kind, chunk, tuple(held), tuple(owed), tuple(begun), tuple(whole), results, sent)
        found[now[:6]] = now  # of those alike the last one has most `outs` and `backs`
        whole[chunk] = kind != "F"
        if kind == "F":
            outs[chunk] += 1
        elif kind != "W":
            backs[chunk] += 1
        if kind in "BW":
            held[chunk] -= 1
            begun[chunk] = True
            owed[chunk] -= kind == "W" and not first
    return _unsurpassed(found.values())


def _unsurpassed(found: Iterable[State]) -> tuple[State, ...]:
    """With one stage per rank a pass that is held weighs no less than a gradient that was sent back."""
    best: dict[tuple[object, ...], list[tuple[tuple[int, ...], State]]] = {}
    for state in found:
        backs = state.backs if len(state.held) > 1 else (state.held[0] + state.backs[0],)
        sizes, alike = state.held + state.owed + state.outs + backs, best.setdefault(state[:2] + state[4:6], [])
        if not any(all(map(le, sizes, others)) for others, _ in alike):
            alike[:] = [other for other in alike if not all(map(le, other[0], sizes))]
            alike.append((sizes, state))
    return tuple(state for alike in best.values() for _, state in alike)
