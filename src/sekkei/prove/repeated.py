"""A dry run of a deep model and of many micro-batches, from a few of both.

    layers per stage   3 ──> 4 ──> … L        micro-batches   m ──> m + 1 ──> … M
    sections           [0 1 2]  [0 1 2 3]     a section = between two marks of prove/trace.py
                        └ ┼ ┘    └ ┘ └ ┘      begins alike: 0, 1 · ends alike: last, last but one

Between two marks nothing changes but what one block makes, so the highest point of a section grows by the same bytes
with every layer, and with every micro-batch once the pipeline is full. Sections are counted from the beginning and from
the end; each is followed along the straight line (over both axes: the bilinear form) through two short runs, and the
highest of them all is the peak. Those between lie between. Equal to whole runs, to the byte:
tests/prove/test_repeated.py.

Layers are run as they are where experts, or buckets of several layers, make them unequal; micro-batches where there are
few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from sekkei.parallel.cuts import BUCKET_ELEMENTS
from sekkei.parallel.layout import CHUNKS, Layout
from sekkei.parallel.memory import Job, local_table
from sekkei.prove.trace import Traced, trace

LAYERS = 3  # per stage: the first, the last, and one between
Cells = dict[tuple[str, int, int], dict[tuple[int, int], int]]
"""By what is run, which stage, collectives before: the highest point by layer and how-manieth time."""


@dataclass(frozen=True)
class Axis:
    """One thing that repeats: how often in the shorter run, by how much more in the longer one, and how often it is;
    and how many from the beginning, and from the end, are followed.
    """

    few: int
    more: int
    many: int
    begin: int = 0
    end: int = 0

    @property
    def steps(self) -> int:
        """How often `more` lies between `few` and `many`; 0: it is run as it is."""
        return (self.many - self.few) // self.more if self.many > self.few + self.more else 0

    def at(self, longer: int) -> int:
        """How often it is run."""
        return self.few + longer * self.more if self.steps else self.many


def foretell(job: Job, layout: Layout, rank: int = 0) -> tuple[Traced, list[Job]]:
    """What `trace` would count, and the jobs that were run for it.

    Raises:
        ConfigError: as `trace`.
    """
    job.check(layout)
    layers, passes = _layers(job, layout), _passes(job, layout)
    longer = list(product((0, 1) if layers.steps else (0,), (0, 1) if passes.steps else (0,)))
    if layout.schedule != "gpipe" and len(longer) > 3:  # a pass costs the same number of layers, however many are ahead
        longer.remove((1, 1))
    jobs = {
        (more_layers, more_passes): replace(
            job,
            model=replace(job.model, num_layers=layers.at(more_layers) * layout.stages),
            rows=passes.at(more_passes) * layout.dp * job.micro_rows,
        )
        for more_layers, more_passes in longer
    }
    runs = {key: trace(short, layout, rank) for key, short in jobs.items()}
    held = _followed({key: run.held for key, run in runs.items()}, (layers.steps, passes.steps))
    sections = {key: _cells(run) for key, run in runs.items()}
    return Traced(held, _highest(sections, (layers, passes)), {}), list(jobs.values())


def _layers(job: Job, layout: Layout) -> Axis:
    """Of a stage. A parameter that fills a bucket makes every layer's buckets begin anew."""
    many = job.model.num_layers // layout.stages
    largest = max(prod(shape) for name, shape, _ in local_table(job.model, layout, 0) if name.startswith("layers."))
    equal = job.model.moe is None and (layout.zero == 3 or largest >= BUCKET_ELEMENTS)
    return Axis(LAYERS, 1, many, 2, 2) if equal else Axis(many, 1, many)


def _passes(job: Job, layout: Layout) -> Axis:
    """A pipeline is full after at most 2 pp of them (from the 2 pp - 1st on torch keeps one result longer), and runs
    dry over the last pp; with two stages per rank twice as many.
    """
    many, pp = job.passes(layout), layout.pp
    if pp == 1:
        return Axis(many, 1, many)  # `trace` runs two of them
    return (
        Axis(3 * pp + 1, 1, many, 2 * pp, pp + 1)
        if CHUNKS[layout.schedule] == 1
        else Axis(4 * pp, pp, many, 2 * pp, 2 * pp)
    )


def _cells(run: Traced) -> Cells:
    """Sections of blocks as they are named; those of the optimizer by their collective, in place of a layer."""
    found: Cells = {}
    for ((what, chunk, place, time), collective), size in run.sections.items():
        if what in ("update", "publish"):
            found.setdefault((what, 0, 0), {})[collective, 0] = size
        else:
            found.setdefault((what, chunk, collective), {})[place, time] = size
    return found


def _highest(runs: Mapping[tuple[int, int], Cells], axes: tuple[Axis, Axis]) -> int:
    """Over all sections of the short runs, counted from both ends of both axes."""
    highest, steps = 0, (axes[0].steps, axes[1].steps)
    for key, cells in runs[0, 0].items():
        sizes = {
            run: tuple(1 + max(cell[axis] for cell in found[key]) for axis in (0, 1)) for run, found in runs.items()
        }
        for cell, ends in product(cells, product((False, True), repeat=2)):
            if not all(_near(cell[axis], sizes[0, 0][axis], ends[axis], axes[axis]) for axis in (0, 1)):
                continue
            places = {
                run: tuple(cell[axis] + ends[axis] * (size[axis] - sizes[0, 0][axis]) for axis in (0, 1))
                for run, size in sizes.items()
            }
            same = {run: runs[run][key][place[0], place[1]] for run, place in places.items()}
            highest = max(highest, _followed(same, steps))
    return highest


def _near(place: int, size: int, end: bool, axis: Axis) -> bool:
    """Whether a place is followed from that end; collectives, of which there are many per layer, each from its half."""
    far = size - 1 - place if end else place
    if axis.steps and size == axis.few:
        return far < (axis.end if end else axis.begin)
    return far <= (size - 1) // 2


def _followed(values: Mapping[tuple[int, int], int], steps: tuple[int, int]) -> int:
    """The bilinear form through the corners of a unit square, at `steps`; without a corner it does not vary there."""
    base = values[0, 0]
    first = values.get((1, 0), base) - base
    second = values.get((0, 1), base) - base
    both = values[1, 1] - base - first - second if (1, 1) in values else 0
    return base + steps[0] * first + steps[1] * second + steps[0] * steps[1] * both
